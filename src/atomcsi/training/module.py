"""The objective, the optimiser and what is kept of a training."""

from __future__ import annotations

import math
import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from atomcsi.config import TrainSettings
from atomcsi.errors import AtomcsiError
from atomcsi.models.batch import AtomBatch
from atomcsi.models.potential import Potential, Prediction
from atomcsi.progress import Progress
from atomcsi.training.normalisation import Normaliser
from atomcsi.training.objective import force_loss, scalar_loss


class PotentialModule(pl.LightningModule):
    """Trains a potential on energies and forces as the paper does (section 1).

    Attributes:
        history: One record per finished epoch: losses, learning rate, seconds. Part of every checkpoint.
    """

    def __init__(
        self, potential: Potential, normaliser: Normaliser, settings: TrainSettings, steps: int, progress: Progress
    ) -> None:
        super().__init__()
        self.potential, self.normaliser, self.settings, self.steps = potential, normaliser, settings, steps
        self.progress = progress
        self.history: list[dict[str, float]] = []

    def forward(self, batch: AtomBatch) -> Prediction:
        """Predicts normalised energies and forces."""
        return self.potential(batch)

    def loss(self, batch: AtomBatch) -> Tensor:
        """Losses of energies and forces, averaged over atoms, then over structures."""
        prediction, settings = self(batch), self.settings
        loss = batch.positions.new_zeros(())
        if prediction.energy is not None and settings.energy_weight:
            target = self.normaliser.energy_target(batch)
            loss = loss + settings.energy_weight * scalar_loss(settings.scalar_loss, prediction.energy, target).mean()
        if prediction.forces is not None:
            target = self.normaliser.force_target(batch)
            errors = force_loss(settings.force_loss, prediction.forces, target, batch)
            loss = loss + settings.force_weight * errors.mean()
        return loss

    def training_step(self, batch: AtomBatch, batch_index: int) -> Tensor:
        """Loss of one batch.

        Raises:
            AtomcsiError: The loss is not finite.
        """
        loss = self.loss(batch)
        if not torch.isfinite(loss):
            raise AtomcsiError(
                f"{self.progress.step}: the loss of batch {batch_index} in epoch {self.current_epoch} is {loss.item()}"
                f" (lower learning_rate={self.settings.learning_rate}, or check the labels)"
            )
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch))
        epoch = f"epoch {self.current_epoch + 1} of {self.settings.epochs}, loss {loss.item():.3g}"
        self.progress.advance(len(batch), epoch)
        return loss

    def validation_step(self, batch: AtomBatch, batch_index: int) -> None:
        """Loss of one batch of the validation structures."""
        self.log("val/loss", self.loss(batch), batch_size=len(batch))

    def on_train_epoch_start(self) -> None:
        """Starts the epoch's clock."""
        self._epoch_start = time.monotonic()

    def on_train_epoch_end(self) -> None:
        """Adds the epoch to the history; runs after its validation."""
        metrics = self.trainer.callback_metrics
        self.history.append(
            {
                "epoch": self.current_epoch + 1,
                "train_loss": float(metrics["train/loss"]),
                "val_loss": float(metrics["val/loss"]),
                "learning_rate": self.optimizers().param_groups[0]["lr"],
                "seconds": time.monotonic() - self._epoch_start,
            }
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the history with the weights."""
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the history up again."""
        self.history = checkpoint["history"]

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with linear warm-up and a cosine down to ``final_factor``."""
        settings = self.settings
        optimizer = torch.optim.AdamW(
            self.potential.parameters(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _learning_rate_factor(self, step: int) -> float:
        settings = self.settings
        if step < settings.warmup_steps:
            return settings.warmup_factor + (1 - settings.warmup_factor) * step / settings.warmup_steps
        done = (step - settings.warmup_steps) / max(self.steps - settings.warmup_steps, 1)
        cosine = (1 + math.cos(math.pi * min(done, 1.0))) / 2
        return settings.final_factor + (1 - settings.final_factor) * cosine
