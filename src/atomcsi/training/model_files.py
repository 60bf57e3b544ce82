"""Trained models on disk: weights as safetensors, everything else as JSON; nothing that can run code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file

from atomcsi.errors import InputError
from atomcsi.files import atomic_path, read_json, write_json
from atomcsi.models.base import Backbone
from atomcsi.models.potential import Potential

SCHEMA = "atomcsi.model/1"
WEIGHTS, CARD = "model.safetensors", "model.json"


def save_model(folder: Path, potential: Potential, card: Mapping[str, Any]) -> None:
    """Writes ``model.safetensors`` and ``model.json`` into ``folder``."""
    # Cloned because modules may share weights, which the format does not know.
    weights = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in potential.state_dict().items()
    }
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(weights, temporary)
    write_json(folder / CARD, SCHEMA, card)


def read_card(folder: Path) -> dict[str, Any]:
    """Reads the JSON beside a model's weights."""
    return read_json(folder / CARD, SCHEMA)


def load_backbone(backbone: Backbone, folder: Path) -> None:
    """Loads a pretrained model's backbone, without its heads, into ``backbone``.

    Raises:
        InputError: The weights are missing or damaged, or belong to another backbone.
    """
    path = folder / WEIGHTS
    try:
        weights = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(path, f"cannot be read: {error}", mend="delete it and run again") from error
    prefix = "backbone."
    state = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    try:
        backbone.load_state_dict(state)
    except RuntimeError as error:
        mend = f"it was trained as {read_card(folder)['backbone']}"
        raise InputError(path, "does not fit the backbone that is asked for", mend=mend) from error
    if not all(torch.isfinite(tensor).all() for tensor in state.values()):
        raise InputError(path, "holds weights that are not finite", mend="delete it and run again")
