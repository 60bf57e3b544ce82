"""Revised MD17: one ``.npz`` per molecule, 100 000 frames of molecular dynamics at PBE/def2-SVP.

``nuclear_charges`` (atoms,), ``coords`` (frames, atoms, 3) in Angstrom, ``energies`` (frames,) in kcal/mol and
``forces`` (frames, atoms, 3) in kcal/mol/Angstrom, minus the gradient. The ``old_*`` arrays are MD17's and are not
read.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from atomcsi.readers.base import Reader
from atomcsi.readers.npy import NpyStream
from atomcsi.readers.raw import Frames, naming
from atomcsi.structure import Structure

#: What an archive that is damaged in ways of its own raises.
_DAMAGE = (NotImplementedError, RuntimeError, ValueError)
#: Frames that are held at once.
_BLOCK = 1000


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
        with ExitStack() as stack:
            with naming(self.file, *_DAMAGE):
                archive = stack.enter_context(zipfile.ZipFile(self.file))
                names = [name for name in self.NAMES if f"{name}.npy" in archive.namelist()]
                arrays = {name: NpyStream(stack.enter_context(archive.open(f"{name}.npy"))) for name in names}
            frames = Frames.of(arrays, self.NAMES, self.file)
            with naming(self.file, *_DAMAGE):
                numbers = frames.numbers.read(len(frames.numbers))
            count = len(frames.positions)
            for first in range(0, count, _BLOCK):
                with naming(self.file, *_DAMAGE):
                    block = [array.read(min(_BLOCK, count - first)) for array in frames[1:]]
                yield from Frames(numbers, *block).structures(self.file, self.file.stem, first=first)
