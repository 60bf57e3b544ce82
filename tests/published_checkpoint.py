"""Checkpoints in the layout of fairchem's published ones, of models of any size."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import atomcsi.models.fairchem  # noqa: F401 - before fairchem's own modules

# isort: split
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone
from fairchem.core.models.equiformer_v2.heads import EqV2ScalarHead, EqV2VectorHead

#: Settings of a model that takes no time.
SMALL = {
    "num_layers": 1,
    "sphere_channels": 8,
    "attn_hidden_channels": 8,
    "num_heads": 2,
    "attn_alpha_channels": 4,
    "attn_value_channels": 4,
    "ffn_hidden_channels": 8,
    "lmax_list": [2],
    "mmax_list": [1],
    "grid_resolution": 18,
    "edge_channels": 8,
}


def small_config(**settings: Any) -> dict[str, Any]:
    """The config that a checkpoint of the small model holds, with other settings where they are given."""
    return {"model": {"name": "equiformer_v2", **SMALL, **settings}}


def publish(
    path: Path,
    model: EquiformerV2Backbone,
    *,
    config: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> int:
    """Writes a checkpoint, heads included; returns its number of parameters."""
    heads = {"energy_block": EqV2ScalarHead(model).energy_block, "force_block": EqV2VectorHead(model).force_block}
    state = dict(model.state_dict())
    for name, head in heads.items():
        state |= {f"{name}.{key}": value for key, value in head.state_dict().items()}
    content = {"state_dict": {f"module.module.{key}": value for key, value in state.items()}, **(extra or {})}
    torch.save(content if config is None else {**content, "config": config}, path)
    return sum(parameter.numel() for part in (model, *heads.values()) for parameter in part.parameters())
