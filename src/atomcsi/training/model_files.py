"""Trained models on disk: weights as safetensors, everything else as JSON; nothing that can run code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from atomcsi.errors import InputError
from atomcsi.files import atomic_path, read_json, write_json
from atomcsi.models.base import Backbone, Collate
from atomcsi.models.batch import AtomBatch
from atomcsi.models.potential import Potential, Prediction
from atomcsi.training.normalisation import Normaliser

SCHEMA = "atomcsi.model/2"
WEIGHTS, CARD = "model.safetensors", "model.json"
_AGAIN = "delete it and run again"


@dataclass(frozen=True)
class TrainedModel:
    """A trained potential.

    Attributes:
        potential: In evaluation mode.
        normaliser: Turns its predictions into eV.
        device: Where it is.
        collate: Turns structures into its batches.
        card: What was trained, on what, how, and what it took.
    """

    potential: Potential
    normaliser: Normaliser
    device: torch.device
    collate: Collate
    card: Mapping[str, Any]

    @property
    def classifies(self) -> bool:
        """Whether its scalar is the probability of a class."""
        return self.card["settings"]["scalar_loss"] == "cross-entropy"

    def predict(self, batch: AtomBatch) -> Prediction:
        """Predicts energies (float64) in eV, or the scalar in their place in its own unit, and forces in eV/Angstrom.

        Args:
            batch: Structures, on the model's device.
        """
        found = self.potential(batch)
        energy = forces = None
        if found.energy is not None:
            energy = (
                torch.sigmoid(found.energy.double()) if self.classifies else self.normaliser.energy(found.energy, batch)
            )
        if found.forces is not None:
            forces = self.normaliser.forces(found.forces, batch)
        return Prediction(energy=energy, forces=forces)


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
    prefix = "backbone."
    state = {name.removeprefix(prefix): w for name, w in _weights(path).items() if name.startswith(prefix)}
    try:
        backbone.load_state_dict(state)
    except RuntimeError as error:
        mend = f"it was trained as {read_card(folder)['backbone']}"
        raise InputError(path, "does not fit the backbone that is asked for", mend=mend) from error


def _weights(path: Path) -> dict[str, Tensor]:
    """Reads weights and refuses those that are not finite."""
    try:
        weights = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(path, f"cannot be read: {error}", mend=_AGAIN) from error
    if not all(torch.isfinite(tensor).all() for tensor in weights.values()):
        raise InputError(path, "holds weights that are not finite", mend=_AGAIN)
    return weights
