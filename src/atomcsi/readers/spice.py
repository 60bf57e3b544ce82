"""SPICE: small molecules, dipeptides, solvated amino acids and more at wB97M-D3(BJ)/def2-TZVPPD, in one HDF5 file.

One group per molecule: ``atomic_numbers`` (atoms,), ``conformations`` (conformers, atoms, 3) in bohr,
``dft_total_energy`` (conformers,) in Hartree, ``dft_total_gradient`` (conformers, atoms, 3) in Hartree/bohr, and
``subset`` (1,), the name of the collection that the molecule belongs to. The file holds the gradient: forces are
minus that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from atomcsi.errors import ConfigError, InputError, did_you_mean
from atomcsi.readers.base import Reader
from atomcsi.readers.raw import Frames, hdf5, records
from atomcsi.structure import Structure

_SIGNS = {"minus-gradient": -1, "gradient": 1}
_NAMES = ("atomic_numbers", "conformations", "dft_total_energy", "dft_total_gradient")


class SpiceReader(Reader):
    """Reads the conformers of all molecules, or of those of one subset.

    Args:
        root: Folder of the dataset.
        part: Not used: the file has no parts.
        file: Path of the HDF5 file below ``root``.
        subset: Only molecules whose ``subset`` contains this text, such as "Solvated Amino Acids".
        forces: ``minus-gradient``, or ``gradient`` for what the paper's code and early versions of JMP took for
            forces: models that were trained so have learned to go uphill.
    """

    def __init__(
        self,
        root: Path,
        *,
        part: str | None = None,
        file: str,
        subset: str | None = None,
        forces: str = "minus-gradient",
    ) -> None:
        super().__init__(root, part=part)
        self.file = self.path(file)
        self.subset = subset
        if forces not in _SIGNS:
            raise ConfigError(f"unknown forces of SPICE '{forces}'{did_you_mean(forces, _SIGNS)}")
        self.sign = _SIGNS[forces]

    def __iter__(self) -> Iterator[Structure]:
        """Yields the conformers, molecule by molecule."""
        return self.read(self.pieces())

    def pieces(self) -> list[str]:
        """Returns the molecules, of the subset if there is one."""
        with hdf5(self.file) as file:
            if self.subset is None:
                return [molecule for molecule, _ in records(file)]
            subsets = {
                molecule: group["subset"].asstr()[0] if "subset" in group else "" for molecule, group in records(file)
            }
        found = [molecule for molecule, subset in subsets.items() if self.subset.lower() in subset.lower()]
        if not found:
            known = ", ".join(f"'{subset}'" for subset in sorted(set(subsets.values())))
            raise InputError(self.file, f"has no subset '{self.subset}'", mend=f"it has: {known}")
        return found

    def read(self, pieces: Sequence[str]) -> Iterator[Structure]:
        """Yields the conformers of some molecules."""
        with hdf5(self.file) as file:
            for molecule in pieces:
                frames = Frames.of(file[molecule], _NAMES, self.file, molecule)
                yield from frames._replace(forces=self.sign * frames.forces[()]).structures(self.file, molecule)
