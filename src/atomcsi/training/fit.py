"""One resumable fit: what pretraining and finetuning share."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader

from atomcsi.config import BackboneSpec
from atomcsi.errors import AtomcsiError
from atomcsi.files import versions
from atomcsi.jobs import process_rank
from atomcsi.models.base import Collate
from atomcsi.models.batch import AtomBatch
from atomcsi.models.potential import Potential, build_backbone
from atomcsi.progress import Progress
from atomcsi.training.checkpoints import (
    AtomicCheckpoints,
    Checkpoints,
    best_weights,
    newest_checkpoint,
    read_checkpoint,
)
from atomcsi.training.guards import explained
from atomcsi.training.loading import Batches, LoadedBatch, loader
from atomcsi.training.model_files import TrainedModel, load_start, start_record
from atomcsi.training.module import PotentialModule
from atomcsi.training.processes import Execution, shared_folder
from atomcsi.training.schedule import Schedule
from atomcsi.training.settings import TrainSettings
from atomcsi.training.training_data import Drawn, TrainingData, heads_of
from atomcsi.training.watching import PowerMeter, Records, costs

_VERSIONS = ("torch", "pytorch-lightning", "fairchem-core", "numpy")
#: Structures that the backbone's scale factors are fitted on.
_SCALE_STRUCTURES = 32
#: What Lightning calls the config's precisions.
_PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


def fit(
    data: TrainingData,
    folder: Path,
    *,
    backbone: BackboneSpec,
    settings: TrainSettings,
    init: Path | None,
    seed: int,
    execution: Execution,
    title: str,
) -> TrainedModel | None:
    """Trains, or goes on with, a potential; its work is in ``folder/checkpoints`` until the outputs are written.

    Args:
        data: What is trained on, and what picks the best weights.
        folder: Folder of the outputs.
        backbone: What is trained.
        settings: How.
        init: Folder of a pretrained model, or a published checkpoint; None to start from scratch.
        seed: Seed of the weights and the order.
        execution: Where it runs.
        title: What progress and messages call it.

    Returns:
        The model with the weights of its best validation; None in all processes that share its steps but the first.

    Raises:
        AtomcsiError: The data cannot be trained on, the loss is not finite, or a signal asked to stop.
    """
    if settings.precision == "float16" and not execution.on_gpu:
        raise AtomcsiError(f"{title}: float16 needs a GPU (set precision to bfloat16 or float32, or device to cuda)")
    plan = {
        **data.plan(),
        "backbone": backbone.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
        "seed": seed,
        "pretrained": None if init is None else start_record(init),
        "versions": versions(*_VERSIONS),
    }
    work = shared_folder(folder / "checkpoints", plan)
    torch.manual_seed(seed)
    heads = heads_of(settings)
    potential = Potential(
        build_backbone(backbone.model_dump()),
        heads=heads,
        forces=settings.forces,
        readout=data.target.readout,
        datasets=len(data.datasets),
    )
    potential.backbone.drop_edges(settings.edge_dropout)
    if init is not None:
        load_start(potential.backbone, init)
    collate = potential.backbone.collate(data.graphs)
    last = newest_checkpoint(work)
    found = None if last is None else read_checkpoint(last)
    loaders = Loaders(data.train, data.val, settings, collate, seed, execution)
    if init is None and last is None:
        potential.backbone.fit_scales([loaders.first(_SCALE_STRUCTURES)])

    done = found["training"]["seen"] if found else 0
    progress = Progress(title, total=settings.budget, unit="structures", done=done)
    ends = loaders.batches().ends
    schedule = Schedule(settings, int(ends[(settings.cosine_epochs or settings.epochs) - 1]))
    module = PotentialModule(potential, data.normaliser, settings, schedule, progress, len(data.train))
    checkpoints, meter = Checkpoints(work, execution.checkpoint_minutes), PowerMeter()
    with warnings.catch_warnings(), explained(module, execution):
        warnings.simplefilter("ignore")  # lightning's advice on workers, loggers, SLURM and checkpoint folders
        trainer = _trainer(work, settings, execution, int(ends[-1]), checkpoints, [Records(folder), meter])
        if found and found["training"]["step"] == ends[-1]:
            module.history, checkpoints.best = found["training"]["history"], best_weights(found, work)
        else:
            del found  # Lightning reads it anew, and it would stay in memory for all of the training
            trainer.fit(module, datamodule=loaders, ckpt_path=last, weights_only=True)
    if process_rank() > 0:
        return None  # the first process removes what was saved as soon as its outputs are written
    potential.load_state_dict(checkpoints.best)
    best = min(module.history, key=lambda record: record["val_loss"])
    progress.finish(f"best val loss {best['val_loss']:.4g} after epoch {best['epoch']:.3g}")
    seconds, device = sum(record["seconds"] for record in module.history), trainer.strategy.root_device
    card = {
        **plan,
        "structures": len(data.train),
        "budget": settings.budget,
        "atoms": int(data.train.natoms.sum()),
        "parameters": sum(parameter.numel() for parameter in potential.parameters()),
        "heads": heads,
        "normalisation": data.normaliser.records(),
        "best_epoch": best["epoch"],
        "seconds": seconds,
        "costs": costs(seconds, device=device, world=execution.world, watts=meter.watts),
        "history": module.history,
    }
    return TrainedModel(potential.to(device).eval(), data.normaliser, device, collate, card)


class Loaders(pl.LightningDataModule):
    """The batches of a training and of its validations, for whichever process asks.

    Args:
        structures: What is trained on.
        validation: What is validated on.
        settings: Sizes of batches.
        collate: What turns structures into batches.
        seed: Seed of the order.
        execution: How many workers read.
    """

    def __init__(
        self,
        structures: Drawn,
        validation: Drawn,
        settings: TrainSettings,
        collate: Collate,
        seed: int,
        execution: Execution,
    ) -> None:
        super().__init__()
        self._structures, self._validation, self._settings = structures, validation, settings
        self._collate, self._seed, self._execution = collate, seed, execution

    def batches(self, **share: int) -> Batches:
        """Returns the steps of the training, or a share; see :class:`~atomcsi.training.loading.Batches`."""
        return Batches.of(self._structures, self._settings, epochs=self._settings.epochs, seed=self._seed, **share)

    def first(self, structures: int) -> AtomBatch:
        """Returns the first structures of the training as one batch."""
        order = np.concatenate(self.batches().epoch(0))
        return self._collate(self._structures.of_epoch(order[:structures], 0))

    def train_dataloader(self) -> DataLoader[LoadedBatch]:
        """This process's share of the steps that are left to do."""
        # As the checkpoint says that Lightning has read: another process may have replaced the one that was found.
        batches = self.batches(start=self.trainer.lightning_module.step, **self._share())
        return loader(self._structures, batches, collate=self._collate, workers=self._execution.workers)

    def val_dataloader(self) -> DataLoader[LoadedBatch]:
        """This process's share of the validation structures."""
        batches = Batches.of(self._validation, self._settings, **self._share())
        return loader(self._validation, batches, collate=self._collate, workers=self._execution.workers)

    def _share(self) -> dict[str, int]:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return {"rank": rank, "world": world, "parts": self._execution.parts}


def _trainer(
    work: Path,
    settings: TrainSettings,
    execution: Execution,
    steps: int,
    checkpoints: Checkpoints,
    watching: Sequence[pl.Callback],
) -> pl.Trainer:
    """Lightning's trainer, for which all epochs are one: epochs of ours end where the batches say."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    options = execution.trainer_options()
    return pl.Trainer(
        **options | {"plugins": [AtomicCheckpoints(), *options.get("plugins", [])]},
        precision=_PRECISIONS[settings.precision],
        max_epochs=1,
        # As often as the settings say, the last time after the last step or shortly before.
        val_check_interval=max(1, steps // round(settings.epochs / settings.val_interval)) * execution.parts,
        check_val_every_n_epoch=None,
        gradient_clip_val=settings.clip_norm or settings.clip_value,
        gradient_clip_algorithm="norm" if settings.clip_norm else "value",
        callbacks=[
            checkpoints,
            EMAWeightAveraging(decay=settings.ema_decay),
            *watching,
        ],
        num_sanity_val_steps=0,
        inference_mode=False,  # gradient forces need autograd in validation too
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=work,
    )
