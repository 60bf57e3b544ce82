"""Several structures as one graph without edges: what models take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from ase.geometry import complete_cell
from torch import Tensor

from atomcsi.structure import Structure
from atomcsi.structure_batch import FORCES, TAGS, StructureBatch

#: OC20's tag of adsorbate atoms: atoms that models may treat with their most expensive interactions.
ADSORBATE_TAG = 2


@dataclass(slots=True, kw_only=True)
class AtomBatch:
    """Structures, their atoms in one row.

    Attributes:
        positions: Cartesian positions in Angstrom, shape (atoms, 3), inside the cell along periodic directions:
            neighbour searches rely on it.
        numbers: Atomic numbers, shape (atoms,), integers.
        cell: Lattice vectors as rows in Angstrom, shape (structures, 3, 3); along directions that are not periodic
            a box with vacuum, so that models may treat every structure as periodic.
        pbc: Periodicity along the lattice vectors, shape (structures, 3), for models that can make use of it.
        natoms: Number of atoms of each structure, shape (structures,), integers.
        index: Structure of each atom, shape (atoms,), integers, ascending.
        dataset: Position of each structure's dataset in a mix, shape (structures,), integers.
        tags: OC20's tags, shape (atoms,), integers; 2 where a structure has none.
        fixed: True where the atom was held in the source's relaxation, shape (atoms,).
        energy: Energies in eV, shape (structures,), always float64: totals of 1e5 eV must keep their meV until
            references are subtracted; NaN where a structure has none.
        forces: Forces in eV/Angstrom, shape (atoms, 3), NaN where a structure has none; None if no structure does.
    """

    positions: Tensor
    numbers: Tensor
    cell: Tensor
    pbc: Tensor
    natoms: Tensor
    index: Tensor
    dataset: Tensor
    tags: Tensor
    fixed: Tensor
    energy: Tensor
    forces: Tensor | None

    def __len__(self) -> int:
        """Number of structures."""
        return len(self.natoms)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> AtomBatch:
        """Returns the batch on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(
            **{
                name: None if value is None else value.to(device, non_blocking=non_blocking)
                for name, value in values.items()
            }
        )


def collate(
    structures: Sequence[Structure] | StructureBatch, *, vacuum: float, dtype: torch.dtype = torch.float32
) -> AtomBatch:
    """Puts structures into one batch; molecules, slabs and crystals may be mixed.

    Args:
        structures: At least one structure in eV and Angstrom.
        vacuum: Empty space in Angstrom between the images of a structure along directions that are not periodic.
            Must exceed the model's cutoff.
        dtype: Type of positions, cells and forces.
    """
    batch = structures if isinstance(structures, StructureBatch) else StructureBatch.of(structures)
    cell, index = periodic_cells(batch, vacuum), batch.index

    def floats(array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=dtype)

    return AtomBatch(
        positions=floats(_wrapped(batch, cell)),
        numbers=torch.as_tensor(batch.numbers.astype(np.int64)),
        cell=floats(cell),
        pbc=torch.as_tensor(batch.pbc),
        natoms=torch.as_tensor(batch.natoms),
        index=torch.as_tensor(index),
        dataset=torch.as_tensor(np.zeros(len(batch), int) if batch.dataset is None else batch.dataset),
        tags=torch.as_tensor(np.where(batch.has(TAGS)[index], batch.tags, ADSORBATE_TAG)).long(),
        fixed=torch.as_tensor(batch.fixed),
        energy=torch.as_tensor(batch.energy, dtype=torch.float64),
        forces=floats(batch.forces) if batch.has(FORCES).any() else None,
    )


def _wrapped(batch: StructureBatch, cell: np.ndarray) -> np.ndarray:
    """Positions with whole lattice vectors taken off atoms that lie outside along periodic directions."""
    pbc = batch.pbc
    if not pbc.any():
        return batch.positions
    index = batch.index
    inside = np.einsum("ai,aij->aj", batch.positions, np.linalg.inv(cell)[index])
    # Atoms on a face stay on their side, whatever their last digits.
    turns = np.where(pbc[index], np.floor(inside + 1e-7), 0.0)
    return batch.positions - np.einsum("ai,aij->aj", turns, cell[index])


def join(batches: Sequence[AtomBatch]) -> AtomBatch:
    """Joins batches to one."""
    atoms = torch.cat([batch.natoms for batch in batches])
    forces = [
        torch.full_like(batch.positions, torch.nan) if batch.forces is None else batch.forces for batch in batches
    ]
    values = {
        field.name: torch.cat([getattr(batch, field.name) for batch in batches])
        for field in fields(AtomBatch)
        if field.name not in ("index", "forces")
    }
    return AtomBatch(
        **values,
        index=torch.repeat_interleave(torch.arange(len(atoms), device=atoms.device), atoms),
        forces=None if all(batch.forces is None for batch in batches) else torch.cat(forces),
    )


def periodic_cells(batch: StructureBatch, vacuum: float) -> np.ndarray:
    """Returns the structures' cells with vacuum along directions that are not periodic.

    Those lattice vectors are replaced by ones at right angles to the others, longer than the structure by
    ``vacuum`` (Angstrom): an orthorhombic box for a molecule. Sources often leave cells that are too small there,
    or none.

    Returns:
        Lattice vectors as rows in Angstrom, shape (structures, 3, 3), never singular for valid structures.
    """
    pbc = batch.pbc
    cells = np.where(pbc[:, :, None], batch.cell.astype(float), 0.0)
    molecules = ~pbc.any(axis=1)
    cells[molecules] = np.eye(3)
    for open_ in np.flatnonzero(~molecules & ~pbc.all(axis=1)):
        cells[open_] = complete_cell(cells[open_])
    # The added vectors have length 1.
    along = np.einsum("ai,aji->aj", batch.positions, cells[batch.index])
    starts = np.cumsum(batch.natoms) - batch.natoms
    extent = np.maximum.reduceat(along, starts) - np.minimum.reduceat(along, starts)
    return np.where(pbc[:, :, None], cells, cells * (extent + vacuum)[:, :, None])


def periodic_cell(structure: Structure, vacuum: float) -> np.ndarray:
    """Returns the cell of one structure as :func:`periodic_cells` does, shape (3, 3)."""
    return periodic_cells(StructureBatch.of([structure]), vacuum)[0]
