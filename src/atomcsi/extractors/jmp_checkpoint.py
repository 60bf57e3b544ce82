"""JMP's published checkpoints, ``jmp-s.pt`` and ``jmp-l.pt`` (arXiv 2310.16802; weights under CC-BY-NC).

They are checkpoints of Lightning, written while training: ``state_dict`` holds the embedding of elements, the backbone
and the heads; ``optimizer_states`` the moving averages of all parameters, from which JMP is finetuned; what else they
hold, such as the config as objects of JMP's own classes, is not needed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atomcsi.errors import InputError
from atomcsi.extractors.checkpoints import load_weights, read_checkpoint
from atomcsi.models.gemnet_oc import GemNetOC

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
#: What the state dict holds that is no parameter, or names one for the second time: it has no moving average.
_NO_PARAMETER = re.compile(r"rbf\.(offset|temps)$|scale_factor$|\.seq_energy_pre\.|^task_steps\.")
#: What the model computes itself, or names for the second time.
_NO_WEIGHT = re.compile(r"rbf\.(offset|temps)$|\.seq_energy_pre\.")
#: What only JMP's forces need.
_FORCES = re.compile(r"\.(scale_rbf_F|seq_forces|dense_rbf_F|out_mlp_F)\.")


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
    content = read_checkpoint(path, skip_objects=True)
    state = {str(key): tensor for key, tensor in content["state_dict"].items()}
    state |= _averages(path, list(state), content.get("optimizer_states"))
    weights = {_name(key): _fitted(key, tensor) for key, tensor in state.items() if _is_needed(key, direct_forces)}
    blocks = {key.split(".")[1] for key in weights if key.startswith("int_blocks.")}
    name = next((name for name in SETTINGS if _blocks(name) == len(blocks)), None)
    if name is None:
        problem = f"is no checkpoint of {' or '.join(SETTINGS)}: it has {len(blocks)} interaction blocks"
        raise InputError(path, problem, mend="name jmp-s.pt or jmp-l.pt, or the folder of a model pretrained here")
    model = jmp(name, cutoff=cutoff, max_neighbors=max_neighbors, direct_forces=direct_forces)
    load_weights(path, model, weights, name)
    return model.eval()


def _averages(path: Path, keys: Sequence[str], optimizers: Any) -> dict[str, Any]:
    """Returns the moving averages of parameters under their keys in the state dict; none if there are none."""
    optimizer = optimizers[0] if isinstance(optimizers, list) and optimizers else None
    averages = optimizer.get("ema") if isinstance(optimizer, dict) else None
    if averages is None:
        return {}
    # They have no names, only the order of the parameters.
    parameters = [key for key in keys if not _NO_PARAMETER.search(key)]
    if not isinstance(averages, (list, tuple)) or len(averages) != len(parameters):
        raise InputError(path, f"its moving averages are not those of its {len(parameters)} parameters")
    found = dict(zip(parameters, averages, strict=True))
    # The first layers of output blocks are listed under two names, and averaged under one.
    names = {key: key.replace(".seq_energy_pre.", ".layers.") for key in keys}
    return {key: found[name] for key, name in names.items() if name in found}


def _blocks(name: str) -> int:
    default = inspect.signature(GemNetOC).parameters["num_blocks"].default
    return SETTINGS[name].get("num_blocks", default)


def _is_needed(key: str, direct_forces: bool) -> bool:
    if not key.startswith(("embedding.", "backbone.")) or _NO_WEIGHT.search(key):
        return False
    return direct_forces or not _FORCES.search(key)


def _name(key: str) -> str:
    """Turns a name of JMP's into GemNetOC's."""
    key = key.replace("embedding.atom_embedding.", "atom_emb.embeddings.").removeprefix("backbone.")
    return key.replace("bases.edge_emb.", "edge_emb.").replace(".out_mlp.", ".")


def _fitted(key: str, tensor: Any) -> Any:
    """Makes a scale factor that was never fitted, which is 0 in JMP, one that has no effect."""
    if key.endswith("scale_factor") and isinstance(tensor, Tensor):
        return torch.where(tensor == 0, 1.0, tensor)
    return tensor
