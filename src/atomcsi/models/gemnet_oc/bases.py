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
from atomcsi.models.gemnet_oc.tables import to_rows, to_table


@dataclass(slots=True)
class TripletBasis:
    """Of one kind of triplet interaction.

    Attributes:
        radial: Basis of the distances of the edges that send, shape (edges, emb_size_rbf).
        angular: Weight of what each edge around an atom sends, shape (atoms, rows * emb_size_cbf, edges): C of
            :mod:`~atomcsi.models.gemnet_oc.basis`, with a row for each edge that receives; a single one if the atom
            does, of the sum over all edges over which it does.
    """

    radial: Tensor
    angular: Tensor


@dataclass(slots=True)
class QuadrupletBasis:
    """Of the quadruplet interaction; n is the number of quadruplet edges, w the width of the table of main edges.

    Attributes:
        radial: Basis of the distances of the edges that send, shape (edges, emb_size_rbf).
        circular: Basis of d_ba and angle abd, shape (n, w, emb_size_cbf), zero where there is no d.
        exists: Where there is one, shape (n, w).
        azimuths: Functions of the azimuths of d, shape (n, functions, w).
        angular: Weight of the sums over d, shape (atoms, w * emb_size_sbf, functions * edges b).
        excluded: Weight of the d that is c, shape (atoms * w, emb_size_sbf, edges b).
        triangles: As in :class:`~atomcsi.models.gemnet_oc.graph.GemNetGraph`.
    """

    radial: Tensor
    circular: Tensor
    exists: Tensor
    azimuths: Tensor
    angular: Tensor
    excluded: Tensor
    triangles: Tensor

    def twice(self, at_a: Tensor) -> Tensor:
        """Picks what c itself sends as d, of shape (n, w, channels), shape (atoms * w, edges b, channels)."""
        rows = to_rows(at_a, self.triangles[1])
        blocks, _, width = self.excluded.shape
        return to_table(rows, self.triangles[0], blocks, width)


@dataclass(slots=True)
class PairBasis:
    """Of the interaction of atoms.

    Attributes:
        radial: Basis of the distances around each atom, shape (atoms, emb_size_rbf, edges).
        source: Atom at the other end, shape (atoms * edges,); any where there is none.
    """

    radial: Tensor
    source: Tensor

    def sums(self, sent: Tensor) -> Tensor:
        """Sums what other atoms send, shape (atoms, channels), to shape (atoms, emb_size_rbf, channels)."""
        radial, sent = in_compute_type(self.radial, sent)
        return radial @ sent.index_select(0, self.source).view(len(radial), -1, sent.shape[1])


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
                (basis.angular,) = in_compute_type(basis.angular)
        if (quadruplet := found.quadruplet) is not None:
            for name in ("circular", "azimuths", "angular", "excluded"):
                setattr(quadruplet, name, in_compute_type(getattr(quadruplet, name))[0])
        return found

    def _compute(self, batch: GemNetBatch) -> BasisSet:
        graph, natoms, switches = batch.graph, len(batch.numbers), self.switches
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

        table = to_table(main.direction, graph.main.slot, natoms, graph.main.width)
        angles = self._angles(table, table, graph.main, graph.main, natoms)
        weighted = self._circular(radial["angle"], graph.main, natoms) @ angles
        found = BasisSet(main.direction, raw, radial["update"], radial["output"],
                         TripletBasis(radial["triplet"], weighted.flatten(1, 2)))  # fmt: skip
        if switches.quad_interaction:
            found.quadruplet = self._quadruplets(batch, table, radial["quadruplet"], radial["dihedral"])
        if graph.atom_edge is not None:
            self._mixed_triplets(found, batch, table, radial)
        if switches.atom_interaction:
            found.pairs = self._pairs(graph.pairs, batch)
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

    def _circular(self, weighted: Tensor, edges: Edges, natoms: int) -> Tensor:
        """Table of the factors of Legendre polynomials, shape (atoms, edges, emb_size_cbf, num_spherical)."""
        return to_table(weighted, edges.slot, natoms, edges.width).unflatten(2, (-1, self.sizes.num_spherical))

    def _angles(self, out: Tensor, into: Tensor, out_edges: Edges, into_edges: Edges, natoms: int) -> Tensor:
        """Legendre polynomials of angles between edges around an atom, shape (atoms, out, num_spherical, into)."""
        mask = different(out_edges, into_edges, natoms)
        return polynomials(cosines(out, into), self.sizes.num_spherical) * mask[:, :, None]

    def _mixed_triplets(self, found: BasisSet, batch: GemNetBatch, table: Tensor, radial: dict[str, Tensor]) -> None:
        graph, natoms = batch.graph, len(batch.numbers)
        edges = graph.atom_edge
        vectors = Vectors.of(edges, batch)
        raw = self._raw(vectors, edges, batch, self._kept(edges))
        directions = to_table(vectors.direction, edges.slot, natoms, edges.width)
        angles = self._angles(table, directions, graph.main, edges, natoms)
        if self.switches.atom_edge_interaction:
            weighted = self._circular(radial["atom_edge"], graph.main, natoms) @ angles
            found.atom_edge = TripletBasis(self.mlp_rbf_aeint(raw), weighted.flatten(1, 2))
        if self.switches.edge_atom_interaction:
            # The sum over edges that receive comes first: what an atom receives does not depend on them otherwise.
            weighted = self._circular(linear(raw, _rows(self.mlp_cbf_eaint)), edges, natoms)
            weighted = weighted.transpose(1, 2).flatten(2) @ angles.transpose(1, 3).flatten(1, 2)
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

    def _quadruplets(self, batch: GemNetBatch, table: Tensor, radial: Tensor, dihedral: Tensor) -> QuadrupletBasis:
        graph, natoms, number = batch.graph, len(batch.numbers), self.sizes.num_spherical
        main, middle = graph.main, graph.quadruplet
        vectors = Vectors.of(middle, batch)
        frame = perpendicular(vectors.direction)

        # d -> b -> a
        at_b = table[middle.source]
        images = to_table(main.image[:, None] + 1, main.slot, natoms, main.width)[..., 0][middle.source]
        exists = (images > 0) & (images != graph.opposite_image[:, None] + 1)
        raw = self._raw(vectors, middle, batch, self._kept(middle))
        circular = linear(raw, _rows(self.mlp_cbf_qint)).unflatten(1, (-1, number))
        abd = (at_b @ vectors.direction[:, :, None])[..., 0].clamp(-1, 1)
        circular = (circular @ polynomials(abd, number)).transpose(1, 2) * exists[..., None]
        azimuths = azimuth_functions(*(at_b @ frame).unbind(-1), number)

        # c -> a <- b
        middles = to_table(vectors.direction, middle.slot, natoms, middle.width)
        frames = to_table(frame, middle.slot, natoms, middle.width)
        angles = self._angles(table, middles, main, middle, natoms)
        factors = to_table(dihedral, main.slot, natoms, main.width).unflatten(2, (-1, number)) @ angles
        factors = factors.unflatten(2, (-1, number + 2))
        x, y = (table @ frames.permute(3, 0, 2, 1)).unbind(0)
        functions = azimuth_functions(x, y, number)
        undefined = functions[:, :, None, -1]
        frequency = torch.arange(1, 2 * number + 1, device=table.device) // 2
        angular = factors[:, :, :, frequency]
        angular = torch.cat(
            [
                angular[:, :, :, :1] * functions[:, :, None, :1] + (factors[:, :, :, -2] * undefined)[:, :, :, None],
                angular[:, :, :, 1:-1] * functions[:, :, None, 1:-1],
                angular[:, :, :, -1:],
            ],
            dim=3,
        )
        excluded = torch.where(undefined > 0, factors[:, :, :, -2], factors[:, :, :, -1])
        return QuadrupletBasis(
            radial, circular, exists, azimuths, angular.flatten(3).flatten(1, 2), excluded.flatten(0, 1),
            graph.triangles,
        )  # fmt: skip

    def _pairs(self, edges: Edges, batch: GemNetBatch) -> PairBasis:
        natoms = len(batch.numbers)
        raw = self._raw(Vectors.of(edges, batch), edges, batch, self._kept(edges))
        radial = to_table(linear(raw, self.mlp_rbf_aint.weight), edges.slot, natoms, edges.width).transpose(1, 2)
        source = edges.source.new_zeros(natoms * edges.width).index_copy_(0, edges.slot, edges.source)
        return PairBasis(radial, source)


def _rows(projection: _Projection) -> Tensor:
    """Weight of three dimensions as a matrix for a linear layer; the last two are one index, as in fairchem."""
    return projection.weight.flatten(1).T
