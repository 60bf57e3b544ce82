"""Several structures as one graph without edges: what models take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from ase.geometry import complete_cell, wrap_positions
from torch import Tensor

from atomcsi.structure import Structure

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
        return AtomBatch(
            **{
                name: None if value is None else value.to(device, non_blocking=non_blocking)
                for name, value in values.items()
            }
        )


def collate(structures: Sequence[Structure], *, vacuum: float, dtype: torch.dtype = torch.float32) -> AtomBatch:
    """Puts structures into one batch; molecules, slabs and crystals may be mixed.

    Args:
        structures: At least one structure in eV and Angstrom.
        vacuum: Empty space in Angstrom between the images of a structure along directions that are not periodic.
            Must exceed the model's cutoff.
        dtype: Type of positions, cells and forces.
    """
    natoms = torch.tensor([len(s) for s in structures])
    cells = [periodic_cell(s, vacuum) for s in structures]
    with_forces = any(s.forces is not None for s in structures)

    def floats(arrays: Sequence[np.ndarray]) -> Tensor:
        return torch.as_tensor(np.concatenate(arrays), dtype=dtype)

    return AtomBatch(
        positions=floats([wrap_positions(s.positions, cell, s.pbc) for s, cell in zip(structures, cells, strict=True)]),
        numbers=torch.as_tensor(np.concatenate([s.numbers for s in structures]).astype(np.int64)),
        cell=floats([cell[None] for cell in cells]),
        pbc=torch.tensor([[bool(periodic) for periodic in s.pbc] for s in structures]),
        natoms=natoms,
        index=torch.repeat_interleave(torch.arange(len(structures)), natoms),
        tags=torch.as_tensor(
            np.concatenate([np.full(len(s), ADSORBATE_TAG) if s.tags is None else s.tags for s in structures])
        ).long(),
        fixed=torch.as_tensor(
            np.concatenate([np.zeros(len(s), bool) if s.fixed is None else s.fixed for s in structures])
        ).bool(),
        energy=torch.tensor([s.energy for s in structures], dtype=torch.float64),
        forces=floats([np.full((len(s), 3), np.nan) if s.forces is None else s.forces for s in structures])
        if with_forces
        else None,
    )


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


def periodic_cell(structure: Structure, vacuum: float) -> np.ndarray:
    """Returns the structure's cell with vacuum along its directions that are not periodic.

    Those lattice vectors are replaced by ones at right angles to the others, longer than the structure by
    ``vacuum`` (Angstrom): an orthorhombic box for a molecule. Sources often leave cells that are too small there,
    or none.

    Returns:
        Lattice vectors as rows in Angstrom, shape (3, 3), never singular for a valid structure.
    """
    periodic = np.asarray(structure.pbc, dtype=bool)
    if periodic.all():
        return np.asarray(structure.cell, dtype=float)
    cell = np.zeros((3, 3)) if structure.cell is None else np.where(periodic[:, None], structure.cell, 0.0)
    cell = complete_cell(cell)
    extent = np.ptp(structure.positions @ cell[~periodic].T, axis=0)  # the added vectors have length 1
    cell[~periodic] *= (extent + vacuum)[:, None]
    return cell
