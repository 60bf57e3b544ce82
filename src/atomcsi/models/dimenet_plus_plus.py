"""DimeNet++ (arXiv 2011.14115), as implemented in PyTorch Geometric."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch_geometric.nn.models import DimeNetPlusPlus as PygDimeNetPlusPlus

from atomcsi.catalogue import Graph
from atomcsi.models.base import Features
from atomcsi.models.edges import EdgeBackbone, EdgeBatch, EdgeCollate
from atomcsi.structure import MAX_ATOMIC_NUMBER


class DimeNetPlusPlus(EdgeBackbone):
    """DimeNet++'s blocks on edges and triplets of ours, which know periodic images.

    The defaults are those of fairchem for OC20. Its features are smooth functions of the positions: edges fade out
    at the cutoff. Edge features are the messages; atom features the sum of its output blocks, before any head.

    Args:
        hidden_channels: Size of the messages: features per edge.
        out_emb_channels: Features per atom.
        num_blocks: Interaction blocks.
        int_emb_size: Size of messages in the interaction of triplets.
        basis_emb_size: Size of the embedded bases.
        num_spherical: Angular basis functions.
        num_radial: Radial basis functions.
        num_before_skip: Residual layers before a block's skip connection.
        num_after_skip: Residual layers after it.
        num_output_layers: Layers of the output blocks.
        cutoff: Length of the longest edges in Angstrom.
    """

    def __init__(
        self,
        *,
        hidden_channels: int = 192,
        out_emb_channels: int = 192,
        num_blocks: int = 3,
        int_emb_size: int = 64,
        basis_emb_size: int = 8,
        num_spherical: int = 7,
        num_radial: int = 6,
        num_before_skip: int = 1,
        num_after_skip: int = 2,
        num_output_layers: int = 3,
        cutoff: float = 6.0,
    ) -> None:
        super().__init__()
        self.node_dim, self.edge_dim, self.cutoff = out_emb_channels, hidden_channels, cutoff
        self.model = PygDimeNetPlusPlus(
            hidden_channels=hidden_channels,
            out_channels=out_emb_channels,
            num_blocks=num_blocks,
            int_emb_size=int_emb_size,
            basis_emb_size=basis_emb_size,
            out_emb_channels=out_emb_channels,
            num_spherical=num_spherical,
            num_radial=num_radial,
            cutoff=cutoff,
            num_before_skip=num_before_skip,
            num_after_skip=num_after_skip,
            num_output_layers=num_output_layers,
            output_initializer="glorot_orthogonal",
        )
        # Its own embedding ends at element 94.
        self.model.emb.emb = nn.Embedding(MAX_ATOMIC_NUMBER + 1, hidden_channels)
        self.model.emb.reset_parameters()
        self.edge_fade = nn.Linear(num_radial, hidden_channels, bias=False)

    def forward(self, batch: EdgeBatch) -> Features:
        """Computes the features of a batch of :meth:`collate`."""
        batch = self.kept(batch)
        vectors = batch.vectors()
        distance = vectors.norm(dim=-1)
        first, second = triplets(batch)
        radial = self.model.rbf(distance)
        angular = self._angular_basis(vectors, distance, first, second)
        x = self.model.emb(batch.numbers, radial, batch.target, batch.source)
        outputs = iter(self.model.output_blocks)
        node = next(outputs)(x, radial, batch.target, num_nodes=len(batch.numbers))
        for interaction, output in zip(self.model.interaction_blocks, outputs, strict=True):
            x = interaction(x, radial, angular, first, second)
            node = node + output(x, radial, batch.target, num_nodes=len(batch.numbers))
        return Features(
            node=node,
            edge=lambda: x * self.edge_fade(radial),
            edge_target=batch.target,
            edge_direction=vectors / distance[:, None],
        )

    def _angular_basis(self, vectors: Tensor, distance: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Basis of each triplet, shape (triplets, num_spherical * num_radial)."""
        # The closed forms of Bessel functions lose most digits of single precision at short distances.
        vectors, lengths = vectors.double(), distance.double()
        into, out = vectors[first], vectors[second]
        angle = torch.atan2(torch.linalg.cross(into, out).norm(dim=-1), (into * out).sum(dim=-1))
        return self.model.sbf(lengths, angle, first).to(distance.dtype)

    def collate(self, graphs: Sequence[Graph | None] = (None,)) -> EdgeCollate:
        """See the base; the batches have edges."""
        return EdgeCollate(cutoff=self.cutoff, graphs=graphs)

    def depth(self, parameter: str) -> int:
        """Which block a parameter belongs to, 0 for what embeds; an output block belongs to what is before it."""
        match = re.match(r"model\.(interaction|output)_blocks\.(\d+)\.", parameter)
        if match is None:
            return len(self.model.interaction_blocks) if parameter.startswith("edge_fade.") else 0
        return int(match[2]) + (match[1] == "interaction")


def triplets(batch: EdgeBatch) -> tuple[Tensor, Tensor]:
    """Finds all pairs of edges of which the second goes on where the first ends, but not back along it.

    Returns:
        First edges, k to j, and second edges, j to i, both of shape (triplets,); i and k may be images of one atom.
    """
    incoming = torch.bincount(batch.target, minlength=len(batch.numbers))
    # Edges are ordered by their targets.
    starts = incoming.cumsum(0) - incoming
    counts = incoming[batch.source]
    second = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    within = torch.arange(len(second), device=counts.device) - (counts.cumsum(0) - counts)[second]
    first = starts[batch.source[second]] + within
    back = (batch.source[first] == batch.target[second]) & (batch.offset[first] == -batch.offset[second]).all(dim=-1)
    return first[~back], second[~back]
