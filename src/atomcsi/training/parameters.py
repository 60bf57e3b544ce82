"""The optimiser's groups of parameters, by depth in the network."""

from __future__ import annotations

from typing import Any

from atomcsi.errors import ConfigError
from atomcsi.models.potential import Potential
from atomcsi.training.settings import TrainSettings


def parameter_groups(potential: Potential, settings: TrainSettings) -> list[dict[str, Any]]:
    """Returns a potential's parameters with their learning rates: embedding first, then each block, the heads last.

    Raises:
        ConfigError: There are not as many factors as the backbone has blocks.
    """
    factors = settings.depth_factors
    if factors is None:
        return [{"params": list(potential.parameters())}]
    scales = [factors.embedding, *factors.blocks]
    groups: list[list[Any]] = [[] for _ in scales]
    for name, parameter in potential.backbone.named_parameters():
        depth = potential.backbone.depth(name)
        if depth >= len(groups):
            raise ConfigError(
                f"depth_factors has {len(factors.blocks)} blocks, but the backbone has {depth} or more: its parameter"
                f" {name} belongs to block {depth} (give one factor for each block)"
            )
        groups[depth].append(parameter)
    if empty := [depth for depth, group in enumerate(groups) if not group]:
        raise ConfigError(
            f"depth_factors has {len(factors.blocks)} blocks, but the backbone has none of number {empty[0]} (give"
            " one factor for each block)"
        )
    heads = {"params": list(potential.heads.parameters()), "lr": settings.learning_rate}
    return [
        {"params": group, "lr": settings.learning_rate * scale} for group, scale in zip(groups, scales, strict=True)
    ] + [heads]
