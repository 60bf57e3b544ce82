"""Test errors of a trained model in the task's unit: in all, per element and per class of structures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from atomcsi.errors import AtomcsiError
from atomcsi.models.batch import AtomBatch
from atomcsi.progress import Progress
from atomcsi.structure import MAX_ATOMIC_NUMBER
from atomcsi.targets import METRIC_UNITS
from atomcsi.training.data import LabelledStructures
from atomcsi.training.loading import Batches, loader
from atomcsi.training.model_files import TrainedModel
from atomcsi.training.settings import TrainSettings

#: More classes than this, as in QM9, say nothing one by one.
_MOST_CLASSES = 30


@torch.no_grad()
def evaluate(model: TrainedModel, structures: LabelledStructures, unit: str, settings: TrainSettings) -> dict[str, Any]:
    """Compares a model's predictions with the labels.

    Args:
        model: The model; it predicts what ``structures`` are labelled with.
        structures: The test structures.
        unit: The unit of errors.
        settings: Sizes of batches.

    Returns:
        ``mae``, the mean absolute error in ``unit`` per force component, or per structure; ``labels``, the number of
        errors that it averages; ``by_element`` and ``by_class``, the same by symbol and by class of the structures,
        where they make a difference. An atom's force error counts for its element, the error of a scalar for all
        elements of its structure. Classes have the error of their probability, and ``roc_auc``, ``accuracy`` and
        ``cross_entropy`` (nats) besides.

    Raises:
        AtomcsiError: An error is not finite.
    """
    elements = _Means(MAX_ATOMIC_NUMBER + 1)
    names = structures.store.metadata["classes"]
    classes, class_of = _Means(len(names)), structures.store.classes[structures.indices]
    found, labels, done = [], [], 0
    progress = Progress("test", total=len(structures), unit="structures")
    for loaded in loader(structures, Batches.of(structures, settings), collate=model.collate):
        batch = loaded.atoms.to(model.device)
        prediction = model.predict(batch)
        if structures.target == "forces":
            errors = (prediction.forces - batch.forces).double().abs().mean(dim=1).cpu().numpy()
            numbers, index = batch.numbers.cpu().numpy(), batch.index.cpu().numpy()
            elements.add(numbers, errors, weight=3)
            classes.add(class_of[done + index], errors, weight=3)
        else:
            errors = (prediction.energy - batch.energy).abs().cpu().numpy()
            numbers, index = _elements_of_structures(batch)
            elements.add(numbers, errors[index])
            classes.add(class_of[done : done + len(batch)], errors)
            found.append(prediction.energy.cpu().numpy())
            labels.append(batch.energy.cpu().numpy())
        done += len(batch)
        progress.advance(len(batch))
    if not math.isfinite(classes.total):
        raise AtomcsiError("the test error is not finite (lower learning_rate, or check the test labels)")
    factor = METRIC_UNITS[unit]
    metrics: dict[str, Any] = {"mae": classes.total / classes.labels * factor, "labels": classes.labels}
    if model.classifies:
        metrics |= classification_metrics(np.concatenate(found), np.concatenate(labels))
    metrics["by_element"] = elements.records(chemical_symbols, factor)
    metrics["by_class"] = classes.records(names, factor) if 1 < classes.groups <= _MOST_CLASSES else {}
    return metrics


def classification_metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Metrics of a binary classification.

    Args:
        probabilities: Of the class 1, shape (structures,).
        labels: Classes 0 and 1, shape (structures,).

    Returns:
        ``roc_auc``: the probability that a structure of class 1 has a larger one than a structure of class 0; None if
        there are structures of one class only. ``accuracy`` at 0.5 and ``cross_entropy`` in nats.
    """
    positive = labels > 0.5
    return {
        "roc_auc": float(roc_auc_score(positive, probabilities)) if len(set(positive.tolist())) == 2 else None,
        "accuracy": float(accuracy_score(positive, probabilities > 0.5)),
        "cross_entropy": float(log_loss(positive, probabilities, labels=[False, True])),
    }


class _Means:
    """Sums of errors by group, from which means follow."""

    def __init__(self, groups: int) -> None:
        self._sums, self._counts = np.zeros(groups), np.zeros(groups, np.int64)

    def add(self, group: np.ndarray, errors: np.ndarray, weight: int = 1) -> None:
        """Counts errors of shape (n,) for the groups (n,); each is a mean of ``weight`` labels."""
        self._sums += weight * np.bincount(group, errors, minlength=len(self._sums))
        self._counts += weight * np.bincount(group, minlength=len(self._counts))

    @property
    def total(self) -> float:
        return float(self._sums.sum())

    @property
    def labels(self) -> int:
        return int(self._counts.sum())

    @property
    def groups(self) -> int:
        return int((self._counts > 0).sum())

    def records(self, names: list[str], factor: float) -> dict[str, Mapping[str, float]]:
        return {
            names[group]: {
                "mae": float(self._sums[group] / self._counts[group] * factor),
                "labels": int(self._counts[group]),
            }
            for group in np.flatnonzero(self._counts)
        }


def _elements_of_structures(batch: AtomBatch) -> tuple[np.ndarray, np.ndarray]:
    """Returns each structure's elements once: atomic numbers, and the structure of each, shape (pairs,) both."""
    pairs = torch.unique(torch.stack([batch.index, batch.numbers]), dim=1).cpu().numpy()
    return pairs[1], pairs[0]
