"""A backbone with heads: from a batch of structures to energies and forces."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from atomcsi import registry
from atomcsi.errors import ConfigError, did_you_mean
from atomcsi.models.base import Backbone, Features
from atomcsi.models.batch import AtomBatch


@dataclass(slots=True, kw_only=True)
class Prediction:
    """What a potential says about a batch, in the units of its training targets.

    Attributes:
        energy: Energies, shape (structures,), or None without an energy head.
        forces: Forces, shape (atoms, 3), or None without a force head.
    """

    energy: Tensor | None = None
    forces: Tensor | None = None


class EnergyHead(nn.Module):
    """Energies as sums over atoms.

    Args:
        backbone: Whose features it reads.
        hidden: Width of its two hidden layers.
    """

    def __init__(self, backbone: Backbone, hidden: int) -> None:
        super().__init__()
        self.mlp = _mlp(backbone.node_dim, hidden)

    def forward(self, features: Features, batch: AtomBatch) -> Tensor:
        """Returns energies, shape (structures,)."""
        atoms = self.mlp(features.node).squeeze(-1)
        # Summed in the type of the positions: under autocast, atoms are in half precision.
        return batch.positions.new_zeros(len(batch)).index_add(0, batch.index, atoms.to(batch.positions.dtype))


class ForceHead(nn.Module):
    """Forces as sums over edges, each along its edge; not the gradient of an energy.

    Args:
        backbone: Whose features it reads.
        hidden: Width of its two hidden layers.
    """

    def __init__(self, backbone: Backbone, hidden: int) -> None:
        super().__init__()
        self.mlp = _mlp(backbone.edge_dim, hidden)

    def forward(self, features: Features, batch: AtomBatch) -> Tensor:
        """Returns forces, shape (atoms, 3)."""
        edges = self.mlp(features.edge).to(features.edge_direction.dtype) * features.edge_direction
        return edges.new_zeros(len(batch.numbers), 3).index_add(0, features.edge_target, edges)


HEADS = {"energy": EnergyHead, "forces": ForceHead}


class Potential(nn.Module):
    """A backbone with fresh heads.

    Args:
        backbone: The backbone; shared, not copied.
        heads: What to predict: ``energy``, ``forces`` or both.
        hidden: Width of the heads' hidden layers.

    Raises:
        ConfigError: A head is not known.
    """

    def __init__(self, backbone: Backbone, *, heads: Sequence[str] = ("energy", "forces"), hidden: int = 64) -> None:
        super().__init__()
        for name in heads:
            if name not in HEADS:
                raise ConfigError(f"unknown head '{name}'{did_you_mean(name, HEADS)}")
        self.backbone = backbone
        self.heads = nn.ModuleDict({name: HEADS[name](backbone, hidden) for name in heads})

    def forward(self, batch: AtomBatch) -> Prediction:
        """Predicts what the heads are for."""
        features = self.backbone(batch)
        return Prediction(**{name: head(features, batch) for name, head in self.heads.items()})


def build_backbone(settings: Mapping[str, Any]) -> Backbone:
    """Builds a backbone from the content of its YAML file; draws its weights from torch's global generator.

    Args:
        settings: ``implementation``, a name in :data:`atomcsi.registry.BACKBONES`, and its ``settings``.

    Raises:
        ConfigError: The implementation, or one of its settings, is not known.
    """
    name, options = settings["implementation"], settings.get("settings", {})
    backbone = registry.load(registry.BACKBONES, name)
    known = inspect.signature(backbone).parameters
    for option in options:
        if option not in known:
            raise ConfigError(f"unknown setting '{option}' of {name}{did_you_mean(option, known)}")
    return backbone(**options)


def _mlp(inputs: int, hidden: int) -> nn.Sequential:
    """Two hidden layers and one output, small at first so that training starts near the mean of the targets."""
    last = nn.Linear(hidden, 1)
    nn.init.normal_(last.weight, std=0.1 * hidden**-0.5)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)
