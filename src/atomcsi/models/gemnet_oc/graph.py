"""The graphs of GemNet-OC: which atoms see each other, and what of it can be known without the weights.

Nothing here enumerates triplets or quadruplets. The edges that point to an atom are the rows of a small table; edges
that share a target are pairs of rows of one table, and what depends on such a pair is a matrix per atom (see
:mod:`~atomcsi.models.gemnet_oc.basis`). Only triangles need to be looked for: a quadruplet c-a-b-d must not have
c = d.

Everything is NumPy on sorted integers, made in the workers of the data loader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from atomcsi.catalogue import Graph
from atomcsi.models.batch import AtomBatch, collate
from atomcsi.models.gemnet_oc.nearest import Candidates, EdgeArrays, NeighborRule, symmetric
from atomcsi.models.gemnet_oc.settings import Switches
from atomcsi.structure import Structure
from atomcsi.structure_batch import StructureBatch

#: Tables, at most, that atoms are distributed to by their number of edges.
_GROUPS = 4


@dataclass(slots=True, kw_only=True)
class Edges:
    """Directed edges, from a source to a target atom, in the order of their targets.

    Attributes:
        source: Atom that each edge comes from, shape (edges,).
        target: Atom that it points to, shape (edges,), ascending.
        shift: What must be added to the source's position for its image that is meant, in Angstrom, shape (edges, 3).
        image: A number that says which image of which atom the source is, shape (edges,), equal in all edges of a
            batch for the same image relative to the target's own cell.
        rank: Position of each edge among those of its target, shape (edges,).
        width: Largest number of edges that point to one atom, at least 1.
        slot: Row of each edge in the tables of all groups of atoms, one after the other, shape (edges,); see
            :mod:`~atomcsi.models.gemnet_oc.tables`.
        shapes: Atoms, and rows for each of them, of each group's table.
    """

    source: Tensor
    target: Tensor
    shift: Tensor
    image: Tensor
    rank: Tensor
    width: int
    slot: Tensor
    shapes: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        """Number of edges."""
        return len(self.source)


@dataclass(slots=True, kw_only=True)
class GemNetGraph:
    """All graphs of a batch.

    Attributes:
        main: Edges with embeddings, each with its opposite.
        reverse: Position of each main edge's opposite, shape (edges,).
        cutoff: Reach of each structure's graph in Angstrom, shape (structures,).
        place: Where each atom is in the order of the tables, shape (atoms,).
        atom_edge: Edges over which atoms send to edges and edges to atoms; None if none do.
        quadruplet: Edges b -> a in the middle of quadruplets c -> a <- b <- d; None without quadruplets.
        opposite_image: ``image`` of the opposite a -> b of each of them, shape (quadruplet edges,).
        triangles: Pairs c -> a, b -> a whose c is also a d, shape (2, triangles): place of the pair among all pairs
            of rows of main edges and rows of quadruplet edges in the tables of the same atom; place of d among all
            pairs of quadruplet edges and ``main.width`` ranks at their source.
        pairs: Edges over which atoms send to atoms; None if they do not.
    """

    main: Edges
    reverse: Tensor
    cutoff: Tensor
    place: Tensor
    atom_edge: Edges | None
    quadruplet: Edges | None
    opposite_image: Tensor | None
    triangles: Tensor | None
    pairs: Edges | None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> GemNetGraph:
        """Returns the graphs on another device."""
        return _moved(self, device, non_blocking)


def _moved(value: object, device: torch.device | str, non_blocking: bool) -> object:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=non_blocking)
    if isinstance(value, (Edges, GemNetGraph)):
        return type(value)(
            **{field.name: _moved(getattr(value, field.name), device, non_blocking) for field in fields(value)}
        )
    return value


@dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """What the graphs of a model are like; see :class:`~atomcsi.models.gemnet_oc.model.GemNetOC` for the fields."""

    cutoff: float
    molecule_cutoff: float | None
    max_neighbors: int
    max_neighbors_qint: int
    max_neighbors_aeaint: int
    max_neighbors_aint: int
    switches: Switches
    qint_tags: tuple[int, ...]
    neighbor_rule: NeighborRule


@dataclass(slots=True, kw_only=True)
class GemNetBatch(AtomBatch):
    """Structures with their graphs."""

    graph: GemNetGraph


@dataclass(frozen=True, kw_only=True)
class GemNetCollate:
    """Puts structures into a batch and builds its graphs; what a data loader's worker calls.

    Attributes:
        settings: Of the model.
        graphs: The graph of each dataset of a mix, by ``StructureBatch.dataset``; the model's own where None.
        dtype: Type of positions, cells and forces.
    """

    settings: GraphSettings
    graphs: Sequence[Graph | None] = (None,)
    dtype: torch.dtype = torch.float32

    def __call__(self, structures: Sequence[Structure] | StructureBatch) -> GemNetBatch:
        """Returns a batch of at least one structure, in eV and Angstrom."""
        batch = collate(structures, vacuum=1.0, dtype=self.dtype)
        values = {field.name: getattr(batch, field.name) for field in fields(batch)}
        return GemNetBatch(**values, graph=build_graph(batch, self.settings, self.graphs))


def build_graph(batch: AtomBatch, settings: GraphSettings, graphs: Sequence[Graph | None] = (None,)) -> GemNetGraph:
    """Builds the graphs of a batch; see :class:`GemNetCollate`."""
    limits = _limits(batch, settings, graphs)
    found = Candidates.of(batch, limits.cutoff)
    natoms = len(batch.numbers)
    cap = limits.neighbors[batch.index.cpu().numpy()]

    def nearest(limit: int) -> EdgeArrays:
        """The nearest neighbours of all atoms, with this limit where ``max_neighbors`` is the model's own."""
        share = cap if limit == settings.max_neighbors else cap * limit // settings.max_neighbors
        return found.nearest(np.maximum(share, 1), ties=settings.neighbor_rule == "order-free")

    main, reverse = symmetric(nearest(settings.max_neighbors), settings.neighbor_rule)
    groups = _Groups.of(main, natoms)

    def edges(arrays: EdgeArrays) -> Edges:
        return _as_tensors(arrays, batch, groups)

    uses_atom_edges = settings.switches.atom_edge_interaction or settings.switches.edge_atom_interaction
    quadruplet = opposite = triangles = None
    if settings.switches.quad_interaction:
        wanted = np.isin(batch.tags.cpu().numpy(), settings.qint_tags)
        middle = nearest(settings.max_neighbors_qint)
        middle = middle[wanted[middle.source] | wanted[middle.target]]
        opposite = middle.opposite().image
        triangles = _triangles(main, middle, groups)
        quadruplet = edges(middle)
    device = batch.positions.device
    graph = GemNetGraph(
        main=edges(main),
        reverse=torch.from_numpy(reverse),
        cutoff=torch.as_tensor(limits.cutoff, dtype=batch.positions.dtype),
        place=torch.from_numpy(groups.place),
        atom_edge=edges(nearest(settings.max_neighbors_aeaint)) if uses_atom_edges else None,
        quadruplet=quadruplet,
        opposite_image=None if opposite is None else torch.from_numpy(opposite),
        triangles=None if triangles is None else torch.from_numpy(triangles),
        pairs=edges(nearest(settings.max_neighbors_aint)) if settings.switches.atom_interaction else None,
    )
    return graph.to(device)


@dataclass(frozen=True)
class _Limits:
    """Reach in Angstrom and number of neighbours of each structure."""

    cutoff: np.ndarray
    neighbors: np.ndarray


def _limits(batch: AtomBatch, settings: GraphSettings, graphs: Sequence[Graph | None]) -> _Limits:
    natoms, dataset = batch.natoms.cpu().numpy(), batch.dataset.cpu().numpy()
    cutoff = np.full(len(batch), settings.cutoff)
    if settings.molecule_cutoff is not None:
        cutoff[~batch.pbc.any(dim=1).cpu().numpy()] = settings.molecule_cutoff
    neighbors = np.full(len(batch), settings.max_neighbors)
    for position, graph in enumerate(graphs):
        if graph is None:
            continue
        own = dataset == position
        cutoff[own], neighbors[own] = graph.cutoff, graph.neighbors(natoms[own])
    return _Limits(cutoff, neighbors)


@dataclass(frozen=True, slots=True)
class _Groups:
    """Atoms with about as many main edges, for tables of about as many rows.

    Attributes:
        group: Of each atom, shape (atoms,).
        place: Of each atom in the order of the groups, shape (atoms,).
        sizes: Atoms of each group.
    """

    group: np.ndarray
    place: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, main: EdgeArrays, natoms: int) -> _Groups:
        """Cuts the atoms, in the order of their numbers of edges, into groups of the same size, or fewer groups."""
        count = np.bincount(main.target, minlength=natoms)
        order = np.argsort(count, kind="stable")
        parts = np.array_split(order, min(_GROUPS, natoms))
        # Groups as wide as the one before them are its continuation.
        group_of_part = np.cumsum(np.diff([count[part[-1]] for part in parts], prepend=-1) > 0) - 1
        group, place = np.empty(natoms, int), np.empty(natoms, int)
        group[order] = np.repeat(group_of_part, [len(part) for part in parts])
        place[order] = np.arange(natoms)
        return cls(group, place, np.bincount(group))

    def widths(self, edges: EdgeArrays) -> np.ndarray:
        """Largest number of edges that point to an atom, at least 1, by group."""
        count = np.bincount(edges.target, minlength=len(self.group))
        widths = np.ones(len(self.sizes), int)
        np.maximum.at(widths, self.group, count)
        return widths

    def starts(self, rows: np.ndarray) -> np.ndarray:
        """Where each atom's rows begin, given how many rows each atom of a group has."""
        first_atom = np.cumsum(self.sizes) - self.sizes
        first_row = np.cumsum(self.sizes * rows) - self.sizes * rows
        return first_row[self.group] + (self.place - first_atom[self.group]) * rows[self.group]


def _as_tensors(edges: EdgeArrays, batch: AtomBatch, groups: _Groups) -> Edges:
    """Edges as tensors, with their slots in the tables of the groups."""
    widths, rank = groups.widths(edges), edges.rank
    shapes = tuple(zip(groups.sizes.tolist(), widths.tolist(), strict=True))
    slot = groups.starts(widths)[edges.target] + rank
    cell = batch.cell.double().cpu().numpy()[batch.index.cpu().numpy()[edges.target]]
    shift = np.einsum("ei,eij->ej", edges.offset.astype(float), cell)
    return Edges(
        source=torch.from_numpy(edges.source),
        target=torch.from_numpy(edges.target),
        shift=torch.as_tensor(shift, dtype=batch.positions.dtype),
        image=torch.from_numpy(edges.image),
        rank=torch.from_numpy(rank),
        width=int(widths.max()),
        slot=torch.from_numpy(slot),
        shapes=shapes,
    )


def _triangles(main: EdgeArrays, middle: EdgeArrays, groups: _Groups) -> np.ndarray:
    """Finds the edges d -> b among the main edges that start at c, for each pair c -> a, b -> a; see GemNetGraph."""
    natoms = len(groups.group)
    count = np.bincount(main.target, minlength=natoms)
    first = np.cumsum(count) - count
    # All pairs: a quadruplet edge b -> a with each main edge c -> a of its target.
    repeats = count[middle.target]
    edge = np.repeat(np.arange(len(repeats)), repeats)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    a, b = middle.target[edge], middle.source[edge]
    c_to_a = first[a] + row
    # c as b sees it.
    image = main.image_of(main.source[c_to_a], main.offset[c_to_a] - middle.offset[edge])
    keys, wanted = main.key, main.key_of(b, image)
    place = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    found = keys[place] == wanted
    width, depth = groups.widths(main), groups.widths(middle)
    pair = groups.starts(width * depth)[a] + row * depth[groups.group[a]] + middle.rank[edge]
    return np.stack([pair[found], (edge * width.max() + place - first[b])[found]])
