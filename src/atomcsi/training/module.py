"""The objective, the optimiser and what is kept of a training."""

from __future__ import annotations

import math
import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from atomcsi.errors import AtomcsiError
from atomcsi.models.batch import AtomBatch
from atomcsi.models.potential import Potential, Prediction
from atomcsi.progress import Progress
from atomcsi.training.loading import Loaded, LoadedBatch, Share, unpacked
from atomcsi.training.normalisation import Normaliser
from atomcsi.training.objective import force_loss, scalar_loss
from atomcsi.training.parameters import parameter_groups
from atomcsi.training.processes import gathered, summed
from atomcsi.training.schedule import Schedule
from atomcsi.training.settings import TrainSettings

#: Structures that a message names at most.
_NAMED = 5


class PotentialModule(pl.LightningModule):
    """Trains a potential on energies and forces as the paper does (section 1).

    Losses are sums over structures, divided by how many a step has in all processes: gradients do not depend on how
    many processes share a step. What Lightning does not keep in its checkpoints, but the course of a training depends
    on, is added to them: counters, sums since the last validation, and the states of random generators.

    Args:
        potential: What is trained.
        normaliser: Turns labels into targets.
        settings: Weights of the losses, and the optimiser's settings.
        schedule: The learning rate.
        progress: Where progress is shown.
        structures: Structures of an epoch.

    Attributes:
        step: Steps done.
        seen: Structures seen.
        history: One record per validation: step, epoch, losses, learning rate, seconds.
        batch: The batch that is worked on, for messages.
    """

    def __init__(
        self,
        potential: Potential,
        normaliser: Normaliser,
        settings: TrainSettings,
        schedule: Schedule,
        progress: Progress,
        structures: int,
    ) -> None:
        super().__init__()
        self.potential, self.normaliser, self.settings, self.schedule = potential, normaliser, settings, schedule
        self.progress, self.structures = progress, structures
        self.step = self.seen = 0
        self.history: list[dict[str, float]] = []
        self.batch: LoadedBatch | None = None
        self._resumed: dict[str, Any] | None = None
        #: Sum of losses and number of structures since the last validation, and in the one that runs.
        self._trained, self._validated = (torch.zeros(2, dtype=torch.float64) for _ in range(2))
        self._clock = time.monotonic()

    def forward(self, batch: AtomBatch) -> Prediction:
        """Predicts normalised energies and forces."""
        return self.potential(batch)

    def losses(self, batch: AtomBatch) -> Tensor:
        """Loss of each structure, shape (structures,): of its energy, and of its forces averaged over atoms."""
        prediction, settings = self(batch), self.settings
        losses = batch.positions.new_zeros(len(batch))
        if prediction.energy is not None and settings.energy_weight:
            target = self.normaliser.energy_target(batch)
            losses = losses + settings.energy_weight * scalar_loss(settings.scalar_loss, prediction.energy, target)
        if prediction.forces is not None:
            target = self.normaliser.force_target(batch)
            errors = force_loss(settings.force_loss, prediction.forces, target, batch)
            losses = losses + settings.force_weight * errors
        return losses

    def on_before_batch_transfer(self, batch: Loaded, dataloader_idx: int) -> LoadedBatch:
        """Takes over a batch from where it was read, or raises what went wrong there."""
        return unpacked(batch)

    def training_step(self, batch: LoadedBatch, batch_index: int) -> Tensor:
        """What a share of a step adds to its loss.

        Raises:
            AtomcsiError: The loss is not finite; the message names the structures.
        """
        self.batch = batch
        losses = self.losses(batch.atoms)
        if not torch.isfinite(losses).all():
            raise AtomcsiError(
                f"{self.progress.step}: in step {self.step + 1} the loss of {_named(batch, ~torch.isfinite(losses))} is"
                f" not finite (lower learning_rate={self.settings.learning_rate}, or check the labels)"
            )
        share = batch.share
        counted = losses[: share.counted].sum()
        _add(self._trained, counted, share)
        if share.last:
            self.step, self.seen = self.step + 1, self.seen + share.total
            loss = self._trained[0] / self._trained[1]
            self.progress.advance(share.total, f"epoch {self.epoch:.3g} of {self.settings.epochs}, loss {loss:.3g}")
        # Lightning averages gradients over processes and parts of a step, where their sum is wanted.
        return counted * (self.trainer.world_size * self.trainer.accumulate_grad_batches / share.total)

    @property
    def epoch(self) -> float:
        """Epochs done; a whole number where one ends."""
        whole, part = divmod(self.seen, self.structures)
        return whole + round(part / self.structures, 6) if part else whole

    def validation_step(self, batch: LoadedBatch, batch_index: int) -> None:
        """Adds the losses of a batch of the validation structures."""
        self.batch = batch
        _add(self._validated, self.losses(batch.atoms)[: batch.share.counted].sum(), batch.share)

    def record_validation(self) -> bool:
        """Adds the validation that has just run to the history; says whether it is the best so far."""
        trained, validated = (summed(sums, self.trainer.strategy) for sums in (self._trained, self._validated))
        loss = validated[0] / validated[1]
        if not math.isfinite(loss):
            raise AtomcsiError(
                f"{self.progress.step}: the validation loss after step {self.step} is {loss} (lower"
                f" learning_rate={self.settings.learning_rate}, or check the labels of the val split)"
            )
        best = not self.history or loss < min(record["val_loss"] for record in self.history)
        now = time.monotonic()
        self.history.append(
            {
                "step": self.step,
                "epoch": self.epoch,
                "train_loss": trained[0] / trained[1],
                "val_loss": loss,
                "learning_rate": self.trainer.optimizers[0].param_groups[-1]["lr"],
                "seconds": now - self._clock,
            }
        )
        self._clock = now
        self._trained.zero_()
        self._validated.zero_()
        self.schedule.validated(self.step, loss)
        return best

    def on_train_start(self) -> None:
        """Takes up counters, sums and random states, now that nothing else draws from the generators any more."""
        self._clock = time.monotonic()
        rank, world = self.global_rank, self.trainer.world_size
        if self._resumed is None:
            if rank:
                torch.manual_seed(torch.initial_seed() + rank)
            return
        self._clock -= self._resumed["seconds"]
        states, self._resumed = self._resumed["processes"], None
        if len(states) == world:
            state = states[rank]
            self._trained = state["trained"]
            torch.set_rng_state(state["random"])
            if state["cuda_random"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda_random"], self.device)
        else:
            # On another number of processes the course is another one; the sums must still be right.
            torch.manual_seed(torch.initial_seed() + self.step * world + rank)
            if rank == 0:
                self._trained = torch.stack([state["trained"] for state in states]).sum(0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what Lightning does not keep."""
        state = {
            "trained": self._trained.clone(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        checkpoint["training"] = {
            "step": self.step,
            "seen": self.seen,
            "history": self.history,
            "schedule": self.schedule.state(),
            "seconds": time.monotonic() - self._clock,
            "processes": gathered(state),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the training up again."""
        self._resumed = training = checkpoint["training"]
        self.step, self.seen, self.history = training["step"], training["seen"], training["history"]
        self.schedule.restore(training["schedule"])

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW, with learning rates by depth if the settings have them."""
        settings = self.settings
        optimizer = torch.optim.AdamW(
            parameter_groups(self.potential, settings),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _add(sums: Tensor, losses: Tensor, share: Share) -> None:
    """Adds a sum of losses and the number of structures to ``sums``."""
    sums += torch.tensor([losses.item(), share.counted], dtype=sums.dtype)


def _named(batch: LoadedBatch, wanted: Tensor) -> str:
    """Names the wanted structures of a batch."""
    sources = [source for source, is_wanted in zip(batch.sources, wanted.tolist(), strict=True) if is_wanted]
    more = f" and {len(sources) - _NAMED} more" if len(sources) > _NAMED else ""
    return ", ".join(sources[:_NAMED]) + more
