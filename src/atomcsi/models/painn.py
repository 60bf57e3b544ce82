"""PaiNN (arXiv 2102.03150), as implemented in fairchem-core 1.10."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from atomcsi.catalogue import Graph
from atomcsi.models import fairchem  # noqa: F401 - before fairchem's own modules
from atomcsi.models.base import Features
from atomcsi.models.edges import EdgeBackbone, EdgeBatch, EdgeCollate, EdgeReadout
from atomcsi.structure import MAX_ATOMIC_NUMBER

# isort: split
from fairchem.core.models.gemnet.layers.embedding_block import AtomEmbedding
from fairchem.core.models.gemnet.layers.radial_basis import RadialBasis
from fairchem.core.models.painn.painn import PaiNNMessage, PaiNNUpdate


class PaiNN(EdgeBackbone):
    """fairchem's message and update blocks on edges of ours, without its fitted scale factors.

    The defaults are those of fairchem for OC20. Each atom has invariant features and vectors; edges read both, the
    vectors by their components along the edge, so that direct forces have a say of them. Features are smooth
    functions of the positions: edges fade out at the cutoff, unless ``max_neighbors`` cuts them off before.

    Args:
        hidden_channels: Features per atom, and vectors.
        num_layers: Message and update blocks.
        num_rbf: Radial basis functions.
        edge_channels: Features per edge.
        cutoff: Length of the longest edges in Angstrom.
        max_neighbors: Edges that end at an atom, at most.
    """

    def __init__(
        self,
        *,
        hidden_channels: int = 512,
        num_layers: int = 6,
        num_rbf: int = 128,
        edge_channels: int = 256,
        cutoff: float = 12.0,
        max_neighbors: int = 50,
    ) -> None:
        super().__init__()
        self.node_dim, self.edge_dim = hidden_channels, edge_channels
        self.cutoff, self.max_neighbors = cutoff, max_neighbors
        self.embedding = AtomEmbedding(hidden_channels, MAX_ATOMIC_NUMBER)
        self.radial = RadialBasis(num_rbf, cutoff)
        self.messages = nn.ModuleList(PaiNNMessage(hidden_channels, num_rbf) for _ in range(num_layers))
        self.updates = nn.ModuleList(PaiNNUpdate(hidden_channels) for _ in range(num_layers))
        self.edges = EdgeReadout(hidden_channels, edge_channels, num_rbf, cutoff, vectors=True)

    def forward(self, batch: EdgeBatch) -> Features:
        """Computes the features of a batch of :meth:`collate`."""
        batch = self.kept(batch)
        vectors = batch.vectors()
        distance = vectors.norm(dim=-1)
        direction, radial = vectors / distance[:, None], self.radial(distance)
        x = self.embedding(batch.numbers)
        vec = x.new_zeros(len(x), 3, self.node_dim)
        for message, update in zip(self.messages, self.updates, strict=True):
            dx, dvec = message(x, vec, batch.edge_index, radial, direction)
            # As in fairchem: keeps the variance.
            x, vec = (x + dx) * 0.5**0.5, vec + dvec
            dx, dvec = update(x, vec)
            x, vec = x + dx, vec + dvec
        return Features(
            node=x,
            edge=lambda: self.edges(batch, distance, x, (direction, vec)),
            edge_target=batch.target,
            edge_direction=direction,
        )

    def collate(self, graphs: Sequence[Graph | None] = (None,)) -> EdgeCollate:
        """See the base; the batches have edges."""
        return EdgeCollate(cutoff=self.cutoff, max_neighbors=self.max_neighbors, graphs=graphs)

    def depth(self, parameter: str) -> int:
        """Which block a parameter belongs to, 0 for what embeds; edges are read behind the last one."""
        match = re.match(r"(?:messages|updates)\.(\d+)\.", parameter)
        if match is None:
            return len(self.messages) if parameter.startswith("edges.") else 0
        return int(match[1]) + 1
