"""Pretraining and finetuning: two ways to start and to end a fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from atomcsi.catalogue import Graph
from atomcsi.config import METRIC_UNITS, BackboneSpec, Task, TrainSettings
from atomcsi.errors import AtomcsiError
from atomcsi.files import remove, write_json
from atomcsi.progress import Progress
from atomcsi.structure_lmdb import StructureLMDB
from atomcsi.training.data import LabelledStructures
from atomcsi.training.fit import Fitted, check_elements, fit
from atomcsi.training.loading import Batches, loader
from atomcsi.training.model_files import read_card, save_model
from atomcsi.training.processes import ONE_DEVICE, Execution, process_rank

METRICS_SCHEMA = "atomcsi.finetuning/1"


def pretrain(
    train: StructureLMDB,
    val: StructureLMDB,
    folder: Path,
    *,
    backbone: BackboneSpec,
    settings: TrainSettings,
    seed: int,
    graph: Graph | None = None,
    execution: Execution = ONE_DEVICE,
) -> None:
    """Pretrains a backbone on N structures of one upstream dataset for E epochs and writes the model.

    Args:
        train: Train split of the upstream.
        val: Validation split of the upstream; picks the best epoch.
        folder: Where ``model.safetensors`` and ``model.json`` go.
        backbone: What is trained.
        settings: Budget and schedule.
        seed: Seed of the draw, the weights and the order.
        graph: Graph of the dataset's structures; the backbone's own if None.
        execution: Where it runs.

    Raises:
        AtomcsiError: The data cannot be trained on, the loss is not finite, or a signal asked to stop.
    """
    title = f"pretrain {train.metadata['provenance']['dataset']} seed {seed}"
    fitted = fit(
        train, val, folder,
        backbone=backbone, settings=settings, target="forces", init=None, graphs=[graph], seed=seed,
        execution=execution, title=title,
    )  # fmt: skip
    if process_rank() > 0:
        return
    save_model(folder, fitted.potential, fitted.card)
    remove(folder / "checkpoints")


def finetune(
    splits: Mapping[str, StructureLMDB],
    folder: Path,
    *,
    task: Task,
    task_name: str,
    init: Path | None,
    backbone: BackboneSpec,
    seed: int,
    graph: Graph | None = None,
    execution: Execution = ONE_DEVICE,
) -> None:
    """Trains a pretrained backbone with new heads on a task, tests its best epoch and writes model and metrics.

    Args:
        splits: The downstream dataset's train, val and test split.
        folder: Where ``model.safetensors``, ``model.json`` and ``metrics.json`` go.
        task: Target, unit and schedule.
        task_name: The task's id.
        init: Folder of the pretrained model; None to start from scratch.
        backbone: What is trained; must be what ``init`` was trained with.
        seed: Seed of the draw, the heads and the order.
        graph: Graph of the dataset's structures; the backbone's own if None.
        execution: Where it runs.

    Raises:
        AtomcsiError: As for :func:`pretrain`, or the pretrained model does not fit.
    """
    start = "scratch" if init is None else read_card(init)["dataset"]
    if task.target != "forces":
        check_elements(splits["train"], splits["test"])
    fitted = fit(
        splits["train"], splits["val"], folder,
        backbone=backbone, settings=task.finetune, target=task.target, init=init, graphs=[graph], seed=seed,
        execution=execution, title=f"finetune {task_name} from {start} seed {seed}",
    )  # fmt: skip
    if process_rank() > 0:
        return
    save_model(folder, fitted.potential, fitted.card)
    test = LabelledStructures(splits["test"], target=task.target)
    metrics = {
        "task": task_name,
        "dataset": fitted.card["dataset"],
        "target": task.target,
        "unit": task.unit,
        **evaluate(fitted, test, task.unit, task.finetune),
        "structures": len(test),
        "init": start,
        "seed": seed,
        "seconds": fitted.card["seconds"],
        "budget": task.finetune.budget,
    }
    write_json(folder / "metrics.json", METRICS_SCHEMA, metrics)
    remove(folder / "checkpoints")


@torch.no_grad()
def evaluate(fitted: Fitted, structures: LabelledStructures, unit: str, settings: TrainSettings) -> dict[str, float]:
    """Mean absolute error of a potential: per force component, or per structure's energy.

    Returns:
        ``mae`` in ``unit`` and ``labels``, the number of errors that it averages.

    Raises:
        AtomcsiError: An error is not finite.
    """
    total, count = 0.0, 0
    progress = Progress("test", total=len(structures), unit="structures")
    for loaded in loader(structures, Batches(structures.natoms, settings), collate=fitted.collate):
        batch = loaded.atoms.to(fitted.device)
        prediction = fitted.potential(batch)
        if structures.target == "forces":
            error = prediction.forces * fitted.normaliser.force_scale - batch.forces
        else:
            error = fitted.normaliser.energy(prediction.energy, batch) - batch.energy
        total += float(error.double().abs().sum())
        count += error.numel()
        progress.advance(len(batch))
    if not math.isfinite(total):
        raise AtomcsiError("the test error is not finite (lower learning_rate, or check the test labels)")
    return {"mae": total / count * METRIC_UNITS[unit], "labels": count}
