"""ANI-1x: ``ani1x-release.h5``, 5 million conformers of 63 865 molecules of H, C, N and O.

One group per molecular formula, which may mix isomers: ``atomic_numbers`` (atoms,), ``coordinates``
(conformers, atoms, 3) in Angstrom and, for every level of theory, ``<level>.energy`` (conformers,) in Hartree and
``<level>.forces`` (conformers, atoms, 3) in Hartree/Angstrom, minus the gradient. NaN marks a conformer that was
not computed at that level. No split is published; the field keeps formulas together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from atomcsi.readers.base import Reader
from atomcsi.readers.raw import Frames, hdf5, records
from atomcsi.structure import Structure


class Ani1xReader(Reader):
    """Reads the conformers that have both energy and forces at one level of theory.

    Args:
        root: Folder of the dataset.
        part: Not used: the file has no parts.
        file: Path of the HDF5 file below ``root``.
        level: Level of theory, as the file spells it: ``wb97x_dz`` (complete) or ``wb97x_tz``.
        min_atoms: Smaller molecules are left out.
    """

    def __init__(
        self,
        root: Path,
        *,
        part: str | None = None,
        file: str = "ani1x-release.h5",
        level: str = "wb97x_dz",
        min_atoms: int = 4,
    ) -> None:
        super().__init__(root, part=part)
        self.file = self.path(file)
        self.names = ("atomic_numbers", "coordinates", f"{level}.energy", f"{level}.forces")
        self.min_atoms = min_atoms

    def __iter__(self) -> Iterator[Structure]:
        """Yields the conformers, formula by formula."""
        return self.read(self.pieces())

    def pieces(self) -> list[str]:
        """Returns the formulae."""
        with hdf5(self.file) as file:
            return [formula for formula, _ in records(file)]

    def read(self, pieces: Sequence[str]) -> Iterator[Structure]:
        """Yields the conformers of some formulae."""
        with hdf5(self.file) as file:
            for formula in pieces:
                frames = Frames.of(file[formula], self.names, self.file, formula)
                if len(frames.numbers) >= self.min_atoms:
                    frames = frames._replace(energies=frames.energies[()], forces=frames.forces[()])
                    missing = np.isnan(frames.energies.ravel()) | np.isnan(frames.forces).any(axis=(1, 2))
                    yield from frames.structures(self.file, formula, rows=np.flatnonzero(~missing), group=formula)
