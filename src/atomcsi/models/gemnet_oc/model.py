"""GemNet-OC (Gasteiger et al., arXiv 2204.02782) in plain PyTorch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from atomcsi.catalogue import Graph
from atomcsi.errors import ConfigError
from atomcsi.models.base import Backbone, Features
from atomcsi.models.batch import AtomBatch, join
from atomcsi.models.checkpoints import load_weights
from atomcsi.models.gemnet_oc.bases import Bases
from atomcsi.models.gemnet_oc.blocks import InteractionBlock, OutputBlock
from atomcsi.models.gemnet_oc.graph import GemNetBatch, GemNetCollate, GraphSettings, build_graph
from atomcsi.models.gemnet_oc.layers import Dense, EdgeEmbedding, Residual, Scale
from atomcsi.models.gemnet_oc.nearest import NeighborRule
from atomcsi.models.gemnet_oc.published import published_weights
from atomcsi.models.gemnet_oc.settings import Sizes, Switches
from atomcsi.structure import MAX_ATOMIC_NUMBER


class GemNetOC(Backbone):
    """GemNet-OC up to the features that heads read energies and direct forces off.

    The defaults are GemNet-OC-S as fairchem-core 1.10 implements it. Names of settings are fairchem's.

    Args:
        num_blocks: Interaction blocks.
        emb_size_atom: Size of atom embeddings.
        emb_size_edge: Size of edge embeddings.
        emb_size_trip_in: Size of embeddings that enter the triplet interaction.
        emb_size_trip_out: Size of embeddings that leave it.
        emb_size_quad_in: As for triplets, quadruplet interaction.
        emb_size_quad_out: As for triplets, quadruplet interaction.
        emb_size_aint_in: As for triplets, atom interaction.
        emb_size_aint_out: As for triplets, atom interaction.
        emb_size_rbf: Size of the radial basis in the blocks.
        emb_size_cbf: Size of the circular basis (one angle) in the blocks.
        emb_size_sbf: Size of the spherical basis (two angles) in the blocks.
        num_radial: Radial basis functions.
        num_spherical: Angular basis functions per angle.
        num_before_skip: Residual layers before a block's skip connection.
        num_after_skip: Residual layers after it.
        num_concat: Residual layers after concatenating atom and edge embeddings.
        num_atom: Residual layers in the atom updates.
        num_output_afteratom: Residual layers in the output blocks after adding the atom embedding.
        num_atom_emb_layers: Residual layers of the atom embeddings in each block; JMP has 2.
        num_global_out_layers: Residual layers after all output blocks, which condense their features to the sizes of
            one; with 0 the features of all output blocks are handed on side by side.
        num_elements: Elements that have an embedding.
        cutoff: Length of the longest edges in Angstrom, unless a dataset's graph says otherwise.
        molecule_cutoff: The same for structures that are not periodic in any direction; ``cutoff`` if None.
        basis_cutoff: Distance in Angstrom that the radial basis is spread over; ``cutoff`` if None.
        envelope: Where the radial basis ends: ``graph``, at each structure's own cutoff, so that everything is smooth
            when a neighbour passes it; or ``basis``, at ``basis_cutoff``, as in JMP.
        max_neighbors: Edges per atom, unless a dataset's graph says otherwise.
        max_neighbors_qint: Edges per atom in the middle of quadruplets; this and the next two change in proportion.
        max_neighbors_aeaint: Edges per atom between atoms and edges.
        max_neighbors_aint: Edges per atom between atoms.
        neighbor_rule: How edges are made symmetric where ``max_neighbors`` cuts: ``fairchem``, ``jmp``, or
            ``order-free``, which alone does not depend on the order of the atoms.
        quad_interaction: Whether quadruplets interact.
        atom_edge_interaction: Whether atoms send to edges.
        edge_atom_interaction: Whether edges send to atoms.
        atom_interaction: Whether atoms send to atoms.
        qint_tags: OC20's tags of atoms that are in the middle of quadruplets: 0 below the surface, 1 at the surface,
            2 adsorbates and everything that has no tags.
        direct_forces: Whether there are features of edges.
        checkpointing: Whether activations of blocks are computed again in the backward pass, which takes a third
            more time and a fraction of the memory.
    """

    def __init__(
        self,
        *,
        num_blocks: int = 4,
        emb_size_atom: int = 256,
        emb_size_edge: int = 512,
        emb_size_trip_in: int = 64,
        emb_size_trip_out: int = 64,
        emb_size_quad_in: int = 32,
        emb_size_quad_out: int = 32,
        emb_size_aint_in: int = 64,
        emb_size_aint_out: int = 64,
        emb_size_rbf: int = 16,
        emb_size_cbf: int = 16,
        emb_size_sbf: int = 32,
        num_radial: int = 128,
        num_spherical: int = 7,
        num_before_skip: int = 2,
        num_after_skip: int = 2,
        num_concat: int = 1,
        num_atom: int = 3,
        num_output_afteratom: int = 3,
        num_atom_emb_layers: int = 0,
        num_global_out_layers: int = 0,
        num_elements: int = MAX_ATOMIC_NUMBER,
        cutoff: float = 12.0,
        molecule_cutoff: float | None = None,
        basis_cutoff: float | None = None,
        envelope: Literal["graph", "basis"] = "graph",
        max_neighbors: int = 30,
        max_neighbors_qint: int = 8,
        max_neighbors_aeaint: int = 20,
        max_neighbors_aint: int = 1000,
        neighbor_rule: NeighborRule = "fairchem",
        quad_interaction: bool = True,
        atom_edge_interaction: bool = True,
        edge_atom_interaction: bool = True,
        atom_interaction: bool = True,
        qint_tags: Sequence[int] = (0, 1, 2),
        direct_forces: bool = True,
        checkpointing: bool = False,
    ) -> None:
        given = locals()
        super().__init__()
        sizes = Sizes(**{field.name: given[field.name] for field in fields(Sizes)})
        switches = Switches(**{field.name: given[field.name] for field in fields(Switches)})
        self.cutoff, self.max_neighbors, self.checkpointing = cutoff, max_neighbors, checkpointing
        self.graph_settings = GraphSettings(
            cutoff=cutoff,
            molecule_cutoff=molecule_cutoff,
            max_neighbors=max_neighbors,
            max_neighbors_qint=max_neighbors_qint,
            max_neighbors_aeaint=max_neighbors_aeaint,
            max_neighbors_aint=max_neighbors_aint,
            switches=switches,
            qint_tags=tuple(qint_tags),
            neighbor_rule=neighbor_rule,
        )
        self.atom_emb = AtomEmbedding(num_elements, emb_size_atom)
        self.bases = Bases(sizes, switches, reach=basis_cutoff or cutoff, envelope=envelope)
        self.edge_emb = EdgeEmbedding(emb_size_atom, num_radial, emb_size_edge)
        self.int_blocks = nn.ModuleList(InteractionBlock(sizes, switches) for _ in range(num_blocks))
        self.out_blocks = nn.ModuleList(OutputBlock(sizes, direct_forces=direct_forces) for _ in range(num_blocks + 1))
        self.node_dim, self.edge_dim = (size * (num_blocks + 1) for size in (emb_size_atom, emb_size_edge))
        self.out_mlp_E = self.out_mlp_F = None
        if num_global_out_layers:
            self.out_mlp_E = _condense(self.node_dim, emb_size_atom, num_global_out_layers)
            self.out_mlp_F = _condense(self.edge_dim, emb_size_edge, num_global_out_layers) if direct_forces else None
            self.node_dim, self.edge_dim = emb_size_atom, emb_size_edge
        self.direct_forces = direct_forces

    def collate(self, graphs: Sequence[Graph | None] = (None,)) -> GemNetCollate:
        """Returns what turns structures into batches with graphs; see :meth:`.Backbone.collate`."""
        return GemNetCollate(settings=self.graph_settings, graphs=graphs)

    def forward(self, batch: AtomBatch) -> Features:
        """Computes the features of a batch; builds its graphs where :meth:`collate` has not done so.

        Its ``edge`` raises ConfigError without ``direct_forces``.
        """
        if not isinstance(batch, GemNetBatch):
            values = {field.name: getattr(batch, field.name) for field in fields(batch)}
            batch = GemNetBatch(**values, graph=build_graph(batch, self.graph_settings))
        graph = batch.graph
        bases = self.bases(batch)
        atoms = self.atom_emb(batch.numbers)
        edges = self.edge_emb(atoms, bases.embedding, graph.main.source, graph.main.target)

        embedded = [edges]
        found = [self._call(self.out_blocks[0].of_atoms, atoms, edges, bases.output, graph)]
        for block, out in zip(self.int_blocks, self.out_blocks[1:], strict=True):
            atoms, edges = self._call(block, atoms, edges, bases, graph)
            embedded.append(edges)
            found.append(self._call(out.of_atoms, atoms, edges, bases.output, graph))
        node = torch.cat(found, dim=1)
        return Features(
            node=node if self.out_mlp_E is None else self.out_mlp_E(node),
            edge=partial(self._edge_features, embedded, bases.output),
            edge_target=graph.main.target,
            edge_direction=bases.direction,
        )

    def _edge_features(self, embedded: Sequence[Tensor], radial: Tensor) -> Tensor:
        if not self.direct_forces:
            raise ConfigError("GemNet-OC has no features of edges with direct_forces: false (set forces to gradient)")
        found = [self._call(out.of_edges, edges, radial) for out, edges in zip(self.out_blocks, embedded, strict=True)]
        edge = torch.cat(found, dim=1)
        return edge if self.out_mlp_F is None else self.out_mlp_F(edge)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self.checkpointing and self.training:
            return torch.utils.checkpoint.checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)

    @torch.no_grad()
    def fit_scales(self, batches: Iterable[AtomBatch]) -> None:
        """Fits the scale factors anew, so that activations keep their variance through the network.

        One pass over all batches together: each factor fits itself when it is reached and applies from there on,
        so that those after it see scaled inputs, as they will in training.

        Raises:
            AtomcsiError: Some activations do not vary in these batches.
        """
        scales = [module for module in self.modules() if isinstance(module, Scale)]
        training = self.training
        self.eval()  # no edge is left out
        for scale in scales:
            scale.scale_factor.fill_(1.0)
            scale.fitting = True
        try:
            batches = list(batches)
            features = self(batches[0] if len(batches) == 1 else join(batches))
            if self.direct_forces:
                features.edge()
        finally:
            for scale in scales:
                scale.fitting = False
            self.train(training)

    def drop_edges(self, probability: float) -> None:
        """Leaves out edges while training, both directions of an edge with an embedding together."""
        self.bases.edge_dropout = probability

    def depth(self, parameter: str) -> int:
        """An output block belongs to the interaction block before it, the first one to the embedding."""
        match = re.match(r"(int|out)_blocks\.(\d+)\.", parameter)
        return 0 if match is None else int(match[2]) + (match[1] == "int")

    def load_published(self, path: Path) -> None:
        """Loads weights in the layout of JMP or of fairchem-core 1.10; settings must be those of its model.

        Raises:
            InputError: The checkpoint is missing or damaged, or is of a model of other settings.
        """
        load_weights(path, self, published_weights(path, direct_forces=self.direct_forces), "the backbone's GemNet-OC")


class AtomEmbedding(nn.Module):
    """One vector per element.

    Args:
        elements: Number of elements.
        features: Size of the vectors.
    """

    def __init__(self, elements: int, features: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(elements, features)
        nn.init.uniform_(self.embeddings.weight, -(3**0.5), 3**0.5)

    def forward(self, numbers: Tensor) -> Tensor:
        """Maps atomic numbers, shape (atoms,), to shape (atoms, features)."""
        return self.embeddings(numbers - 1)


def _condense(inputs: int, features: int, residuals: int) -> nn.Sequential:
    return nn.Sequential(Dense(inputs, features, activation=True), *(Residual(features) for _ in range(residuals)))
