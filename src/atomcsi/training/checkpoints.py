"""What a training leaves on disk while it runs, so that it can be cut off at any moment."""

from __future__ import annotations

import logging
import pickle
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from torch import Tensor

from atomcsi.errors import AtomcsiError, InputError
from atomcsi.files import atomic_path
from atomcsi.training.module import PotentialModule
from atomcsi.training.preemption import StopRequest
from atomcsi.training.processes import summed

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
#: Where the best weights were before they were part of each checkpoint, and that part's name.
_BEST, _BEST_WEIGHTS = "best.ckpt", "best_weights"
logger = logging.getLogger(__name__)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint, checked against the checksums (CRC-32) of its members, without running what it holds.

    Raises:
        InputError: It is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True)
        problem = f"is no readable checkpoint: the checksum of {damaged} is wrong"
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        problem = f"is no readable checkpoint: {error}"
    raise InputError(path, problem, mend=f"delete {path.parent} and run again")


def newest_checkpoint(folder: Path) -> Path | None:
    """Returns the checkpoint that a training goes on from, None if there is none.

    Raises:
        InputError: All that there are are damaged.
    """
    candidates = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    for path in candidates:
        try:
            read_checkpoint(path)
        except InputError as error:
            if path == candidates[-1]:
                raise
            logger.warning("%s: %s; going on from the one before it", error.path, error.problem)
        else:
            return path
    return None


def best_weights(checkpoint: Mapping[str, Any], folder: Path) -> dict[str, Tensor] | None:
    """Returns the weights of the best validation in a checkpoint's history, None if there was none yet.

    Args:
        checkpoint: What :func:`read_checkpoint` returned.
        folder: Where it is; one of before they were part of it has them beside it.

    Raises:
        InputError: They are damaged, or missing.
    """
    if _BEST_WEIGHTS in checkpoint or not checkpoint["training"]["history"]:
        return checkpoint.get(_BEST_WEIGHTS)
    logger.warning("%s: does not say which validation its weights are of; taken as those of the best", folder / _BEST)
    return read_checkpoint(folder / _BEST)


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole, the one before kept; Lightning's own come from the system's temporary folder.

    That folder is another disk on most clusters, and a move between disks can be cut off half-way.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint beside its final name, moves its predecessor away and takes its place."""
        path = Path(path)
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)
            if path.exists():
                path.replace(path.with_name(PREVIOUS))


class Checkpoints(pl.Callback):
    """Saves a training now and then, after each validation and when it is asked to stop; and keeps its best weights.

    It saves before a step starts or when all are done: Lightning resumes from there without repeating a validation
    or leaving one out. Must stand before the moving average among the callbacks, to see the averaged weights.

    The best weights are in memory, and part of each checkpoint, as is the history that tells which they are: whatever
    happens to files, no weights can be taken for those of another validation.

    Args:
        folder: Where checkpoints are.
        minutes: Minutes between checkpoints.

    Attributes:
        best: Weights of the best validation so far, on the CPU; only the first process has them.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self.best: dict[str, Tensor] | None = None
        self._folder, self._seconds = folder, 60 * minutes
        self._validated = False
        self._stop = StopRequest()

    def on_train_start(self, trainer: pl.Trainer, module: PotentialModule) -> None:
        """Listens to signals in place of Lightning, which would stop without saving; it gives them back at the end."""
        self._stop.listen()
        self._saved = time.monotonic()

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: PotentialModule) -> None:
        """Records the validation, and keeps the averaged weights that it tested if they are the best."""
        self._validated = True
        if module.record_validation() and trainer.is_global_zero:
            self.best = {name: value.to("cpu", copy=True) for name, value in module.potential.state_dict().items()}

    def on_train_batch_start(self, trainer: pl.Trainer, module: PotentialModule, batch: Any, batch_index: int) -> None:
        """Saves if it is time to, before a step starts."""
        if batch_index % trainer.accumulate_grad_batches == 0:
            self._save_if_due(trainer, module)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: PotentialModule) -> None:
        """Saves when all steps are done."""
        self._validated = True
        self._save_if_due(trainer, module)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: PotentialModule, checkpoint: dict[str, Any]) -> None:
        """Adds the best weights."""
        checkpoint[_BEST_WEIGHTS] = self.best

    def on_load_checkpoint(self, trainer: pl.Trainer, module: PotentialModule, checkpoint: dict[str, Any]) -> None:
        """Takes up the best weights, and tells Lightning how many batches are done.

        That is neither the one before which was saved, nor in parts of then.
        """
        if trainer.is_global_zero:
            self.best = best_weights(checkpoint, self._folder)
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done = checkpoint["training"]["step"] * trainer.accumulate_grad_batches
        for counters in (batches["total"], batches["current"]):
            counters.update(dict.fromkeys(("ready", "started", "processed", "completed"), done))
        batches["is_last_batch"] = False

    def _save_if_due(self, trainer: pl.Trainer, module: PotentialModule) -> None:
        due = self._validated or (module.step > 0 and time.monotonic() - self._saved >= self._seconds)
        stop = bool(self._stop.signal)
        if trainer.world_size > 1:
            # All of them, or none: signals and clocks differ.
            due, stop = map(bool, summed(torch.tensor([due, stop], dtype=torch.float64), trainer.strategy))
        if not (due or stop):
            return
        trainer.save_checkpoint(self._folder / LAST)
        self._validated, self._saved = False, time.monotonic()
        if stop:
            cause = self._stop.signal or "a signal to another process"
            raise AtomcsiError(
                f"{module.progress.step}: stopped by {cause}; run again to go on at step {module.step + 1}"
            )
