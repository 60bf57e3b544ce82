"""What the blocks of GemNet-OC share: functions of distances and angles, with learned weights, once per batch.

Names of the weights are those of fairchem-core 1.10 and JMP. Geometry is computed in the type of the positions,
whatever autocast says; only the results are in its type.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atomcsi.models.gemnet_oc.basis import (
    RadialBasis,
    Vectors,
    azimuth_functions,
    cosines,
    different,
    dihedral_coefficients,
    perpendicular,
    polynomials,
)
from atomcsi.models.gemnet_oc.fused import in_compute_type, linear
from atomcsi.models.gemnet_oc.graph import Edges, GemNetBatch
from atomcsi.models.gemnet_oc.layers import Dense, initialised
from atomcsi.models.gemnet_oc.settings import Sizes, Switches
from atomcsi.models.gemnet_oc.tables import picked, placed, split, to_tables


@dataclass(slots=True)
class TripletBasis:
    """Of one kind of triplet interaction.

    Attributes:
        radial: Basis of the distances of the edges that send, shape (edges, emb_size_rbf).
        angular: Weight of what each edge around an atom sends, by group of atoms, shape (atoms, rows * emb_size_cbf,
            edges): C of :mod:`~atomcsi.models.gemnet_oc.basis`, with a row for each edge that receives; a single one
            if the atom does, of the sum over all edges over which it does.
    """

    radial: Tensor
    angular: list[Tensor]


@dataclass(slots=True)
class QuadrupletBasis:
    """Of the quadruplet interaction; n is the number of quadruplet edges, w the width of the main edges.

    Attributes:
        radial: Basis of the distances of the edges that send, shape (edges, emb_size_rbf).
        circular: Basis of d_ba and angle abd, shape (n, w, emb_size_cbf), zero where there is no d.
        exists: Where there is one, shape (n, w).
        azimuths: Functions of the azimuths of d, shape (n, functions, w).
        angular: Weight of the sums over d, by group of atoms, shape (atoms, rows * emb_size_sbf, functions * edges b).
        excluded: Weight of the d that is c, by group of atoms, shape (atoms * rows, emb_size_sbf, edges b).
        triangles: As in :class:`~atomcsi.models.gemnet_oc.graph.GemNetGraph`.
    """

    radial: Tensor
    circular: Tensor
    exists: Tensor
    azimuths: Tensor
    angular: list[Tensor]
    excluded: list[Tensor]
    triangles: Tensor

    def twice(self, at_a: Tensor) -> list[Tensor]:
        """Picks what c itself sends as d from shape (n, w, channels), by group: (atoms * rows, edges b, channels)."""
        shapes = [(len(excluded), excluded.shape[2]) for excluded in self.excluded]
        size = sum(rows * width for rows, width in shapes)
        return split(placed(picked(at_a.flatten(0, 1), self.triangles[1]), self.triangles[0], size), shapes)


@dataclass(slots=True)
class PairBasis:
    """Of the interaction of atoms.

    Attributes:
        radial: Basis of the distances around each atom, by group of atoms, shape (atoms, emb_size_rbf, edges).
        source: Atom at the other end, by group, shape (atoms, edges); any where there is none.
        place: As in :class:`~atomcsi.models.gemnet_oc.graph.GemNetGraph`.
    """

    radial: list[Tensor]
    source: list[Tensor]
    place: Tensor

    def sums(self, sent: Tensor) -> Tensor:
        """Sums what other atoms send, shape (atoms, channels), to shape (atoms, emb_size_rbf * channels)."""
        sent, *tables = in_compute_type(sent, *self.radial)
        found = [
            (radial @ sent.index_select(0, source.flatten()).unflatten(0, source.shape)).flatten(1)
            for radial, source in zip(tables, self.source, strict=True)
        ]
        return picked(torch.cat(found), self.place)


@dataclass(slots=True)
class BasisSet:
    """Everything that depends on positions.

    Attributes:
        direction: Unit vectors along the main edges, shape (edges, 3).
        embedding: Raw radial basis of the main edges, shape (edges, num_radial).
        update: Radial basis for the updates of atoms, shape (edges, emb_size_rbf).
        output: Radial basis for the output blocks, shape (edges, emb_size_rbf).
        triplet: For edges to edges.
        quadruplet: For quadruplets; None without.
        atom_edge: For atoms to edges; None without.
        edge_atom: For edges to atoms; None without.
        pairs: For atoms to atoms; None without.
    """

    direction: Tensor
    embedding: Tensor
    update: Tensor
    output: Tensor
    triplet: TripletBasis
    quadruplet: QuadrupletBasis | None = None
    atom_edge: TripletBasis | None = None
    edge_atom: TripletBasis | None = None
    pairs: PairBasis | None = None


class _Projection(nn.Module):
    """Weight of a learned combination of radial functions.

    Args:
        shape: Its shape; radial functions come last, or first of three.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(initialised(torch.empty(shape)))


class Bases(nn.Module):
    """Computes the :class:`BasisSet` of a batch.

    Args:
        sizes: Of the model.
        switches: Which interactions there are.
        reach: Distance in Angstrom that the radial functions are spread over.
        envelope: Whether the envelope ends at each structure's cutoff (``graph``) or at the reach (``basis``).

    Attributes:
        edge_dropout: Probability that an edge is left out, while training.
    """

    def __init__(self, sizes: Sizes, switches: Switches, *, reach: float, envelope: str) -> None:
        super().__init__()
        self.sizes, self.switches = sizes, switches
        self.envelope, self.edge_dropout = envelope, 0.0
        radial, spherical = sizes.num_radial, sizes.num_spherical
        self.radial = RadialBasis(radial, reach)

        def circular() -> _Projection:
            return _Projection(radial, spherical, sizes.emb_size_cbf)

        self.mlp_rbf_h = Dense(radial, sizes.emb_size_rbf)
        self.mlp_rbf_out = Dense(radial, sizes.emb_size_rbf)
        self.mlp_rbf_tint, self.mlp_cbf_tint = Dense(radial, sizes.emb_size_rbf), circular()
        if switches.quad_interaction:
            self.mlp_rbf_qint, self.mlp_cbf_qint = Dense(radial, sizes.emb_size_rbf), circular()
            self.mlp_sbf_qint = _Projection(radial, spherical**2, sizes.emb_size_sbf)
            self.register_buffer("dihedral", torch.tensor(dihedral_coefficients(spherical)), persistent=False)
        if switches.atom_edge_interaction:
            self.mlp_rbf_aeint, self.mlp_cbf_aeint = Dense(radial, sizes.emb_size_rbf), circular()
        if switches.edge_atom_interaction:
            self.mlp_rbf_eaint, self.mlp_cbf_eaint = Dense(radial, sizes.emb_size_rbf), circular()
        if switches.atom_interaction:
            self.mlp_rbf_aint = _Projection(sizes.emb_size_rbf, radial)

    def forward(self, batch: GemNetBatch) -> BasisSet:
        """Computes everything; gradients flow to the positions."""
        with torch.autocast(batch.positions.device.type, enabled=False):
            found = self._compute(batch)
        for basis in (found.triplet, found.atom_edge, found.edge_atom):
            if basis is not None:
                basis.angular = in_compute_type(*basis.angular)
        if (quadruplet := found.quadruplet) is not None:
            quadruplet.circular, quadruplet.azimuths = in_compute_type(quadruplet.circular, quadruplet.azimuths)
            quadruplet.angular = in_compute_type(*quadruplet.angular)
            quadruplet.excluded = in_compute_type(*quadruplet.excluded)
        return found

    def _compute(self, batch: GemNetBatch) -> BasisSet:
        graph, switches = batch.graph, self.switches
        main = Vectors.of(graph.main, batch)
        raw = self._raw(main, graph.main, batch, self._kept(graph.main, graph.reverse))
        # One product with all weights that see main edges.
        weights = {"update": self.mlp_rbf_h.weight, "output": self.mlp_rbf_out.weight}
        weights |= {"triplet": self.mlp_rbf_tint.weight, "angle": _rows(self.mlp_cbf_tint)}
        if switches.quad_interaction:
            weights |= {"quadruplet": self.mlp_rbf_qint.weight, "dihedral": self._dihedral_weight()}
        if switches.atom_edge_interaction:
            weights["atom_edge"] = _rows(self.mlp_cbf_aeint)
        if switches.edge_atom_interaction:
            weights["edge_atom"] = self.mlp_rbf_eaint.weight
        product = linear(raw, torch.cat(list(weights.values())))
        radial = dict(zip(weights, product.split([len(w) for w in weights.values()], dim=1), strict=True))

        tables = to_tables(main.direction, graph.main)
        angles = self._angles(tables, tables, graph.main, graph.main)
        triplet = TripletBasis(radial["triplet"], self._weighted(radial["angle"], graph.main, angles))
        found = BasisSet(main.direction, raw, radial["update"], radial["output"], triplet)
        if switches.quad_interaction:
            found.quadruplet = self._quadruplets(batch, main, tables, radial["quadruplet"], radial["dihedral"])
        if graph.atom_edge is not None:
            self._mixed_triplets(found, batch, tables, radial)
        if switches.atom_interaction:
            found.pairs = self._pairs(batch)
        return found

    def _kept(self, edges: Edges, reverse: Tensor | None = None) -> Tensor | None:
        """Which edges are not left out, shape (edges,), in the same way for both directions; None if all are kept.

        The radial basis of an edge that is left out is 0, and so is everything that it sends or what is read off it.
        """
        if not self.training or not self.edge_dropout:
            return None
        kept = torch.rand(len(edges), device=edges.source.device) >= self.edge_dropout
        if reverse is not None:
            kept = kept[torch.minimum(reverse, torch.arange(len(kept), device=kept.device))]
        return kept

    def _raw(self, vectors: Vectors, edges: Edges, batch: GemNetBatch, kept: Tensor | None) -> Tensor:
        """Radial functions of edges, shape (edges, num_radial)."""
        cutoff = self.radial.reach
        if self.envelope == "graph":
            cutoff = batch.graph.cutoff.to(vectors.distance.dtype)[batch.index[edges.target]]
        raw = self.radial(vectors.distance, cutoff)
        return raw if kept is None else raw * kept[:, None]

    def _circular(self, weights: Tensor, edges: Edges) -> list[Tensor]:
        """Factors of Legendre polynomials, by group, shape (atoms, edges, emb_size_cbf, num_spherical)."""
        return [table.unflatten(2, (-1, self.sizes.num_spherical)) for table in to_tables(weights, edges)]

    def _weighted(self, weights: Tensor, edges: Edges, angles: list[Tensor]) -> list[Tensor]:
        """C of the edges that receive; see :class:`TripletBasis`."""
        tables = self._circular(weights, edges)
        return [(table @ angle).flatten(1, 2) for table, angle in zip(tables, angles, strict=True)]

    def _angles(self, out: list[Tensor], into: list[Tensor], out_edges: Edges, into_edges: Edges) -> list[Tensor]:
        """Legendre polynomials of angles between edges around an atom, shape (atoms, out, num_spherical, into)."""
        return [
            polynomials(cosines(n, m), self.sizes.num_spherical) * mask[:, :, None]
            for n, m, mask in zip(out, into, different(out_edges, into_edges), strict=True)
        ]

    def _mixed_triplets(
        self, found: BasisSet, batch: GemNetBatch, tables: list[Tensor], radial: dict[str, Tensor]
    ) -> None:
        graph, edges = batch.graph, batch.graph.atom_edge
        vectors = Vectors.of(edges, batch)
        raw = self._raw(vectors, edges, batch, self._kept(edges))
        angles = self._angles(tables, to_tables(vectors.direction, edges), graph.main, edges)
        if self.switches.atom_edge_interaction:
            weighted = self._weighted(radial["atom_edge"], graph.main, angles)
            found.atom_edge = TripletBasis(self.mlp_rbf_aeint(raw), weighted)
        if self.switches.edge_atom_interaction:
            # The sum over edges that receive comes first: what an atom receives does not depend on them otherwise.
            weights = self._circular(linear(raw, _rows(self.mlp_cbf_eaint)), edges)
            weighted = [
                weight.transpose(1, 2).flatten(2) @ angle.transpose(1, 3).flatten(1, 2)
                for weight, angle in zip(weights, angles, strict=True)
            ]
            found.edge_atom = TripletBasis(radial["edge_atom"], weighted)

    def _dihedral_weight(self) -> Tensor:
        """Weights of the spherical basis, multiplied with the coefficients of the dihedral's cosine.

        Returns:
            Shape (emb_size_sbf * (num_spherical + 2) * num_spherical, num_radial): factors of cos(k t), of P(0) and
            of P(1), for each Legendre polynomial of the angle cab.
        """
        number = self.sizes.num_spherical
        weight = _rows(self.mlp_sbf_qint).unflatten(0, (-1, number, number))
        table = self.dihedral.to(weight.dtype)
        distinct = torch.cat([table[:, :1], table[:, 1:-1:2], table[:, -1:], table[:, :-1:2].sum(1, keepdim=True)], 1)
        return torch.einsum("ilmr,mk->iklr", weight, distinct).flatten(0, 2)

    def _quadruplets(
        self, batch: GemNetBatch, vectors: Vectors, tables: list[Tensor], radial: Tensor, dihedral: Tensor
    ) -> QuadrupletBasis:
        graph, number = batch.graph, self.sizes.num_spherical
        main, middle = graph.main, graph.quadruplet
        between = Vectors.of(middle, batch)
        frame = perpendicular(between.direction)

        # d -> b -> a
        at_b = at_sources(vectors.direction, main, middle, len(batch.numbers))
        images = at_sources(main.image + 1, main, middle, len(batch.numbers))
        exists = (images > 0) & (images != graph.opposite_image[:, None] + 1)
        raw = self._raw(between, middle, batch, self._kept(middle))
        circular = linear(raw, _rows(self.mlp_cbf_qint)).unflatten(1, (-1, number))
        abd = (at_b @ between.direction[:, :, None])[..., 0].clamp(-1, 1)
        circular = (circular @ polynomials(abd, number)).transpose(1, 2) * exists[..., None]
        azimuths = azimuth_functions(*(at_b @ frame).unbind(-1), number)

        # c -> a <- b
        angles = self._angles(tables, to_tables(between.direction, middle), main, middle)
        groups = zip(tables, to_tables(frame, middle), to_tables(dihedral, main), angles, strict=True)
        angular, excluded = map(list, zip(*(self._dihedrals(*group) for group in groups), strict=True))
        return QuadrupletBasis(radial, circular, exists, azimuths, angular, excluded, graph.triangles)

    def _dihedrals(self, table: Tensor, frames: Tensor, weights: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the sums over d, and of the d that is c; see :class:`QuadrupletBasis`.

        Args:
            table: Directions of the edges c -> a of a group of atoms, shape (atoms, edges c, 3).
            frames: What azimuths around the edges b -> a are measured in, shape (atoms, edges b, 3, 2).
            weights: Those of the spherical basis, for d_ca, shape (atoms, edges c, weights).
            angles: Legendre polynomials of the angles cab, shape (atoms, edges c, num_spherical, edges b).
        """
        number = self.sizes.num_spherical
        factors = (weights.unflatten(2, (-1, number)) @ angles).unflatten(2, (-1, number + 2))
        x, y = (table @ frames.permute(3, 0, 2, 1).flatten(3)).unbind(0)
        functions = azimuth_functions(x, y, number)
        undefined = functions[:, :, None, -1]
        of_zero, of_one = factors[:, :, :, -2], factors[:, :, :, -1]
        frequency = torch.arange(1, 2 * number, device=table.device) // 2
        angular = torch.cat([factors[:, :, :, frequency] * functions[:, :, None, :-1], of_zero[:, :, :, None]], dim=3)
        # Without a plane there is no azimuth, and the dihedral's cosine counts as 0 for all d.
        angular[:, :, :, 0] += of_zero * undefined
        excluded = torch.where(undefined > 0, of_zero, of_one)
        return angular.flatten(3).flatten(1, 2), excluded.flatten(0, 1)

    def _pairs(self, batch: GemNetBatch) -> PairBasis:
        edges = batch.graph.pairs
        raw = self._raw(Vectors.of(edges, batch), edges, batch, self._kept(edges))
        radial = [table.transpose(1, 2) for table in to_tables(linear(raw, self.mlp_rbf_aint.weight), edges)]
        return PairBasis(radial, to_tables(edges.source, edges), batch.graph.place)


def at_sources(rows: Tensor, edges: Edges, middle: Edges, natoms: int) -> Tensor:
    """Returns the rows of the edges that point to the sources of others, shape (others, edges.width, *shape)."""
    table = placed(rows, edges.target * edges.width + edges.rank, natoms * edges.width).unflatten(0, (natoms, -1))
    return table.flatten(1).index_select(0, middle.source).unflatten(1, table.shape[1:])


def _rows(projection: _Projection) -> Tensor:
    """Weight of three dimensions as a matrix for a linear layer; the last two are one index, as in fairchem."""
    return projection.weight.flatten(1).T
