"""Batches with edges, found by the workers of the data loader, and what models on such batches share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.nn.models.schnet import GaussianSmearing

from atomcsi.catalogue import Graph
from atomcsi.models.base import Backbone
from atomcsi.models.batch import AtomBatch, collate
from atomcsi.models.neighbours import edges_within
from atomcsi.structure import Structure
from atomcsi.structure_batch import StructureBatch


@dataclass(slots=True, kw_only=True)
class EdgeBatch(AtomBatch):
    """Structures with their directed edges, which may lead through the faces of cells.

    Attributes:
        source: Atom at the start of each edge, shape (edges,), integers.
        target: Atom at its end, shape (edges,), integers, ascending.
        offset: Lattice vectors by which the target is shifted, shape (edges, 3), integers.
    """

    source: Tensor
    target: Tensor
    offset: Tensor

    @property
    def edge_index(self) -> Tensor:
        """Sources and targets, shape (2, edges), as PyTorch Geometric wants them."""
        return torch.stack([self.source, self.target])

    def vectors(self) -> Tensor:
        """Vectors from source to target in Angstrom, shape (edges, 3); gradients flow to the positions."""
        # No matrix product: autocast would take it in half precision.
        shifts = (self.offset[:, :, None] * self.cell[self.index[self.target]]).sum(dim=1)
        return self.positions[self.target] - self.positions[self.source] + shifts


@dataclass(frozen=True, kw_only=True)
class EdgeCollate:
    """Turns structures into an :class:`EdgeBatch`; what :meth:`atomcsi.models.base.Backbone.collate` returns.

    Attributes:
        cutoff: Length of the longest edges in Angstrom.
        max_neighbors: Edges that end at an atom at most, as in :func:`~atomcsi.models.neighbours.edges_within`.
        graphs: Graph of each dataset, None for the model's own. It can only narrow that: the model does not see
            beyond its cutoff.
        dtype: Type of positions, cells and forces.
    """

    cutoff: float
    max_neighbors: int | None = None
    graphs: Sequence[Graph | None] = (None,)
    dtype: torch.dtype = torch.float32

    def __call__(self, structures: Sequence[Structure] | StructureBatch) -> EdgeBatch:
        """Collates at least one structure, in eV and Angstrom."""
        batch = collate(structures, vacuum=self.cutoff + 1.0, dtype=self.dtype)
        natoms = batch.natoms.tolist()
        limits = [self._limits(*member) for member in zip(batch.dataset.tolist(), natoms, strict=True)]
        members = zip(batch.positions.split(natoms), batch.cell, batch.pbc, limits, strict=True)
        found = [edges_within(*(array.numpy() for array in arrays), *limit) for *arrays, limit in members]
        source, target, offset = (torch.as_tensor(np.concatenate(part)) for part in zip(*found, strict=True))
        edges = torch.tensor([len(part[0]) for part in found])
        first_atom = (batch.natoms.cumsum(0) - batch.natoms).repeat_interleave(edges)
        return EdgeBatch(
            **{field.name: getattr(batch, field.name) for field in fields(batch)},
            source=source + first_atom,
            target=target + first_atom,
            offset=offset,
        )

    def _limits(self, dataset: int, natoms: int) -> tuple[float, int | None]:
        """Cutoff in Angstrom, and neighbours, of a structure of some dataset."""
        graph = self.graphs[dataset]
        if graph is None:
            return self.cutoff, self.max_neighbors
        (neighbors,) = graph.neighbors(np.array([natoms])).tolist()
        return min(self.cutoff, graph.cutoff), min(neighbors, self.max_neighbors or neighbors)


class EdgeBackbone(Backbone):
    """A backbone on the edges of :class:`EdgeBatch`.

    Attributes:
        edge_dropout: Probability that an edge is left out while training.
    """

    edge_dropout = 0.0

    def drop_edges(self, probability: float) -> None:
        """Leaves out edges while training, each direction by itself."""
        self.edge_dropout = probability

    def kept(self, batch: EdgeBatch) -> EdgeBatch:
        """Returns the batch with the edges that this step is to see, all of them if none would be left."""
        if not self.training or not self.edge_dropout:
            return batch
        kept = torch.rand(len(batch.source), device=batch.source.device) >= self.edge_dropout
        kept |= ~kept.any()
        return replace(batch, source=batch.source[kept], target=batch.target[kept], offset=batch.offset[kept])


class EdgeReadout(nn.Module):
    """Features of directed edges from those of the atoms at their ends and from their length.

    For models whose state is in the atoms alone, so that direct forces have edges to be summed over. Where atoms
    have vectors too, their components along the edge are read, which do not change when the structure turns.

    Args:
        node_dim: Features per atom, and vectors.
        edge_dim: Features per edge.
        num_gaussians: Radial basis functions.
        cutoff: Length of the longest edges in Angstrom.
        vectors: Whether atoms have vectors.
    """

    def __init__(
        self, node_dim: int, edge_dim: int, num_gaussians: int, cutoff: float, *, vectors: bool = False
    ) -> None:
        super().__init__()
        self.radial = GaussianSmearing(0.0, cutoff, num_gaussians)
        self.linear = nn.Linear((4 if vectors else 2) * node_dim + num_gaussians, edge_dim)

    def forward(
        self, batch: EdgeBatch, distance: Tensor, node: Tensor, vectors: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Returns features, shape (edges, edge_dim).

        Args:
            batch: The edges.
            distance: Their lengths in Angstrom, shape (edges,).
            node: Invariant features of the atoms, shape (atoms, node_dim).
            vectors: Unit vectors along the edges, shape (edges, 3), and vectors of the atoms, shape
                (atoms, 3, node_dim); None without.
        """
        parts = [self.radial(distance), node[batch.source], node[batch.target]]
        if vectors is not None:
            direction, vec = vectors
            parts += [torch.einsum("ex,exc->ec", direction, vec[end]) for end in (batch.source, batch.target)]
        return nn.functional.silu(self.linear(torch.cat(parts, dim=-1)))
