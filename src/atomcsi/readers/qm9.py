"""QM9: 133 885 molecules of H, C, N, O and F, relaxed at B3LYP/6-31G(2df,p), one file each in a ``.tar.bz2``.

A file ``dsgdb9nsd_NNNNNN.xyz`` has the number of atoms; ``gdb <index>`` and the rotational constants A, B, C (GHz),
mu (Debye), alpha (bohr^3), homo, lumo, gap (Hartree), r2 (bohr^2), zpve, U0, U, H, G (Hartree) and Cv (cal/mol/K);
per atom its symbol, position in Angstrom and Mulliken charge; and lines of frequencies, SMILES and InChI, which are
not read. Small numbers have the form ``1.2*^-6``. ``uncharacterized.txt`` lists the 3054 molecules whose bonds changed
in the relaxation, which the field leaves out. There are no forces.

``U0_atom``, ``U_atom``, ``H_atom`` and ``G_atom``, in Hartree, are the atomisation energies that complete the
field's 19 targets: the energies less those of the free atoms, from QM9's ``atomref.txt``.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers

from atomcsi.errors import ConfigError, InputError, did_you_mean
from atomcsi.readers.base import Reader
from atomcsi.readers.raw import MEND_RECORD, label_of, opened
from atomcsi.structure import Structure

_COLUMNS = (
    *("A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve"),
    *("U0", "U", "H", "G", "Cv"),
)
#: Energies of the free atoms of H, C, N, O and F in Hartree (``atomref.txt``).
_FREE_ATOMS = {
    "U0": {1: -0.500273, 6: -37.846772, 7: -54.583861, 8: -75.064579, 9: -99.718730},
    "U": {1: -0.498857, 6: -37.845355, 7: -54.582445, 8: -75.063163, 9: -99.717314},
    "H": {1: -0.497912, 6: -37.844411, 7: -54.581501, 8: -75.062219, 9: -99.716370},
    "G": {1: -0.510927, 6: -37.861317, 7: -54.598897, 8: -75.079532, 9: -99.733544},
}
PROPERTIES = (*_COLUMNS, *(f"{name}_atom" for name in _FREE_ATOMS))


class Qm9Reader(Reader):
    """Reads the molecules with the requested properties, in the units of the files.

    Args:
        root: Folder of the dataset.
        part: Not used: the files have no parts.
        properties: Some of :data:`PROPERTIES`.
        file: Path of the ``.tar.bz2``, or of the folder that it was unpacked to, below ``root``.
        uncharacterized: Path of the list of molecules to leave out below ``root``, or None.
    """

    properties = frozenset(PROPERTIES)

    def __init__(
        self,
        root: Path,
        *,
        part: str | None = None,
        properties: Sequence[str] = PROPERTIES,
        file: str = "dsgdb9nsd.xyz.tar.bz2",
        uncharacterized: str | None = "uncharacterized.txt",
    ) -> None:
        super().__init__(root, part=part)
        self.file = self.path(file)
        self.uncharacterized = None if uncharacterized is None else self.path(uncharacterized)
        for name in properties:
            if name not in PROPERTIES:
                raise ConfigError(f"unknown property of QM9 '{name}'{did_you_mean(name, PROPERTIES)}")
        self.requested = tuple(properties)

    def __iter__(self) -> Iterator[Structure]:
        """Yields the molecules in the order of their indices, as ``gdb/<index>``."""
        left_out = self._left_out()
        for name, text in self._files():
            try:
                structure = self._parse(text, name)
            except (IndexError, KeyError, ValueError) as error:
                problem = f"is no molecule in QM9's raw format: {error}"
                raise InputError(self.file, problem, record=name, mend=MEND_RECORD) from error
            if structure.source not in left_out:
                yield structure

    def _left_out(self) -> set[str]:
        if self.uncharacterized is None:
            return set()
        with opened(self.uncharacterized) as lines:
            words = [line.split(maxsplit=1) for line in lines]
        # Its lines of text do not start with a number.
        return {f"gdb/{first}" for first, *_ in filter(None, words) if first.isdigit()}

    def _files(self) -> Iterator[tuple[str, str]]:
        """Yields the name and the text of every molecule's file."""
        if self.file.is_dir():
            for path in sorted(self.file.glob("*.xyz")):
                with opened(path) as stream:
                    yield path.name, stream.read()
            return
        # As a stream of tar alone, for tarfile by itself overlooks that a compressed stream has ended early.
        with opened(self.file, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                if member.name.endswith(".xyz"):
                    yield Path(member.name).name, archive.extractfile(member).read().decode()

    def _parse(self, text: str, name: str) -> Structure:
        count, description, *lines = text.replace("*^", "e").splitlines()
        _, index, *values = description.split()
        properties = dict(zip(_COLUMNS, map(float, values), strict=True))
        atoms = [line.split() for line in lines[: int(count)]]
        numbers = np.array([atomic_numbers[symbol] for symbol, *_ in atoms])
        for energy, free in _FREE_ATOMS.items():
            properties[f"{energy}_atom"] = properties[energy] - sum(free[number] for number in numbers.tolist())
        return Structure(
            numbers=numbers,
            positions=np.array([[float(x), float(y), float(z)] for _, x, y, z, _ in atoms]),
            source=f"gdb/{index}",
            label=label_of(numbers, self.file, name),
            properties={property_: properties[property_] for property_ in self.requested},
        )
