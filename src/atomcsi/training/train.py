"""Pretraining and finetuning: two ways to start and to end a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from atomcsi.catalogue import Graph
from atomcsi.config import BackboneSpec, Task, TrainSettings
from atomcsi.difficulty import choose_by
from atomcsi.errors import ConfigError
from atomcsi.files import remove, write_json
from atomcsi.mixes import NamedMix, structures_of
from atomcsi.mixtures import read_mixes
from atomcsi.report.model_card import write_model_card
from atomcsi.structure_lmdb import StructureLMDB
from atomcsi.targets import NOISE, Target
from atomcsi.training.data import LabelledStructures
from atomcsi.training.evaluation import evaluate
from atomcsi.training.fit import fit
from atomcsi.training.model_files import METRICS, METRICS_SCHEMA, read_card, save_model
from atomcsi.training.processes import ONE_DEVICE, Execution
from atomcsi.training.training_data import TrainingData, check_elements


def pretrain(
    train: Sequence[StructureLMDB],
    val: Sequence[StructureLMDB],
    folder: Path,
    *,
    backbone: BackboneSpec,
    settings: TrainSettings,
    seed: int,
    mix: NamedMix | None = None,
    mixtures: Path | None = None,
    difficulty: Path | None = None,
    graphs: Sequence[Graph | None] | None = None,
    execution: Execution = ONE_DEVICE,
) -> None:
    """Pretrains a backbone on N structures of upstream datasets for E epochs and writes the model.

    The model learns energies and forces, or to tell noise from positions where the settings ask for that.

    Args:
        train: Train split of each upstream.
        val: Validation split of each, in the same order; they pick the best weights.
        folder: Where ``model.safetensors``, ``model.json`` and ``README.md`` go.
        backbone: What is trained.
        settings: Budget and schedule.
        seed: Seed of the draws, the weights and the order.
        mix: How many structures each upstream gives; needed for several.
        mixtures: What :func:`atomcsi.mixtures.measure_mixes` found, for the mix of least CSI.
        difficulty: What :func:`atomcsi.training.scoring.score` wrote, for a mix by difficulty.
        graphs: Graph of each upstream's structures; the backbone's own where None.
        execution: Where it runs.

    Raises:
        AtomcsiError: The data cannot be trained on, the loss is not finite, or a signal asked to stop.
    """
    graphs = [None] * len(train) if graphs is None else graphs
    if not len(train) == len(val) == len(graphs):
        raise ConfigError(
            f"{len(train)} files to train on, {len(val)} to validate on and {len(graphs)} graphs: give one a dataset"
        )
    counts, chosen = [settings.structures], None
    if mix is not None:
        parts = _parts_of_mix(mix, train, settings.structures, mixtures)
        train, val, graphs = ([each[part] for part in parts] for each in (train, val, graphs))
        counts = list(parts.values())
        settings = settings.model_copy(update={"structures": sum(counts)})
        if mix.mix.kind == "ranked":
            if difficulty is None:
                raise ConfigError("a mix by difficulty needs the difficulties of its structures (give --difficulty)")
            chosen = choose_by(mix.mix, difficulty, train[0], settings.structures)
    elif len(train) > 1:
        raise ConfigError(f"{len(train)} datasets to pretrain on need a mix that says how many structures of each")
    target = "forces" if settings.denoise_sigma is None else NOISE
    data = TrainingData.draw(
        train, val, target=Target(target=target), settings=settings, seed=seed, counts=counts, graphs=graphs,
        name=None if mix is None else mix.name, chosen=chosen,
    )  # fmt: skip
    model = fit(
        data, folder, backbone=backbone, settings=settings, init=None, seed=seed, execution=execution,
        title=f"pretrain {data.name} seed {seed}",
    )  # fmt: skip
    if model is None:
        return
    save_model(folder, model.potential, model.card)
    write_model_card(folder)
    remove(folder / "checkpoints")


def finetune(
    splits: Mapping[str, StructureLMDB],
    folder: Path,
    *,
    task: Task,
    task_name: str,
    init: Path | None,
    init_name: str | None = None,
    backbone: BackboneSpec,
    seed: int,
    graph: Graph | None = None,
    execution: Execution = ONE_DEVICE,
) -> None:
    """Trains a pretrained backbone with new heads on a task, tests its best epoch and writes model and metrics.

    Args:
        splits: The downstream dataset's train, val and test split.
        folder: Where ``model.safetensors``, ``model.json``, ``metrics.json`` and ``README.md`` go.
        task: Target, unit and schedule.
        task_name: The task's id.
        init: Folder of the pretrained model, or a published checkpoint; None to start from scratch.
        init_name: What the start is called; by default what the pretrained model was trained on.
        backbone: What is trained; must be what ``init`` was trained with.
        seed: Seed of the draw, the heads and the order.
        graph: Graph of the dataset's structures; the backbone's own if None.
        execution: Where it runs.

    Raises:
        AtomcsiError: As for :func:`pretrain`, or the pretrained model does not fit.
    """
    start = "scratch" if init is None else init_name or read_card(init)["dataset"]
    if task.target != "forces" and task.reference == "elements":
        check_elements(splits["train"], splits["test"])
    data = TrainingData.draw(
        [splits["train"]], [splits["val"]], target=task, settings=task.finetune, seed=seed, graphs=[graph]
    )
    model = fit(
        data, folder, backbone=backbone, settings=task.finetune, init=init, seed=seed, execution=execution,
        title=f"finetune {task_name} from {start} seed {seed}",
    )  # fmt: skip
    if model is None:
        return
    save_model(folder, model.potential, model.card)
    test = LabelledStructures(splits["test"], target=task.target, graph=graph)
    metrics = {
        "task": task_name,
        "dataset": model.card["dataset"],
        "target": task.target,
        "unit": task.unit,
        **evaluate(model, test, task.unit, task.finetune),
        "structures": len(test),
        "init": start,
        "seed": seed,
        "seconds": model.card["seconds"],
        "budget": task.finetune.budget,
        "costs": model.card["costs"],
    }
    write_json(folder / METRICS, METRICS_SCHEMA, metrics)
    write_model_card(folder)
    remove(folder / "checkpoints")


def _parts_of_mix(
    mix: NamedMix, train: Sequence[StructureLMDB], structures: int, mixtures: Path | None
) -> dict[int, int]:
    """Returns the positions of the datasets that the mix takes anything of, with how many structures."""
    sizes = {store.metadata["provenance"]["dataset"]: len(store) for store in train}
    counts = structures_of(mix.mix, sizes, structures, None if mixtures is None else read_mixes(mixtures))
    return {position: counts[name] for position, name in enumerate(sizes) if name in counts}
