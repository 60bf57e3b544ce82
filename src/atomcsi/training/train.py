"""Pretraining and finetuning: one resumable fit, with two ways to start and to end."""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from ase.data import chemical_symbols
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint

from atomcsi.config import BackboneSpec, Task, TrainSettings
from atomcsi.errors import InputError
from atomcsi.files import atomic_path, digest, remove, resume_folder, versions, write_json
from atomcsi.models.potential import Potential, build_backbone
from atomcsi.progress import Progress
from atomcsi.structure_lmdb import StructureLMDB
from atomcsi.targets import Target
from atomcsi.training.data import LabelledStructures, loader
from atomcsi.training.evaluation import evaluate
from atomcsi.training.model_files import WEIGHTS, TrainedModel, load_backbone, read_card, save_model
from atomcsi.training.module import PotentialModule
from atomcsi.training.normalisation import Normaliser

METRICS_SCHEMA = "atomcsi.finetuning/2"
_VERSIONS = ("torch", "pytorch-lightning", "fairchem-core", "numpy")
#: Structures that the backbone's scale factors are fitted on.
_SCALE_STRUCTURES = 32


def pretrain(
    train: StructureLMDB,
    val: StructureLMDB,
    folder: Path,
    *,
    backbone: BackboneSpec,
    settings: TrainSettings,
    seed: int,
    device: str = "auto",
) -> None:
    """Pretrains a backbone on N structures of one upstream dataset for E epochs and writes the model.

    Args:
        train: Train split of the upstream.
        val: Validation split of the upstream; picks the best epoch.
        folder: Where ``model.safetensors`` and ``model.json`` go.
        backbone: What is trained.
        settings: Budget and schedule.
        seed: Seed of the draw, the weights and the order.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        AtomcsiError: The data cannot be trained on, or the loss is not finite.
    """
    title = f"pretrain {train.metadata['provenance']['dataset']} seed {seed}"
    model = _fit(train, val, folder, backbone, settings, seed, device, target=Target(), init=None, title=title)
    save_model(folder, model.potential, model.card)
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
    device: str = "auto",
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
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        AtomcsiError: As for :func:`pretrain`, or the pretrained model does not fit.
    """
    start = "scratch" if init is None else read_card(init)["dataset"]
    if task.target != "forces" and task.reference == "elements":
        _check_elements(splits["train"], splits["test"])
    model = _fit(
        splits["train"], splits["val"], folder, backbone, task.finetune, seed, device,
        target=task, init=init, title=f"finetune {task_name} from {start} seed {seed}",
    )  # fmt: skip
    save_model(folder, model.potential, model.card)
    test = LabelledStructures(splits["test"], target=task.target)
    metrics = {
        "task": task_name,
        "dataset": model.card["dataset"],
        "target": task.target,
        "unit": task.unit,
        **evaluate(model, test, task.unit, task.finetune.batch_size),
        "structures": len(test),
        "init": start,
        "seed": seed,
        "seconds": model.card["seconds"],
        "budget": task.finetune.budget,
    }
    write_json(folder / "metrics.json", METRICS_SCHEMA, metrics)
    remove(folder / "checkpoints")


def _fit(
    train: StructureLMDB,
    val: StructureLMDB,
    folder: Path,
    spec: BackboneSpec,
    settings: TrainSettings,
    seed: int,
    device: str,
    *,
    target: Target,
    init: Path | None,
    title: str,
) -> TrainedModel:
    """Trains, or goes on with, a potential; its work is in ``folder/checkpoints`` until the outputs are written."""
    pretrained = None
    if init is not None:
        card = read_card(init)
        weights = digest(init / WEIGHTS, "sha256")
        pretrained = {"dataset": card["dataset"], "seed": card["seed"], "budget": card["budget"], "sha256": weights}
    plan = {
        "dataset": train.metadata["provenance"]["dataset"],
        "fingerprints": [train.metadata["fingerprint"], val.metadata["fingerprint"]],
        "backbone": spec.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
        **{name: getattr(target, name) for name in Target.model_fields},
        "seed": seed,
        "pretrained": pretrained,
        "versions": versions(*_VERSIONS),
    }
    work = resume_folder(folder / "checkpoints", plan)
    structures = LabelledStructures(train, target=target.target, limit=settings.structures, seed=seed)
    if len(structures) < settings.structures:
        problem = f"has {len(structures)} structures where {settings.structures} are to be trained on"
        raise InputError(train.path, problem, mend="lower `structures` or choose a larger split")
    validation = LabelledStructures(val, target=target.target, limit=settings.val_structures, seed=seed)
    # Of the whole split, as the paper's references are: a small draw may lack an element that others hold.
    whole = LabelledStructures(train, target=target.target)
    gradient = settings.forces == "gradient" and settings.force_weight > 0
    normaliser = Normaliser.fit(whole.batches(), whole.reference, target=target, gradient=gradient)

    torch.manual_seed(seed)
    heads = [
        head for head, weight in (("energy", settings.energy_weight), ("forces", settings.force_weight)) if weight > 0
    ]
    if "energy" in heads and target.reference == "elements":
        _check_elements(train, val)
    backbone = build_backbone(spec.model_dump())
    potential = Potential(backbone, heads=heads, forces=settings.forces, readout=target.readout)
    if init is not None:
        load_backbone(backbone, init)
    batches = loader(structures, batch_size=settings.batch_size, collate=backbone.collate(), seed=seed)
    last, best = work / "last.ckpt", work / "best.ckpt"
    if init is None and not last.exists():
        backbone.fit_scales(islice(batches, -(-_SCALE_STRUCTURES // settings.batch_size)))

    done = 0
    if last.exists():
        done = len(_read_checkpoint(last)["history"]) * len(structures)
    progress = Progress(title, total=settings.budget, unit="structures", done=done)
    module = PotentialModule(potential, normaliser, settings, len(batches) * settings.epochs, progress)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lightning's advice on workers, loggers and checkpoint folders
        trainer = _trainer(work, settings, device)
        trainer.fit(
            module,
            batches,
            loader(validation, batch_size=settings.batch_size, collate=backbone.collate()),
            ckpt_path=last if last.exists() else None,
            weights_only=True,
        )
    module.load_state_dict(_read_checkpoint(best)["state_dict"])
    best_epoch = min(module.history, key=lambda record: record["val_loss"])
    progress.finish(f"best val loss {best_epoch['val_loss']:.4g} after epoch {best_epoch['epoch']}")
    card = {
        **plan,
        "structures": len(structures),
        "budget": settings.budget,
        "atoms": int(train.natoms[structures.indices].sum()),
        "parameters": sum(parameter.numel() for parameter in potential.parameters()),
        "heads": heads,
        "normalisation": normaliser.records(),
        "best_epoch": best_epoch["epoch"],
        "seconds": sum(record["seconds"] for record in module.history),
        "history": module.history,
    }
    return TrainedModel(
        potential.to(trainer.strategy.root_device).eval(), normaliser, trainer.strategy.root_device, card
    )


def _check_elements(train: StructureLMDB, other: StructureLMDB) -> None:
    """Refuses structures whose energies cannot be known: total energies of an element are thousands of eV."""
    if unseen := sorted(set(map(int, other.metadata["elements"])) - set(map(int, train.metadata["elements"]))):
        symbols = ", ".join(chemical_symbols[number] for number in unseen)
        raise InputError(
            other.path, f"holds {symbols}, which {train.path} does not", mend="split the dataset otherwise"
        )


class _AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole; lightning's own are moved in from the system's temporary folder.

    That folder is another disk on most clusters, and a move between disks can be cut off half-way.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint beside its final name, then renames it."""
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(path, "is no readable checkpoint", mend=f"delete {path.parent} and run again") from error


def _trainer(work: Path, settings: TrainSettings, device: str) -> pl.Trainer:
    # Saved at the end of an epoch, after its validation and with all counters settled, so that a resumed run
    # starts with the next epoch and repeats an uninterrupted one exactly.
    checkpoint = ModelCheckpoint(
        work,
        filename="best",
        monitor="val/loss",
        save_last=True,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return pl.Trainer(
        accelerator={"cuda": "gpu"}.get(device, device),
        devices=1,
        max_epochs=settings.epochs,
        gradient_clip_val=settings.clip_norm or settings.clip_value,
        gradient_clip_algorithm="norm" if settings.clip_norm else "value",
        plugins=[_AtomicCheckpoints()],
        callbacks=[EMAWeightAveraging(decay=settings.ema_decay), checkpoint],
        num_sanity_val_steps=0,
        inference_mode=False,  # gradient forces need autograd in validation too
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=work,
    )
