"""The four interactions of GemNet-OC (arXiv 2204.02782, figure 2).

Names of the layers are those of fairchem-core 1.10, so that its weights, and JMP's, can be loaded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atomcsi.models.gemnet_oc.bases import PairBasis, QuadrupletBasis, TripletBasis, at_sources
from atomcsi.models.gemnet_oc.fused import in_compute_type, linear, message
from atomcsi.models.gemnet_oc.graph import Edges
from atomcsi.models.gemnet_oc.layers import Dense, Scale
from atomcsi.models.gemnet_oc.tables import picked, to_rows, to_tables


class _Messages(nn.Module):
    """What edges or atoms send along edges, with the radial basis mixed in; see :func:`.fused.message`.

    Args:
        inputs: Features of the sender.
        basis: Size of the radial basis.
        channels: Of the message.
    """

    def __init__(self, inputs: int, basis: int, channels: int) -> None:
        super().__init__()
        self.mlp_rbf = Dense(basis, inputs)
        self.scale_rbf = Scale()
        self.down_projection = Dense(inputs, channels, activation=True)

    def send(self, x: Tensor, dense: Dense, radial: Tensor, source: Tensor | None = None) -> Tensor:
        """Returns the messages, shape (edges, channels); ``dense`` is the layer that comes first."""
        if self.scale_rbf.fitting:
            before = dense(x) if source is None else dense(x)[source]
            self.scale_rbf.fit(before * self.mlp_rbf(radial), before)
        modulation = self.mlp_rbf.weight * self.scale_rbf.scale_factor
        return message(x, dense.weight, radial, modulation, self.down_projection.weight, source)


class TripletInteraction(_Messages):
    """Edges b -> a, or atoms b over them, send to edges c -> a, or to atoms a: mixed by d_ba, d_ca and angle cab.

    Args:
        inputs: Features of the sender.
        outputs: Features of the receiver.
        channels_in: Channels of what is sent.
        channels_out: Channels of what is received.
        rbf: Size of the radial basis.
        cbf: Size of the circular basis.
        both_directions: Whether what an edge receives reaches its opposite as well; if not, atoms receive.
    """

    def __init__(
        self, *, inputs: int, outputs: int, channels_in: int, channels_out: int, rbf: int, cbf: int,
        both_directions: bool,
    ) -> None:  # fmt: skip
        super().__init__(inputs, rbf, channels_in)
        self.dense_ba = Dense(inputs, inputs, activation=True)
        self.mlp_cbf = Bilinear(cbf, channels_in, channels_out)
        self.scale_cbf_sum = Scale()
        self.up_projection_ca = Dense(channels_out, outputs, activation=True)
        if both_directions:
            self.up_projection_ac = Dense(channels_out, outputs, activation=True)

    def forward(
        self,
        x: Tensor,
        basis: TripletBasis,
        into: Edges,
        *,
        out: Edges | None = None,
        place: Tensor | None = None,
        source: Tensor | None = None,
    ) -> Tensor:
        """Returns what is received before it is projected up.

        Args:
            x: Embeddings of the edges that send, or of atoms with ``source``.
            basis: Made for these edges.
            into: Edges that send, or that atoms send over.
            out: Edges that receive; None if atoms do.
            place: Where each atom is in the order of the tables, if atoms receive.
            source: Atom that sends over each edge; None if edges send.

        Returns:
            Shape (edges, channels_out) or (atoms, channels_out).
        """
        sent = self.send(x, self.dense_ba, basis.radial, source)
        received = [self.mlp_cbf(*group) for group in zip(basis.angular, to_tables(sent, into), strict=True)]
        received = picked(torch.cat(received)[:, 0], place) if out is None else to_rows(received, out)
        if self.scale_cbf_sum.fitting:
            self.scale_cbf_sum.fit(received, sent)
        return received * self.scale_cbf_sum.scale_factor


class QuadrupletInteraction(_Messages):
    """Edges d -> b send to edges c -> a over edges b -> a: mixed by all distances and angles and the dihedral angle.

    Args:
        edge: Features of edges.
        channels_in: Channels of what is sent.
        channels_out: Channels of what is received.
        rbf: Size of the radial basis.
        cbf: Size of the circular basis.
        sbf: Size of the spherical basis.
    """

    def __init__(self, *, edge: int, channels_in: int, channels_out: int, rbf: int, cbf: int, sbf: int) -> None:
        super().__init__(edge, rbf, channels_in)
        self.dense_db = Dense(edge, edge, activation=True)
        self.mlp_cbf = Dense(cbf, channels_in)
        self.scale_cbf = Scale()
        self.mlp_sbf = Bilinear(sbf, channels_in, channels_out)
        self.scale_sbf_sum = Scale()
        self.up_projection_ca = Dense(channels_out, edge, activation=True)
        self.up_projection_ac = Dense(channels_out, edge, activation=True)

    def forward(self, x: Tensor, basis: QuadrupletBasis, main: Edges, middle: Edges, natoms: int) -> Tensor:
        """Returns what edges receive before it is projected up, shape (edges, channels_out)."""
        sent = self.send(x, self.dense_db, basis.radial)
        at_b = at_sources(sent, main, middle, natoms)
        if self.scale_cbf.fitting:
            rows = basis.exists
            self.scale_cbf.fit((at_b * (basis.circular @ self.mlp_cbf.weight.T))[rows], at_b[rows])
        weight = self.mlp_cbf.weight * self.scale_cbf.scale_factor
        circular = linear(basis.circular.flatten(0, 1), weight).view_as(at_b)
        # Rows of edges d -> b that do not belong to a quadruplet are zero in the circular basis.
        at_a = circular.mul_(at_b)
        tables = [table.transpose(1, 2).flatten(1, 2) for table in to_tables(basis.azimuths @ at_a, middle)]
        groups = zip(basis.angular, tables, basis.excluded, basis.twice(at_a), strict=True)
        received = to_rows([self.mlp_sbf(*group) for group in groups], main)
        if self.scale_sbf_sum.fitting:
            self.scale_sbf_sum.fit(received, at_a[basis.exists])
        return received * self.scale_sbf_sum.scale_factor


class PairInteraction(nn.Module):
    """Atoms send to atoms, over distances only.

    Args:
        atom: Features of atoms.
        channels_in: Channels of what is sent.
        channels_out: Channels of what is received.
        rbf: Size of the radial basis.
    """

    def __init__(self, *, atom: int, channels_in: int, channels_out: int, rbf: int) -> None:
        super().__init__()
        self.bilinear = Dense(rbf * channels_in, channels_out)
        self.scale_rbf_sum = Scale()
        self.down_projection = Dense(atom, channels_in, activation=True)
        self.up_projection = Dense(channels_out, atom, activation=True)

    def forward(self, atoms: Tensor, basis: PairBasis) -> Tensor:
        """Returns the update of the atoms, shape (atoms, features)."""
        sent = self.down_projection(atoms)
        received = self.bilinear(basis.sums(sent))
        if self.scale_rbf_sum.fitting:
            self.scale_rbf_sum.fit(received, sent)
        return self.up_projection(received * self.scale_rbf_sum.scale_factor)


class Bilinear(nn.Module):
    """Sums of edges weighted by a basis, then a linear layer of all products of channels and basis functions.

    Args:
        basis: Size of the basis.
        channels_in: Channels of the edges.
        channels_out: Channels that leave.
    """

    def __init__(self, basis: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.basis = basis
        self.bilinear = Dense(basis * channels_in, channels_out)

    def forward(
        self, angular: Tensor, table: Tensor, excluded: Tensor | None = None, twice: Tensor | None = None
    ) -> Tensor:
        """Returns the sums.

        Args:
            angular: The basis of pairs, shape (atoms, rows * basis, edges).
            table: What the edges around each atom send, shape (atoms, edges, channels_in).
            excluded: The basis of what must be taken off again, shape (atoms * rows, basis, pairs).
            twice: What that is, shape (atoms * rows, pairs, channels_in).

        Returns:
            Shape (atoms, rows, channels_out).
        """
        angular, table = in_compute_type(angular, table)
        sums = (angular @ table).view(-1, self.basis, table.shape[-1])
        if excluded is not None:
            sums = torch.baddbmm(sums, *in_compute_type(excluded, twice), alpha=-1)
        return self.bilinear(sums.flatten(1)).view(len(table), -1, self.bilinear.linear.out_features)
