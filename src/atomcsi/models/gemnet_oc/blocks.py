"""Interaction and output blocks of GemNet-OC."""

from __future__ import annotations

from torch import Tensor, nn

from atomcsi.models.gemnet_oc.bases import BasisSet
from atomcsi.models.gemnet_oc.fused import merge, modulate, modulated_sum
from atomcsi.models.gemnet_oc.graph import GemNetGraph
from atomcsi.models.gemnet_oc.interactions import PairInteraction, QuadrupletInteraction, TripletInteraction
from atomcsi.models.gemnet_oc.layers import Dense, EdgeEmbedding, Residual, Scale, mlp
from atomcsi.models.gemnet_oc.settings import Sizes, Switches

_INV_SQRT_2 = 2**-0.5


class AtomUpdate(nn.Module):
    """Sums of the edges that point to an atom, then an MLP.

    Args:
        sizes: Of the model.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.dense_rbf = Dense(sizes.emb_size_rbf, sizes.emb_size_edge)
        self.scale_sum = Scale()
        self.layers = mlp(sizes.emb_size_edge, sizes.emb_size_atom, sizes.num_atom)

    def forward(self, edges: Tensor, radial: Tensor, graph: GemNetGraph, natoms: int) -> Tensor:
        """Returns shape (atoms, features of atoms)."""
        summed = modulated_sum(edges, radial, self.dense_rbf.weight, graph.main.target, natoms)
        if self.scale_sum.fitting:
            self.scale_sum.fit(summed, edges)
        return self.layers(summed * self.scale_sum.scale_factor)


class OutputBlock(AtomUpdate):
    """What heads read after a block: features of atoms, and of edges for direct forces.

    Args:
        sizes: Of the model.
        direct_forces: Whether there are features of edges.
    """

    def __init__(self, sizes: Sizes, *, direct_forces: bool) -> None:
        super().__init__(sizes)
        self.seq_energy2 = mlp(sizes.emb_size_atom, sizes.emb_size_atom, sizes.num_output_afteratom)
        if direct_forces:
            self.scale_rbf_F = Scale()
            self.seq_forces = mlp(sizes.emb_size_edge, sizes.emb_size_edge, sizes.num_atom)
            self.dense_rbf_F = Dense(sizes.emb_size_rbf, sizes.emb_size_edge)

    def of_atoms(self, atoms: Tensor, edges: Tensor, radial: Tensor, graph: GemNetGraph) -> Tensor:
        """Returns shape (atoms, features of atoms)."""
        summed = super().forward(edges, radial, graph, len(atoms))
        if not len(self.seq_energy2):
            return summed
        return self.seq_energy2((summed + atoms) * _INV_SQRT_2)

    def of_edges(self, edges: Tensor, radial: Tensor) -> Tensor:
        """Returns shape (edges, features of edges)."""
        edges = self.seq_forces(edges)
        if self.scale_rbf_F.fitting:
            self.scale_rbf_F.fit(edges * self.dense_rbf_F(radial), edges)
        return modulate(edges, radial, self.dense_rbf_F.weight * self.scale_rbf_F.scale_factor)


class InteractionBlock(nn.Module):
    """Updates embeddings of atoms and edges by all interactions.

    Args:
        sizes: Of the model.
        switches: Which interactions there are besides triplets.
    """

    def __init__(self, sizes: Sizes, switches: Switches) -> None:
        super().__init__()
        atom, edge = sizes.emb_size_atom, sizes.emb_size_edge
        triplet = {
            "channels_in": sizes.emb_size_trip_in,
            "channels_out": sizes.emb_size_trip_out,
            "rbf": sizes.emb_size_rbf,
            "cbf": sizes.emb_size_cbf,
        }
        self.dense_ca = Dense(edge, edge, activation=True)
        self.trip_interaction = TripletInteraction(inputs=edge, outputs=edge, both_directions=True, **triplet)
        self.quad_interaction = self.atom_edge_interaction = self.edge_atom_interaction = self.atom_interaction = None
        if switches.quad_interaction:
            self.quad_interaction = QuadrupletInteraction(
                edge=edge,
                channels_in=sizes.emb_size_quad_in,
                channels_out=sizes.emb_size_quad_out,
                rbf=sizes.emb_size_rbf,
                cbf=sizes.emb_size_cbf,
                sbf=sizes.emb_size_sbf,
            )
        if switches.atom_edge_interaction:
            self.atom_edge_interaction = TripletInteraction(inputs=atom, outputs=edge, both_directions=True, **triplet)
        if switches.edge_atom_interaction:
            self.edge_atom_interaction = TripletInteraction(inputs=edge, outputs=atom, both_directions=False, **triplet)
        if switches.atom_interaction:
            self.atom_interaction = PairInteraction(
                atom=atom,
                channels_in=sizes.emb_size_aint_in,
                channels_out=sizes.emb_size_aint_out,
                rbf=sizes.emb_size_rbf,
            )
        self.layers_before_skip = nn.Sequential(*(Residual(edge) for _ in range(sizes.num_before_skip)))
        self.layers_after_skip = nn.Sequential(*(Residual(edge) for _ in range(sizes.num_after_skip)))
        self.atom_emb_layers = nn.Sequential(*(Residual(atom) for _ in range(sizes.num_atom_emb_layers)))
        self.atom_update = AtomUpdate(sizes)
        self.concat_layer = EdgeEmbedding(atom, edge, edge)
        self.residual_m = nn.Sequential(*(Residual(edge) for _ in range(sizes.num_concat)))
        self._edge_terms = 2 + switches.quad_interaction + switches.atom_edge_interaction
        self._atom_terms = 1 + switches.edge_atom_interaction + switches.atom_interaction

    def forward(self, atoms: Tensor, edges: Tensor, bases: BasisSet, graph: GemNetGraph) -> tuple[Tensor, Tensor]:
        """Returns the updated embeddings of atoms, shape (atoms, features), and edges, shape (edges, features)."""
        main, over = graph.main, graph.atom_edge
        received = [(self.trip_interaction, self.trip_interaction(edges, bases.triplet, main, out=main))]
        if (interaction := self.quad_interaction) is not None:
            received.append((interaction, interaction(edges, bases.quadruplet, main, graph.quadruplet, len(atoms))))
        if (interaction := self.atom_edge_interaction) is not None:
            received.append((interaction, interaction(atoms, bases.atom_edge, over, out=main, source=over.source)))
        updates = [
            part
            for interaction, result in received
            for part in (result, interaction.up_projection_ca.weight, interaction.up_projection_ac.weight)
        ]
        update = merge(edges, self.dense_ca.weight, graph.reverse, *updates) * self._edge_terms**-0.5

        sums = [atoms]
        if (interaction := self.edge_atom_interaction) is not None:
            sums.append(interaction.up_projection_ca(interaction(edges, bases.edge_atom, main, place=graph.place)))
        if self.atom_interaction is not None:
            sums.append(self.atom_interaction(atoms, bases.pairs))
        atoms = sum(sums) * self._atom_terms**-0.5

        edges = (edges + self.layers_before_skip(update)).mul_(_INV_SQRT_2)
        edges = self.layers_after_skip(edges)

        atoms = self.atom_emb_layers(atoms)
        atoms = (atoms + self.atom_update(edges, bases.update, graph, len(atoms))) * _INV_SQRT_2

        embedded = self.residual_m(self.concat_layer(atoms, edges, main.source, main.target))
        return atoms, (edges + embedded).mul_(_INV_SQRT_2)
