"""GemNet-OC (arXiv 2204.02782), as implemented in fairchem-core 1.10.

fairchem's class is used for its interaction blocks only: heads, scale factors and log messages are ours.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from atomcsi.errors import AtomcsiError
from atomcsi.models.base import Backbone, Features
from atomcsi.models.batch import AtomBatch, join
from atomcsi.models.fairchem import FairchemBatch, require_edges  # before fairchem's own modules
from atomcsi.structure import MAX_ATOMIC_NUMBER

# isort: split
from fairchem.core.models.gemnet_oc import gemnet_oc
from fairchem.core.modules.scaling import ScaleFactor

# fairchem warns of structures without neighbours, through functions that also set up the root logger's output.
gemnet_oc.logging = logging.getLogger(gemnet_oc.__name__)
gemnet_oc.logging.setLevel(logging.ERROR)


class GemNetOC(Backbone):
    """GemNet-OC with features for direct forces: its output blocks, concatenated, before any head.

    The defaults are GemNet-OC-S. Computes in float32. Where ``max_neighbors`` cuts off neighbours, fairchem keeps
    an edge pair by the order of its two atoms, so that results then depend on the order of the structure's atoms.

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
        cutoff: Length of the longest edges in Angstrom, of all interactions.
        max_neighbors: Edges per atom.
        max_neighbors_qint: Edges per atom in the middle of quadruplets.
        max_neighbors_aeaint: Edges per atom between atoms and edges.
        max_neighbors_aint: Edges per atom between atoms.
        quad_interaction: Whether quadruplets interact.
        atom_edge_interaction: Whether atoms send to edges.
        edge_atom_interaction: Whether edges send to atoms.
        atom_interaction: Whether atoms send to atoms.
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
        cutoff: float = 12.0,
        max_neighbors: int = 30,
        max_neighbors_qint: int = 8,
        max_neighbors_aeaint: int = 20,
        max_neighbors_aint: int = 1000,
        quad_interaction: bool = True,
        atom_edge_interaction: bool = True,
        edge_atom_interaction: bool = True,
        atom_interaction: bool = True,
    ) -> None:
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.node_dim = emb_size_atom * (num_blocks + 1)
        self.edge_dim = emb_size_edge * (num_blocks + 1)
        self.cutoff, self.max_neighbors = cutoff, max_neighbors
        self.blocks = _Blocks(settings)

    def forward(self, batch: AtomBatch) -> Features:
        """Computes the features of a batch.

        Raises:
            AtomcsiError: No two atoms of the batch are within the cutoff.
        """
        found = self.blocks(FairchemBatch(batch))
        return Features(
            node=torch.cat(found["xs_E"], dim=-1),
            edge=torch.cat(found["xs_F"], dim=-1),
            edge_target=found["edge_idx"],
            edge_direction=found["edge_vec"],
        )

    @torch.no_grad()
    def fit_scales(self, batches: Iterable[AtomBatch]) -> None:
        """Fits the scale factors anew, so that activations keep their variance through the network.

        One pass over all batches together: each factor fits itself when it is reached and applies from there on,
        so that those after it see scaled inputs, as they will in training.

        Raises:
            AtomcsiError: Some activations do not vary in these batches.
        """
        scales = [module for module in self.modules() if isinstance(module, Scale)]
        for scale in scales:
            scale.scale_factor.fill_(1.0)
            scale.fitting = True
        try:
            self(join(list(batches)))
        finally:
            for scale in scales:
                scale.fitting = False

    def depth(self, parameter: str) -> int:
        """An output block belongs to the interaction block before it, the first one to the embedding."""
        match = re.match(r"blocks\.(int|out)_blocks\.(\d+)\.", parameter)
        return 0 if match is None else int(match[2]) + (match[1] == "int")


class Scale(nn.Module):
    """Multiplies activations by a fixed factor, fitted once.

    Stands in for fairchem's ``ScaleFactor`` under the same name in state dicts. That one reads its factor back
    from the device at each call, logs, and refuses to load a state dict with another factor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale_factor", torch.tensor(1.0))
        self.fitting = False

    def forward(self, x: Tensor, *, ref: Tensor | None = None) -> Tensor:
        """Scales ``x``, shape (rows, channels); when fitting, first so that its variance becomes that of ``ref``.

        Args:
            x: Activations.
            ref: Activations, shape (other rows, other channels); variance 1 is meant if there are none.
        """
        if self.fitting:
            reference = x.new_ones(()) if ref is None else _variance(ref)
            factor = (reference / _variance(x)).sqrt()
            if not torch.isfinite(factor) or factor == 0:
                raise AtomcsiError(
                    "the scale factors of GemNet-OC cannot be fitted: some of its activations do not vary in the "
                    "given structures; fit on more of them, or on larger ones"
                )
            self.scale_factor.copy_(factor)
            self.fitting = False
        return x * self.scale_factor


def replace(model: nn.Module, kind: type[nn.Module], stand_in: Callable[[], nn.Module]) -> None:
    """Replaces every module of a kind, however deep in a model, by one of ours."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, kind):
                setattr(module, name, stand_in())


def _variance(x: Tensor) -> Tensor:
    """Variance over rows, averaged over channels; 0 of a single row or none."""
    return x.float().var(dim=0).mean() if len(x) > 1 else x.new_zeros(())


class _Blocks(gemnet_oc.GemNetOCBackbone):
    """fairchem's backbone without its heads, with our scale factors and a clear error without edges."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(
            **settings,
            sbf={"name": "legendre_outer"},
            num_elements=MAX_ATOMIC_NUMBER,
            direct_forces=True,
            use_pbc=True,  # its other branch needs one more compiled package; batches always have cells
            otf_graph=True,
        )
        del self.out_mlp_E, self.out_energy, self.out_mlp_F, self.out_forces
        replace(self, ScaleFactor, Scale)

    def generate_graph_dict(self, data: FairchemBatch, cutoff: float, max_neighbors: int) -> dict[str, Tensor]:
        """Finds the edges as fairchem does, and requires that there are some."""
        graph = super().generate_graph_dict(data, cutoff, max_neighbors)
        require_edges(graph["distance"], cutoff)
        return graph
