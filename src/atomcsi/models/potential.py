"""A backbone with heads: from a batch of structures to energies and forces."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from atomcsi import registry
from atomcsi.errors import ConfigError, did_you_mean
from atomcsi.models.base import Backbone
from atomcsi.models.batch import AtomBatch
from atomcsi.models.heads import ForceHead, Readout, ScalarHead

#: Where forces come from: a head of their own, or the energy.
Forces = Literal["direct", "gradient"]
HEADS = ("energy", "forces")


@dataclass(slots=True, kw_only=True)
class Prediction:
    """What a potential says about a batch, in the units of its training targets.

    Attributes:
        energy: Energies, or the scalar that is trained on in their place, shape (structures,), or None without an
            energy head; logits where that scalar is a class.
        forces: Forces, shape (atoms, 3), or None if they are not predicted.
    """

    energy: Tensor | None = None
    forces: Tensor | None = None


class Potential(nn.Module):
    """A backbone with fresh heads.

    Args:
        backbone: The backbone; shared, not copied.
        heads: What to predict: ``energy``, ``forces`` or both.
        forces: ``direct``: by a head of their own, which is fast but conserves no energy. ``gradient``: minus the
            derivative of the energy by the positions; the energy is then predicted too.
        readout: How the numbers of atoms become the energy of their structure, or what stands in its place.
        datasets: Datasets of the mix that is trained on, each with heads of its own (:attr:`AtomBatch.dataset`).
        hidden: Width of the heads' hidden layers.

    Raises:
        ConfigError: A head or readout is not known.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        heads: Sequence[str] = HEADS,
        forces: Forces = "direct",
        readout: Readout = "sum",
        datasets: int = 1,
        hidden: int = 64,
    ) -> None:
        super().__init__()
        for name in heads:
            if name not in HEADS:
                raise ConfigError(f"unknown head '{name}'{did_you_mean(name, HEADS)}")
        self.backbone = backbone
        self.gradient = "forces" in heads and forces == "gradient"
        self.heads = nn.ModuleDict()
        if "energy" in heads or self.gradient:
            self.heads["energy"] = ScalarHead(backbone, readout=readout, datasets=datasets, hidden=hidden)
        if "forces" in heads and not self.gradient:
            self.heads["forces"] = ForceHead(backbone, datasets=datasets, hidden=hidden)

    def forward(self, batch: AtomBatch) -> Prediction:
        """Predicts what the heads are for."""
        if self.gradient:
            return self._energy_and_gradient(batch)
        features = self.backbone(batch)
        return Prediction(**{name: head(features, batch) for name, head in self.heads.items()})

    def _energy_and_gradient(self, batch: AtomBatch) -> Prediction:
        with torch.enable_grad():  # validation and prediction run without
            positions = batch.positions.detach().requires_grad_()
            batch = replace(batch, positions=positions)
            energy = self.heads["energy"](self.backbone(batch), batch)
            # Structures do not see each other, so that one sum has all their gradients; atoms without edges have none.
            (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=self.training, materialize_grads=True)
        return Prediction(energy=energy if self.training else energy.detach(), forces=-slope)


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
