"""The optimiser's groups of parameters, by depth in the network."""

from __future__ import annotations

from typing import Any

import numpy as np

from atomcsi.models.potential import Potential
from atomcsi.training.settings import TrainSettings


def parameter_groups(potential: Potential, settings: TrainSettings) -> list[dict[str, Any]]:
    """Returns a potential's parameters with their learning rates: embedding first, then each block, the heads last.

    Factors for another number of blocks than the backbone has are interpolated between the middles of blocks, so that
    a task's settings are good for any backbone.

    Raises:
        ConfigError: The backbone does not say how deep its parameters are.
    """
    factors = settings.depth_factors
    if factors is None:
        return [{"params": list(potential.parameters())}]
    by_depth: dict[int, list[Any]] = {}
    for name, parameter in potential.backbone.named_parameters():
        by_depth.setdefault(potential.backbone.depth(name), []).append(parameter)
    blocks, given = max(by_depth), len(factors.blocks)
    scales = np.interp((np.arange(blocks) + 0.5) / blocks, (np.arange(given) + 0.5) / given, factors.blocks)
    groups = [
        {"params": by_depth[depth], "lr": settings.learning_rate * float(scale)}
        for depth, scale in enumerate([factors.embedding, *scales])
        if depth in by_depth
    ]
    return [*groups, {"params": list(potential.heads.parameters()), "lr": settings.learning_rate}]
