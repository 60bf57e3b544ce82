"""JMP's models (arXiv 2310.16802): GemNet-OC with more layers of atoms, and with conventions of its own for graphs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atomcsi.errors import InputError
from atomcsi.models.checkpoints import load_weights
from atomcsi.models.gemnet_oc.model import GemNetOC
from atomcsi.models.gemnet_oc.published import published_weights

#: Elements that JMP has embeddings for.
_ELEMENTS = 120
#: Reach of the graphs in Angstrom that JMP was pretrained with; that in periodic structures is also its unit of
#: distances, wherever a graph ends.
MOLECULE_CUTOFF, PERIODIC_CUTOFF = 8.0, 12.0
#: What makes GemNet-OC JMP, after JMP's public code.
_JMP: Mapping[str, Any] = {
    "num_atom_emb_layers": 2,
    "num_global_out_layers": 2,
    "num_elements": _ELEMENTS,
    "basis_cutoff": PERIODIC_CUTOFF,
    "envelope": "basis",
    "neighbor_rule": "jmp",
    "qint_tags": (1, 2),
}
#: Settings of the published models; those that are not named are GemNetOC's defaults.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "JMP-S": {},
    "JMP-L": {
        "num_blocks": 6,
        "emb_size_edge": 1024,
        "emb_size_trip_out": 128,
        "emb_size_quad_in": 64,
        "emb_size_rbf": 32,
        "emb_size_sbf": 64,
        "num_concat": 4,
    },
}


def jmp(name: str, *, cutoff: float | None = None, max_neighbors: int = 30, direct_forces: bool = False) -> GemNetOC:
    """Builds a GemNet-OC as JMP changed it, without weights.

    Args:
        name: An entry of :data:`SETTINGS`.
        cutoff: Length of the longest edges in Angstrom; None for those of the pretraining: 8 in molecules, 12 in
            structures that are periodic in some direction.
        max_neighbors: Edges per atom; those of the other interactions follow in proportion, as in JMP.
        direct_forces: Whether to have features of edges too.
    """
    return GemNetOC(
        **{**_JMP, **SETTINGS[name]},
        cutoff=cutoff or PERIODIC_CUTOFF,
        molecule_cutoff=None if cutoff else MOLECULE_CUTOFF,
        max_neighbors=max_neighbors,
        max_neighbors_qint=max_neighbors * 8 // 30,
        max_neighbors_aeaint=max_neighbors * 20 // 30,
        max_neighbors_aint=max_neighbors * 1000 // 30,
        direct_forces=direct_forces,
    )


def load_jmp(
    path: Path, *, cutoff: float | None = None, max_neighbors: int = 30, direct_forces: bool = False
) -> GemNetOC:
    """Builds JMP-S or JMP-L, whichever a checkpoint is of, with its weights.

    Args:
        path: The checkpoint. Nothing that it holds is run.
        cutoff: See :func:`jmp`.
        max_neighbors: See :func:`jmp`.
        direct_forces: See :func:`jmp`.

    Raises:
        InputError: The checkpoint does not exist, is none, or is of another model.
    """
    weights = published_weights(path, direct_forces=direct_forces)
    blocks = {key.split(".")[1] for key in weights if key.startswith("int_blocks.")}
    name = next((name for name in SETTINGS if _blocks(name) == len(blocks)), None)
    if name is None:
        problem = f"is no checkpoint of {' or '.join(SETTINGS)}: it has {len(blocks)} interaction blocks"
        raise InputError(path, problem, mend="name jmp-s.pt or jmp-l.pt, or the folder of a model pretrained here")
    model = jmp(name, cutoff=cutoff, max_neighbors=max_neighbors, direct_forces=direct_forces)
    load_weights(path, model, weights, name)
    return model.eval()


def _blocks(name: str) -> int:
    default = inspect.signature(GemNetOC).parameters["num_blocks"].default
    return SETTINGS[name].get("num_blocks", default)
