"""Many structures as a few arrays: what is read, checked, converted and written at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice

import numpy as np

from atomcsi.structure import LARGEST, MAX_ATOMIC_NUMBER, Structure, repeats

#: Bits of :attr:`StructureBatch.flags`: periodicity along each lattice vector, and which labels a structure has.
PBC, FORCES, CELL, TAGS, FIXED = (1, 2, 4), 8, 16, 32, 64


@dataclass(slots=True, kw_only=True)
class StructureBatch:
    """Structures, their atoms in one row.

    Attributes:
        natoms: Number of atoms of each structure, shape (structures,), integers.
        flags: What each structure has, as bits :data:`PBC` to :data:`FIXED`, shape (structures,), uint16.
        numbers: Atomic numbers, shape (atoms,), uint8.
        positions: Cartesian positions, shape (atoms, 3).
        forces: Forces, shape (atoms, 3); NaN where a structure has none.
        tags: OC20's tags, shape (atoms,), uint8; 0 where a structure has none.
        fixed: True where the atom was held, shape (atoms,).
        cell: Lattice vectors as rows, shape (structures, 3, 3); 0 where a structure has none.
        energy: Total energies, shape (structures,), float64; NaN where a structure has none.
        properties: Further targets, shape (structures, properties), float64.
        property_names: Their names.
        sources: Name of each structure's record in the raw data.
        labels: Class of each structure.
        groups: What a random split must keep together.
        dataset: Position of each structure's dataset in a mix, shape (structures,), integers; all 0 if None.
    """

    natoms: np.ndarray
    flags: np.ndarray
    numbers: np.ndarray
    positions: np.ndarray
    forces: np.ndarray
    tags: np.ndarray
    fixed: np.ndarray
    cell: np.ndarray
    energy: np.ndarray
    properties: np.ndarray
    property_names: tuple[str, ...]
    sources: Sequence[str]
    labels: Sequence[str]
    groups: Sequence[str]
    dataset: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of structures."""
        return len(self.natoms)

    @property
    def pbc(self) -> np.ndarray:
        """Periodicity along the lattice vectors, shape (structures, 3), bool."""
        return (self.flags[:, None] & np.array(PBC, "u2")) != 0

    @property
    def index(self) -> np.ndarray:
        """Structure of each atom, shape (atoms,), ascending."""
        return np.repeat(np.arange(len(self)), self.natoms)

    def has(self, flag: int) -> np.ndarray:
        """Which structures have what ``flag`` stands for, shape (structures,), bool."""
        return (self.flags & flag) != 0

    @classmethod
    def of(cls, structures: Sequence[Structure], property_names: Sequence[str] = ()) -> StructureBatch:
        """Puts structures together; at least one.

        Raises:
            ValueError: One of them cannot be stored; its :meth:`~atomcsi.structure.Structure.problem` says why.
        """
        natoms = np.array([len(s.numbers) for s in structures])
        numbers = np.concatenate([s.numbers for s in structures])
        tags = _rows([s.tags for s in structures], natoms, (), 0)
        if natoms.min() == 0 or numbers.min() < 1 or numbers.max() > MAX_ATOMIC_NUMBER:
            raise ValueError("a structure without atoms, or with an atom of no element")
        if tags.min() < 0 or tags.max() > 255:
            raise ValueError("tags outside 0 to 255")
        batch = cls(
            natoms=natoms,
            flags=_flags(structures),
            numbers=numbers.astype("u1"),
            positions=_rows([s.positions for s in structures], natoms, (3,), np.nan),
            forces=_rows([s.forces for s in structures], natoms, (3,), np.nan),
            tags=tags.astype("u1"),
            fixed=_rows([s.fixed for s in structures], natoms, (), False).astype(bool),
            cell=_cells(structures),
            energy=np.array([s.energy for s in structures], float),
            properties=np.array([[s.properties[name] for name in property_names] for s in structures], float),
            property_names=tuple(property_names),
            sources=[s.source for s in structures],
            labels=[s.label for s in structures],
            groups=[s.group for s in structures],
        )
        batch._check()
        return batch

    @classmethod
    def join(cls, batches: Sequence[StructureBatch]) -> StructureBatch:
        """Puts batches together, of which all have the same properties."""

        def joined(name: str) -> np.ndarray | list[str]:
            values = [getattr(batch, name) for batch in batches]
            return np.concatenate(values) if isinstance(values[0], np.ndarray) else [v for each in values for v in each]

        names = [each.name for each in fields(cls) if each.name not in ("property_names", "dataset")]
        datasets = [np.zeros(len(batch), int) if batch.dataset is None else batch.dataset for batch in batches]
        return cls(
            **{name: joined(name) for name in names},
            property_names=batches[0].property_names,
            dataset=None if all(batch.dataset is None for batch in batches) else np.concatenate(datasets),
        )

    @property
    def known_forces(self) -> np.ndarray:
        """Forces of those structures that have them, shape (their atoms, 3)."""
        has = self.has(FORCES)
        return self.forces if has.all() else self.forces[np.repeat(has, self.natoms)]

    def _check(self) -> None:
        if (
            not all(map(_fits, (self.positions, self.known_forces, self.cell, self.properties)))
            or np.isinf(self.energy).any()
            or not repeats(self.cell, self.pbc).all()
        ):
            raise ValueError("a structure with values that are not finite, or periodic without a volume")

    def in_base_units(self, energy: float, length: float, properties: Sequence[float]) -> StructureBatch:
        """Returns the batch with energies, lengths and properties multiplied by these, forces by their quotient."""
        return replace(
            self,
            positions=self.positions * length,
            energy=self.energy * energy,
            forces=self.forces * (energy / length),
            cell=self.cell * length,
            properties=self.properties * np.asarray(properties, float),
        )


def batches_of(
    structures: Iterable[Structure], size: int, property_names: Sequence[str] = ()
) -> Iterator[StructureBatch]:
    """Yields structures in batches of ``size``, the last one smaller; errors are those of :meth:`StructureBatch.of`."""
    stream = iter(structures)
    while members := list(islice(stream, size)):
        yield StructureBatch.of(members, property_names)


def _cells(structures: Sequence[Structure]) -> np.ndarray:
    cells = np.zeros((len(structures), 3, 3))
    for position, structure in enumerate(structures):
        if structure.cell is not None:
            cells[position] = structure.cell
    return cells


def _fits(array: np.ndarray) -> bool:
    """Whether all values fit into single precision; NaN does not."""
    return not array.size or bool(array.min() > -LARGEST and array.max() < LARGEST)


def _flags(structures: Sequence[Structure]) -> np.ndarray:
    flags = np.array([s.pbc for s in structures], bool) @ np.array(PBC, "u2")
    for flag, has in (
        (FORCES, [s.forces is not None for s in structures]),
        (CELL, [s.cell is not None for s in structures]),
        (TAGS, [s.tags is not None for s in structures]),
        (FIXED, [s.fixed is not None for s in structures]),
    ):
        flags |= np.uint16(flag) * np.array(has, "u2")
    return flags


def _rows(arrays: Sequence[np.ndarray | None], natoms: np.ndarray, shape: tuple[int, ...], fill: float) -> np.ndarray:
    """Concatenates arrays of shape (atoms, *shape), with ``fill`` in place of those that are None."""
    if all(array is None for array in arrays):
        return np.full((int(natoms.sum()), *shape), fill)
    sizes = natoms.tolist()
    rows = [np.full((n, *shape), fill) if array is None else array for array, n in zip(arrays, sizes, strict=True)]
    if [row.shape for row in rows] != [(n, *shape) for n in sizes]:
        raise ValueError("an array of another shape than the atoms need")
    return np.concatenate(rows)
