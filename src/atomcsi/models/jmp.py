"""GemNet-OC as JMP (arXiv 2310.16802) changed it, on the interaction blocks of fairchem-core 1.10.

What differs from fairchem's, after JMP's public code: distances are always measured in units of 12 Angstrom, also
where the graph ends earlier; molecules and periodic structures have graphs of different reach; quadruplets start at
surface and adsorbate atoms only; atoms have more layers; the widths of the radial basis are part of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from atomcsi.models.batch import AtomBatch
from atomcsi.models.fairchem import FairchemBatch, require_edges  # before fairchem's own modules
from atomcsi.models.gemnet_oc import Scale, replace

# isort: split
from fairchem.core.models.gemnet_oc.gemnet_oc import GemNetOCBackbone
from fairchem.core.models.gemnet_oc.layers.radial_basis import GaussianBasis
from fairchem.core.models.gemnet_oc.utils import mask_neighbors
from fairchem.core.modules.scaling import ScaleFactor

#: Reach of the graphs in Angstrom that JMP was pretrained with.
MOLECULE_CUTOFF, PERIODIC_CUTOFF = 8.0, 12.0
#: Unit of distances in the radial basis, in Angstrom.
_BASIS_CUTOFF = 12.0

_COMMON: Mapping[str, int] = {
    "num_radial": 128,
    "num_spherical": 7,
    "emb_size_atom": 256,
    "emb_size_trip_in": 64,
    "emb_size_quad_out": 32,
    "emb_size_aint_in": 64,
    "emb_size_aint_out": 64,
    "emb_size_cbf": 16,
    "num_before_skip": 2,
    "num_after_skip": 2,
    "num_atom": 3,
    "num_output_afteratom": 3,
    "num_atom_emb_layers": 2,
}
#: Settings of the published models, JMP-S and JMP-L; names as in :class:`atomcsi.models.gemnet_oc.GemNetOC`.
SETTINGS: Mapping[str, Mapping[str, int]] = {
    "JMP-S": {
        **_COMMON,
        "num_blocks": 4,
        "emb_size_edge": 512,
        "emb_size_trip_out": 64,
        "emb_size_quad_in": 32,
        "emb_size_rbf": 16,
        "emb_size_sbf": 32,
        "num_concat": 1,
    },
    "JMP-L": {
        **_COMMON,
        "num_blocks": 6,
        "emb_size_edge": 1024,
        "emb_size_trip_out": 128,
        "emb_size_quad_in": 64,
        "emb_size_rbf": 32,
        "emb_size_sbf": 64,
        "num_concat": 4,
    },
}


class JMP(GemNetOCBackbone):
    """JMP's backbone up to the features of atoms that its energy heads read. Computes in float32.

    Args:
        settings: Its sizes, such as an entry of :data:`SETTINGS`.
        cutoff: Length of the longest edges in Angstrom; None for those of the pretraining: 8 in molecules, 12 in
            structures that are periodic in some direction.
        max_neighbors: Edges per atom; those of the other interactions follow in proportion, as in JMP.

    Attributes:
        node_dim: Features per atom.
        cutoff: Length of the longest edges of any structure in Angstrom; batches need more vacuum than that.
    """

    def __init__(self, settings: Mapping[str, int], *, cutoff: float | None = None, max_neighbors: int = 30) -> None:
        super().__init__(
            **settings,
            cutoff=_BASIS_CUTOFF,
            max_neighbors=max_neighbors,
            max_neighbors_qint=max_neighbors * 8 // 30,
            max_neighbors_aeaint=max_neighbors * 20 // 30,
            max_neighbors_aint=max_neighbors * 1000 // 30,
            sbf={"name": "legendre_outer"},
            quad_interaction=True,
            atom_edge_interaction=True,
            edge_atom_interaction=True,
            atom_interaction=True,
            qint_tags=[1, 2],
            num_elements=120,
            regress_forces=False,
            direct_forces=False,
            use_pbc=True,  # as for GemNetOC
            otf_graph=True,
        )
        del self.out_energy
        replace(self, ScaleFactor, Scale)
        replace(self, GaussianBasis, partial(_Gaussians, settings["num_radial"]))
        # fairchem has read it into the radial basis. From here on it is the reach of the graphs.
        self.set_cutoffs(cutoff or PERIODIC_CUTOFF, None, None, None)
        self._molecule_cutoff = cutoff or MOLECULE_CUTOFF
        self.node_dim = settings["emb_size_atom"]

    def forward(self, batch: AtomBatch) -> Tensor:
        """Computes invariant features of the atoms, shape (atoms, node_dim).

        Raises:
            AtomcsiError: No two atoms of the batch are within the cutoff.
        """
        data = FairchemBatch(batch)
        data.cutoffs = torch.where(batch.pbc.any(dim=1), self.cutoff, self._molecule_cutoff)
        return self.out_mlp_E(torch.cat(super().forward(data)["xs_E"], dim=-1))

    def generate_graph_dict(self, data: FairchemBatch, cutoff: float, max_neighbors: int) -> dict[str, Tensor]:
        """Finds the edges of the widest interaction, of which the others take theirs, up to each structure's cutoff."""
        graph = super().generate_graph_dict(data, cutoff, max_neighbors)
        near = graph["distance"] <= data.cutoffs[data.batch[graph["edge_index"][1]]]
        graph = {
            "edge_index": graph["edge_index"][:, near],
            "distance": graph["distance"][near],
            "vector": graph["vector"][near],
            # JMP counts cells the other way, which decides of two images at one distance which one is cut off.
            "cell_offset": -graph["cell_offset"][near],
            "num_neighbors": mask_neighbors(graph["num_neighbors"], near),
        }
        require_edges(graph["distance"], float(data.cutoffs.max()))
        return graph


class _Gaussians(nn.Module):
    """Gaussians of distances; stands in for fairchem's, whose width is a constant of the code.

    Args:
        number: How many.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.linspace(0.0, 1.0, number))
        self.register_buffer("temps", torch.full((number,), 0.5 * (number - 1) ** 2))

    def forward(self, distance: Tensor) -> Tensor:
        """Expands distances, shape (edges,), in units of the basis's reach, to shape (edges, number)."""
        return torch.exp(-self.temps.abs() * (distance[:, None] - self.offset).square())
