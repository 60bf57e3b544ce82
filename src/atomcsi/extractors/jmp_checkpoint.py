"""JMP's published checkpoints, ``jmp-s.pt`` and ``jmp-l.pt`` (arXiv 2310.16802; weights under CC-BY-NC).

They are checkpoints of Lightning, written while training: ``state_dict`` holds the embedding of elements, the backbone
and the heads; ``optimizer_states`` the moving averages of all parameters, from which JMP is finetuned; what else they
hold, such as the config as objects of JMP's own classes, is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atomcsi.errors import InputError
from atomcsi.extractors.checkpoints import load_weights, read_checkpoint
from atomcsi.models.jmp import JMP, SETTINGS

#: What the state dict holds that is no parameter, or names one for the second time: it has no moving average.
_NO_PARAMETER = re.compile(r"rbf\.(offset|temps)$|scale_factor$|\.seq_energy_pre\.|^task_steps\.")
#: What only JMP's forces need.
_FORCES = re.compile(r"\.(scale_rbf_F|seq_forces|dense_rbf_F|out_mlp_F)\.")


def load_jmp(path: Path, *, cutoff: float | None = None, max_neighbors: int = 30) -> JMP:
    """Builds JMP-S or JMP-L, whichever a checkpoint is of, with its weights.

    Args:
        path: The checkpoint. Nothing that it holds is run.
        cutoff: See :class:`~atomcsi.models.jmp.JMP`.
        max_neighbors: See :class:`~atomcsi.models.jmp.JMP`.

    Raises:
        InputError: The checkpoint does not exist, is none, or is of another model.
    """
    content = read_checkpoint(path, skip_objects=True)
    state = {str(key): tensor for key, tensor in content["state_dict"].items()}
    state |= _averages(path, list(state), content.get("optimizer_states"))
    weights = {_name(key): _fitted(key, tensor) for key, tensor in state.items() if _is_needed(key)}
    blocks = {key.split(".")[1] for key in weights if key.startswith("int_blocks.")}
    name = next((name for name, sizes in SETTINGS.items() if sizes["num_blocks"] == len(blocks)), None)
    if name is None:
        problem = f"is no checkpoint of {' or '.join(SETTINGS)}: it has {len(blocks)} interaction blocks"
        raise InputError(path, problem, mend="name jmp-s.pt or jmp-l.pt, or the folder of a model pretrained here")
    model = JMP(SETTINGS[name], cutoff=cutoff, max_neighbors=max_neighbors)
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


def _is_needed(key: str) -> bool:
    return key.startswith(("embedding.", "backbone.")) and not _FORCES.search(key)


def _name(key: str) -> str:
    """Turns a name of JMP's into fairchem's."""
    key = key.replace("embedding.atom_embedding.", "atom_emb.embeddings.")
    return re.sub(r"^backbone\.(bases\.)?", "", key).replace("out_mlp_E.out_mlp.", "out_mlp_E.")


def _fitted(key: str, tensor: Any) -> Any:
    """Makes a scale factor that was never fitted, which is 0 in JMP, one that has no effect."""
    if key.endswith("scale_factor") and isinstance(tensor, Tensor):
        return torch.where(tensor == 0, 1.0, tensor)
    return tensor
