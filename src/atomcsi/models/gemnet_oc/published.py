"""GemNet-OC's published checkpoints: JMP's (arXiv 2310.16802; weights under CC-BY-NC), and those of fairchem-core 1.10.

JMP's ``jmp-s.pt`` and ``jmp-l.pt`` are checkpoints of Lightning, written while training: ``state_dict`` holds the
embedding of elements, the backbone and the heads; ``optimizer_states`` the moving averages of all parameters, from
which JMP is finetuned; what else they hold, such as the config as objects of JMP's own classes, is not needed.
fairchem's hold ``state_dict`` and ``config``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atomcsi.errors import InputError
from atomcsi.models.checkpoints import read_checkpoint

#: What the state dict holds that is no parameter, or names one for the second time: it has no moving average.
_NO_PARAMETER = re.compile(r"rbf\.(offset|temps)$|scale_factor$|\.seq_energy_pre\.|^task_steps\.")
#: What the model computes itself, or names for the second time.
_NO_WEIGHT = re.compile(r"rbf\.(offset|temps)$|\.seq_energy_pre\.")
#: What only direct forces need.
_FORCES = re.compile(r"(^|\.)(scale_rbf_F|seq_forces|dense_rbf_F|out_mlp_F)\.")
#: What of JMP's state dict belongs to the backbone, and what of fairchem's does not.
_JMP_BACKBONE, _FAIRCHEM_HEADS = re.compile(r"(embedding|backbone)\."), re.compile(r"out_(energy|forces)\.")


def published_weights(path: Path, *, direct_forces: bool = True) -> dict[str, Tensor]:
    """Reads a checkpoint in either layout; nothing in it is run.

    Args:
        path: The checkpoint.
        direct_forces: Whether to return the weights of what only direct forces need, too.

    Returns:
        Weights under the names of :class:`~atomcsi.models.gemnet_oc.model.GemNetOC`, without heads.

    Raises:
        InputError: The checkpoint does not exist, is none, holds code, or is damaged.
    """
    content = read_checkpoint(path, skip_objects=True)
    state = {re.sub(r"^(module\.)+", "", str(key)): tensor for key, tensor in content["state_dict"].items()}
    if any(key.startswith("backbone.int_blocks.") for key in state):
        state |= _averages(path, list(state), content.get("optimizer_states"))
        state = {_from_jmp(key): _fitted(key, tensor) for key, tensor in state.items() if _JMP_BACKBONE.match(key)}
    else:
        state = {_from_fairchem(key): tensor for key, tensor in state.items() if not _FAIRCHEM_HEADS.match(key)}
    return {
        key: tensor
        for key, tensor in state.items()
        if not _NO_WEIGHT.search(key) and (direct_forces or not _FORCES.search(key))
    }


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


def _from_jmp(key: str) -> str:
    """Turns a name of JMP's into GemNetOC's."""
    key = key.replace("embedding.atom_embedding.", "atom_emb.embeddings.").removeprefix("backbone.")
    return key.replace("bases.edge_emb.", "edge_emb.").replace(".out_mlp.", ".")


def _from_fairchem(key: str) -> str:
    """Turns a name of fairchem's into GemNetOC's."""
    return f"bases.{key}" if key.startswith("mlp_") else key


def _fitted(key: str, tensor: Any) -> Any:
    """Makes a scale factor that was never fitted, which is 0 in JMP, one that has no effect."""
    if key.endswith("scale_factor") and isinstance(tensor, Tensor):
        return torch.where(tensor == 0, 1.0, tensor)
    return tensor
