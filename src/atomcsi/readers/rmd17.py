"""Revised MD17: one ``.npz`` per molecule, 100 000 frames of molecular dynamics at PBE/def2-SVP.

``nuclear_charges`` (atoms,), ``coords`` (frames, atoms, 3) in Angstrom, ``energies`` (frames,) in kcal/mol and
``forces`` (frames, atoms, 3) in kcal/mol/Angstrom, minus the gradient. The ``old_*`` arrays are MD17's and are not
read.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from atomcsi.errors import InputError
from atomcsi.readers.base import Reader
from atomcsi.readers.raw import MEND_FILE, Frames, naming
from atomcsi.structure import Structure


class Rmd17Reader(Reader):
    """Reads the trajectory of one molecule.

    Args:
        root: Folder of the dataset.
        part: Not used: the file has no parts.
        file: Path of the ``.npz`` below ``root``.
    """

    #: Names of the arrays of numbers, positions, energies and forces.
    NAMES = ("nuclear_charges", "coords", "energies", "forces")

    def __init__(self, root: Path, *, part: str | None = None, file: str) -> None:
        super().__init__(root, part=part)
        self.file = self.path(file)

    def __iter__(self) -> Iterator[Structure]:
        """Yields the frames in order."""
        with naming(self.file, NotImplementedError), self.file.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise InputError(self.file, "is no .npz archive, or cut short", mend=MEND_FILE)
            try:
                frames = Frames.of(np.load(stream, allow_pickle=False), self.NAMES, self.file)
            except ValueError as error:
                problem = f"holds arrays that are no plain numbers: {error}"
                raise InputError(self.file, problem, mend=MEND_FILE) from error
        yield from frames.structures(self.file, self.file.stem)
