"""SchNet (arXiv 1706.08566), as implemented in PyTorch Geometric."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn
from torch_geometric.nn.models import SchNet as PygSchNet

from atomcsi.catalogue import Graph
from atomcsi.models.base import Features
from atomcsi.models.edges import EdgeBackbone, EdgeBatch, EdgeCollate, EdgeReadout
from atomcsi.structure import MAX_ATOMIC_NUMBER


class SchNet(EdgeBackbone):
    """SchNet's interaction blocks on edges of ours, which know periodic images.

    The defaults are those of fairchem for OC20. Its features are smooth functions of the positions: edges fade out
    at the cutoff.

    Args:
        hidden_channels: Features per atom.
        num_filters: Channels of the continuous-filter convolutions.
        num_interactions: Interaction blocks.
        num_gaussians: Radial basis functions.
        edge_channels: Features per edge.
        cutoff: Length of the longest edges in Angstrom.
    """

    def __init__(
        self,
        *,
        hidden_channels: int = 1024,
        num_filters: int = 256,
        num_interactions: int = 5,
        num_gaussians: int = 200,
        edge_channels: int = 256,
        cutoff: float = 6.0,
    ) -> None:
        super().__init__()
        self.node_dim, self.edge_dim, self.cutoff = hidden_channels, edge_channels, cutoff
        model = PygSchNet(hidden_channels, num_filters, num_interactions, num_gaussians, cutoff)
        # Its own embedding ends at element 99.
        self.embedding = nn.Embedding(MAX_ATOMIC_NUMBER + 1, hidden_channels)
        self.radial, self.interactions = model.distance_expansion, model.interactions
        self.edges = EdgeReadout(hidden_channels, edge_channels, num_gaussians, cutoff)

    def forward(self, batch: EdgeBatch) -> Features:
        """Computes the features of a batch of :meth:`collate`."""
        batch = self.kept(batch)
        vectors = batch.vectors()
        distance = vectors.norm(dim=-1)
        radial = self.radial(distance)
        x = self.embedding(batch.numbers)
        for interaction in self.interactions:
            x = x + interaction(x, batch.edge_index, distance, radial)
        return Features(
            node=x,
            edge=lambda: self.edges(batch, distance, x),
            edge_target=batch.target,
            edge_direction=vectors / distance[:, None],
        )

    def collate(self, graphs: Sequence[Graph | None] = (None,)) -> EdgeCollate:
        """See the base; the batches have edges."""
        return EdgeCollate(cutoff=self.cutoff, graphs=graphs)

    def depth(self, parameter: str) -> int:
        """Which block a parameter belongs to, 0 for what embeds; edges are read behind the last one."""
        match = re.match(r"interactions\.(\d+)\.", parameter)
        if match is None:
            return len(self.interactions) if parameter.startswith("edges.") else 0
        return int(match[1]) + 1
