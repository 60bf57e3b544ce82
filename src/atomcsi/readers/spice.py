"""SPICE: small molecules, dipeptides, solvated amino acids and more at wB97M-D3(BJ)/def2-TZVPPD, in one HDF5 file.

One group per molecule: ``atomic_numbers`` (atoms,), ``conformations`` (conformers, atoms, 3) in bohr,
``dft_total_energy`` (conformers,) in Hartree, ``dft_total_gradient`` (conformers, atoms, 3) in Hartree/bohr, and
``subset`` (1,), the name of the collection that the molecule belongs to. The file holds the gradient: forces are
minus that.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        others = set()
        matched = self.subset is None
        with hdf5(self.file) as file:
            for molecule, group in records(file):
                if self.subset is not None:
                    subset = group["subset"].asstr()[0] if "subset" in group else ""
                    if self.subset.lower() not in subset.lower():
                        others.add(subset)
                        continue
                    matched = True
                frames = Frames.of(group, _NAMES, self.file, molecule)
                yield from frames._replace(forces=self.sign * frames.forces[()]).structures(self.file, molecule)
        if not matched:
            known = ", ".join(f"'{subset}'" for subset in sorted(others))
            raise InputError(self.file, f"has no subset '{self.subset}'", mend=f"it has: {known}")
