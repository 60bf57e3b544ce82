"""Trained models on disk: weights as safetensors, everything else as JSON; nothing that can run code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from ase.data import chemical_symbols
from safetensors.torch import load_file, save_file
from torch import Tensor

from atomcsi.catalogue import Graph
from atomcsi.errors import AtomcsiError, ConfigError, InputError, did_you_mean
from atomcsi.files import atomic_path, digest, read_json, write_json
from atomcsi.models.base import Backbone, Collate
from atomcsi.models.batch import AtomBatch
from atomcsi.models.potential import Potential, Prediction, build_backbone
from atomcsi.targets import LABELS, NOISE
from atomcsi.training.normalisation import Normaliser

SCHEMA, METRICS_SCHEMA = "atomcsi.model/2", "atomcsi.finetuning/2"
WEIGHTS, CARD, METRICS = "model.safetensors", "model.json", "metrics.json"
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
    def target(self) -> str:
        """``forces``, ``energy``, or the property that stands in the energy's place."""
        return self.card["target"]

    @property
    def predicts_property(self) -> bool:
        """Whether it predicts a property, and no energy."""
        return self.target not in LABELS

    @property
    def predicted(self) -> tuple[str, ...]:
        """What a model of energies or forces predicts, as ASE calls it."""
        energy = "energy" in self.potential.heads
        return (
            *(("energy", "free_energy") if energy else ()),
            *(("forces",) if "forces" in self.card["heads"] else ()),
        )

    @property
    def classifies(self) -> bool:
        """Whether its scalar is the probability of a class."""
        return self.card["settings"]["scalar_loss"] == "cross-entropy"

    def dataset(self, name: str | None = None) -> int:
        """Returns which of its heads stand for a dataset, as in :attr:`AtomBatch.dataset`.

        Args:
            name: The dataset; may be None for a model of a single one.

        Raises:
            ConfigError: The model was not trained on that dataset, or on several of which none is named.
        """
        names = [record["dataset"] for record in self.card["datasets"]]
        if name is None and len(names) > 1:
            raise ConfigError(f"the model has heads of {', '.join(names)}: say of which dataset energies are meant")
        if name is not None and name not in names:
            raise ConfigError(f"the model has no heads of the dataset '{name}'{did_you_mean(name, names)}")
        return 0 if name is None else names.index(name)

    def require_elements(self, numbers: np.ndarray, source: str, dataset: int = 0) -> None:
        """Refuses atoms of elements that the model has never seen.

        Args:
            numbers: Atomic numbers, shape (atoms,).
            source: Name of the structure.
            dataset: The dataset that it is taken to be of.

        Raises:
            AtomcsiError: The dataset that the model was trained on has no such element.
        """
        trained = self.card["datasets"][dataset]
        symbols = {chemical_symbols[number] for number in np.unique(numbers)}
        if unseen := sorted(symbols - set(trained["elements"])):
            raise AtomcsiError(
                f"'{source}' holds {', '.join(unseen)}, which the model does not know: it was trained on"
                f" {trained['dataset']}, which has {', '.join(trained['elements'])} only"
            )

    def predict(self, batch: AtomBatch) -> Prediction:
        """Predicts energies (float64) in eV, or the scalar in their place in its own unit, and forces in eV/Angstrom.

        Args:
            batch: Structures, on the model's device.

        Raises:
            AtomcsiError: They do not fit into its memory.
        """
        try:
            found = self.potential(batch)
        except torch.OutOfMemoryError as error:
            problem = f"out of memory; {len(batch)} structures of {len(batch.numbers)} atoms in a batch"
            raise AtomcsiError(f"{problem} (take fewer at once, or a device with more memory)") from error
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


def load_model(folder: Path, device: str = "auto") -> TrainedModel:
    """Loads a trained model with its heads, to predict with it.

    Args:
        folder: Folder of ``model.safetensors`` and ``model.json``.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU if there is one.

    Raises:
        InputError: A file is missing or damaged, they do not belong together, or the model only knows noise.
    """
    card = read_card(folder)
    if card.get("target") == NOISE:
        raise InputError(folder / CARD, "tells of a model that was pretrained to denoise", mend="finetune it on a task")
    try:
        potential = Potential(
            build_backbone(card["backbone"]),
            heads=card["heads"],
            forces=card["settings"]["forces"],
            readout=card["readout"],
            datasets=len(card["datasets"]),
        )
        normaliser = Normaliser.from_records(card["normalisation"])
        graphs = [None if graph is None else Graph.model_validate(graph) for graph in card["graphs"]]
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        problem = f"tells of no model that this version knows: {' '.join(str(error).split())}"
        raise InputError(folder / CARD, problem, mend="train it again") from error
    try:
        potential.load_state_dict(_weights(folder / WEIGHTS))
    except RuntimeError as error:
        raise InputError(folder / WEIGHTS, f"does not belong to {CARD} beside it", mend="copy both anew") from error
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.device(device)
    collate = potential.backbone.collate(graphs)
    return TrainedModel(potential.to(where).eval(), normaliser, where, collate, card)


def load_start(backbone: Backbone, init: Path) -> None:
    """Loads what a finetuning starts from into a backbone, without heads.

    Args:
        backbone: The backbone.
        init: Folder of a model that was trained here, or a checkpoint in its authors' layout.

    Raises:
        InputError: The weights are missing or damaged, or belong to another backbone.
    """
    if init.is_dir():
        load_backbone(backbone, init)
    else:
        backbone.load_published(init)


def start_record(init: Path) -> dict[str, Any]:
    """Returns what a finetuning's start is known by: for a model of ours also what it was trained on.

    Args:
        init: As for :func:`load_start`.

    Raises:
        InputError: It is missing.
    """
    if init.is_dir():
        card = read_card(init)
        known = {"dataset": card["dataset"], "seed": card["seed"], "budget": card["budget"]}
        return known | {"sha256": digest(init / WEIGHTS, "sha256")}
    if not init.is_file():
        raise InputError(init, "is missing", mend="correct the path of the model or checkpoint to start from")
    return {"checkpoint": init.name, "sha256": digest(init, "sha256")}


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
