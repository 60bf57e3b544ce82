"""EquiformerV2 (arXiv 2306.12059), as implemented in fairchem-core 1.10."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from e3nn import o3
from torch import Tensor

from atomcsi.catalogue import Graph
from atomcsi.errors import AtomcsiError, InputError
from atomcsi.models.base import Features
from atomcsi.models.checkpoints import load_weights, read_checkpoint
from atomcsi.models.edges import EdgeBackbone, EdgeBatch, EdgeCollate, EdgeReadout
from atomcsi.models.fairchem import FairchemBatch, require_edges  # before fairchem's own modules
from atomcsi.structure import MAX_ATOMIC_NUMBER

# isort: split
from fairchem.core.models.base import GraphData
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone
from fairchem.core.models.equiformer_v2.so3 import SO3_Rotation

_HEADS = ("energy_block", "force_block", "output_heads")
#: The embedding of elements.
_ELEMENTS = "sphere_embedding.weight"


def _in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function ignore autocast: geometry needs all its digits, and takes little of the time."""
    return torch.autocast("cpu", enabled=False)(torch.autocast("cuda", enabled=False)(function))


class _Rotation(SO3_Rotation):
    """fairchem's rotations of coefficients, found in single precision."""

    set_wigner = _in_float32(SO3_Rotation.set_wigner)


class EquiformerV2Blocks(EquiformerV2Backbone):
    """fairchem's model with reproducible edge frames, and with an answer to batches without edges."""

    #: Seed of the random frames in which edges are seen; they change features by about 2e-5.
    seed = 0

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # The list is shared with the blocks.
        for i, lmax in enumerate(self.lmax_list):
            self.SO3_rotation[i] = _Rotation(lmax)

    @_in_float32
    def generate_graph(self, *args: Any, **kwargs: Any) -> GraphData:
        """Finds the edges as fairchem does, and requires that there are some."""
        graph = super().generate_graph(*args, **kwargs)
        require_edges(graph.edge_distance, self.cutoff)
        return graph

    def _init_edge_rot_mat(self, data: FairchemBatch, edge_index: Tensor, edge_distance_vec: Tensor) -> Tensor:
        device = edge_distance_vec.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            return super()._init_edge_rot_mat(data, edge_index, edge_distance_vec)


class EquiformerV2(EdgeBackbone):
    """EquiformerV2 with invariant features: its last coefficients of degree 0, and edges that read degrees 0 and 1.

    The defaults are fairchem's 31M model. Features do not change when structures turn, up to rounding and the grid
    on which activations are taken; mirror images differ, because its convolutions about an edge tell left from
    right. Gradients are complete, but features jump where an edge enters or leaves: nothing fades out at the cutoff.

    Args:
        num_layers: Transformer blocks.
        sphere_channels: Channels of the atoms' coefficients.
        attn_hidden_channels: Hidden channels of the attention.
        num_heads: Heads of the attention.
        attn_alpha_channels: Channels of a head's attention weights.
        attn_value_channels: Channels of a head's values.
        ffn_hidden_channels: Hidden channels of the feedforward networks.
        lmax: Largest degree of the spherical harmonics.
        mmax: Largest order about an edge.
        grid_resolution: Points of the grid along each angle.
        edge_channels: Hidden channels of the radial functions; also features per edge.
        alpha_drop: Part of the attention weights dropped in training.
        drop_path_rate: Part of the structures for which a block is left out in training.
        cutoff: Length of the longest edges in Angstrom.
        max_neighbors: Edges that end at an atom, at most.
        max_num_elements: Atomic numbers below this are known; 90 in published checkpoints.
    """

    def __init__(
        self,
        *,
        num_layers: int = 8,
        sphere_channels: int = 128,
        attn_hidden_channels: int = 64,
        num_heads: int = 8,
        attn_alpha_channels: int = 64,
        attn_value_channels: int = 16,
        ffn_hidden_channels: int = 128,
        lmax: int = 4,
        mmax: int = 2,
        grid_resolution: int = 18,
        edge_channels: int = 128,
        alpha_drop: float = 0.1,
        drop_path_rate: float = 0.1,
        cutoff: float = 12.0,
        max_neighbors: int = 20,
        max_num_elements: int = MAX_ATOMIC_NUMBER + 1,
    ) -> None:
        super().__init__()
        self.node_dim, self.edge_dim = sphere_channels, edge_channels
        self.cutoff, self.max_neighbors = cutoff, max_neighbors
        self.blocks = _OnGivenEdges(
            num_layers=num_layers,
            sphere_channels=sphere_channels,
            attn_hidden_channels=attn_hidden_channels,
            num_heads=num_heads,
            attn_alpha_channels=attn_alpha_channels,
            attn_value_channels=attn_value_channels,
            ffn_hidden_channels=ffn_hidden_channels,
            lmax_list=[lmax],
            mmax_list=[mmax],
            grid_resolution=grid_resolution,
            edge_channels=edge_channels,
            alpha_drop=alpha_drop,
            drop_path_rate=drop_path_rate,
            max_radius=cutoff,
            max_num_elements=max_num_elements,
            norm_type="layer_norm_sh",
            attn_activation="silu",
            ffn_activation="silu",
            use_grid_mlp=True,
            weight_init="uniform",
            regress_forces=False,
        )
        self.edges = EdgeReadout(sphere_channels, edge_channels, edge_channels, cutoff, vectors=True)

    def forward(self, batch: EdgeBatch) -> Features:
        """Computes the features of a batch of :meth:`collate`.

        Raises:
            AtomcsiError: No two atoms of the batch are within the cutoff, or it holds an element that is not known.
        """
        largest = int(batch.numbers.max())
        if largest >= self.blocks.max_num_elements:
            raise AtomcsiError(
                f"element {largest} is beyond the backbone's max_num_elements={self.blocks.max_num_elements}; raise it"
            )
        batch = self.kept(batch)
        vectors = batch.vectors()
        distance = vectors.norm(dim=-1)
        direction = vectors / distance[:, None]
        require_edges(distance, self.cutoff)
        data = FairchemBatch(batch)
        data.graph = _graph(batch, vectors, distance)
        embedding = self.blocks(data)["node_embedding"].embedding
        # Coefficients of degree 1 are the components x, y, z of vectors.
        node, vec = embedding[:, 0], embedding[:, 1:4]
        return Features(
            node=node,
            edge=lambda: self.edges(batch, distance, node, (direction, vec)),
            edge_target=batch.target,
            edge_direction=direction,
        )

    def collate(self, graphs: Sequence[Graph | None] = (None,)) -> EdgeCollate:
        """See the base; the batches have edges."""
        return EdgeCollate(cutoff=self.cutoff, max_neighbors=self.max_neighbors, graphs=graphs)

    def depth(self, parameter: str) -> int:
        """Which block a parameter belongs to, 0 for what embeds; edges and the last norm are behind the last one."""
        match = re.match(r"blocks\.blocks\.(\d+)\.", parameter)
        if match is None:
            return self.blocks.num_layers if parameter.startswith(("edges.", "blocks.norm.")) else 0
        return int(match[1]) + 1

    def load_published(self, path: Path) -> None:
        """Loads the network of a checkpoint in fairchem's layout; what reads edges is ours, and stays as it is.

        Raises:
            InputError: The checkpoint is missing or damaged, or is of a model of other settings.
        """
        state = published_weights(read_checkpoint(path))
        known, wanted = state.get(_ELEMENTS), self.blocks.max_num_elements
        if isinstance(known, Tensor) and len(known) != wanted:
            problem = f"knows elements below {len(known)}, where the backbone has max_num_elements={wanted}"
            raise InputError(path, problem, mend=f"set max_num_elements: {len(known)} in the backbone's settings")
        load_weights(path, self.blocks, state, "the backbone's EquiformerV2")


def published_weights(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the weights of a checkpoint in fairchem's layout, without heads, under the names of its network."""
    # Its later models hold the network as their backbone.
    state = {re.sub(r"^(module\.)*(backbone\.)?", "", str(name)): w for name, w in content["state_dict"].items()}
    return {name: value for name, value in state.items() if not name.startswith(_HEADS)}


class _OnGivenEdges(EquiformerV2Blocks):
    """The blocks on edges that come with the batch, and with gradients of the frames of these."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for i, lmax in enumerate(self.lmax_list):
            self.SO3_rotation[i] = SmoothRotation(lmax)

    def forward(self, data: FairchemBatch) -> dict[str, Any]:
        found = super().forward(data)
        for rotation in self.SO3_rotation:
            # Parts of the batch's graph, which must not outlive it nor be copied with the model.
            del rotation.wigner, rotation.wigner_inv
        return found

    def generate_graph(self, data: FairchemBatch, **_: Any) -> GraphData:
        return data.graph

    def _init_edge_rot_mat(self, data: FairchemBatch, edge_index: Tensor, edge_distance_vec: Tensor) -> Tensor:
        return edge_frames(edge_distance_vec)


class SmoothRotation(SO3_Rotation):
    """Rotations of coefficients as polynomials of rotation matrices, through which gradients flow.

    fairchem's go through Euler angles and are cut off from gradients, which those do not have everywhere.

    Args:
        lmax: Largest degree.
    """

    def __init__(self, lmax: int) -> None:
        super().__init__(lmax)
        for degree in range(2, lmax + 1):
            coupling = o3.wigner_3j(degree - 1, 1, degree) * (2 * degree + 1) ** 0.5
            self.register_buffer(f"coupling_{degree}", coupling, persistent=False)

    @_in_float32
    def set_wigner(self, rotations: Tensor) -> None:
        """Sets the matrices that rotate coefficients.

        Args:
            rotations: Rotation matrices, shape (edges, 3, 3).
        """
        blocks = [rotations.new_ones(len(rotations), 1, 1), rotations]
        for degree in range(2, self.lmax + 1):
            # Degree l is what degrees l - 1 and 1 couple to; both are turned.
            coupling = getattr(self, f"coupling_{degree}")
            turned = torch.einsum("nac,cdk->nadk", blocks[-1], coupling)
            turned = torch.einsum("nbd,nadk->nabk", rotations, turned)
            blocks.append(torch.einsum("abm,nabk->nmk", coupling, turned))
        self.wigner = rotations.new_zeros(len(rotations), (self.lmax + 1) ** 2, (self.lmax + 1) ** 2)
        for degree, block in enumerate(blocks[: self.lmax + 1]):
            own = slice(degree**2, (degree + 1) ** 2)
            self.wigner[:, own, own] = block
        self.wigner_inv = self.wigner.transpose(1, 2).contiguous()


def edge_frames(vectors: Tensor) -> Tensor:
    """Returns rotation matrices that take vectors to the y axis, shape (edges, 3, 3).

    Which of these rotations does not matter: the network does not know directions about an edge.

    Args:
        vectors: Vectors along edges, not zero, shape (edges, 3).
    """
    y = vectors / vectors.norm(dim=-1, keepdim=True)
    # The axis that is most at right angles to the edge.
    helper = torch.eye(3, dtype=y.dtype, device=y.device)[y.abs().argmin(dim=-1)]
    z = torch.linalg.cross(y, helper)
    z = z / z.norm(dim=-1, keepdim=True)
    return torch.stack([torch.linalg.cross(y, z), y, z], dim=1)


def _graph(batch: EdgeBatch, vectors: Tensor, distance: Tensor) -> GraphData:
    """The edges as fairchem has them: its vectors point from target to source."""
    return GraphData(
        edge_index=batch.edge_index,
        edge_distance=distance,
        edge_distance_vec=-vectors,
        cell_offsets=batch.offset,
        offset_distances=None,
        neighbors=None,
        batch_full=batch.index,
        atomic_numbers_full=batch.numbers,
    )
