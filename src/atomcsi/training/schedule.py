"""The learning rate over a training: warm-up, cosine, plateau (paper, section 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from atomcsi.training.settings import TrainSettings

#: A validation is better if its loss is lower by this share, as for PyTorch's ``ReduceLROnPlateau``.
_THRESHOLD = 1e-4


@dataclass
class Schedule:
    """The factor on the learning rate, by step; what the plateau depends on is its state.

    Attributes:
        settings: Warm-up, cosine and plateau.
        steps: Steps until the cosine ends.
        scale: What the plateau has made of the learning rate so far.
        best: Lowest validation loss since the plateau began.
        waited: Validations since then without a better one.
    """

    settings: TrainSettings
    steps: int
    scale: float = 1.0
    best: float = math.inf
    waited: int = 0

    def factor(self, step: int) -> float:
        """Factor on the learning rate of a step, counted from 0."""
        settings = self.settings
        if step < settings.warmup_steps:
            return settings.warmup_factor + (1 - settings.warmup_factor) * step / settings.warmup_steps
        done = (step - settings.warmup_steps) / max(self.steps - settings.warmup_steps, 1)
        cosine = (1 + math.cos(math.pi * min(done, 1.0))) / 2
        return self.scale * (settings.final_factor + (1 - settings.final_factor) * cosine)

    def validated(self, step: int, loss: float) -> None:
        """Takes the loss of a validation after ``step`` steps into account."""
        patience = self.settings.plateau_patience
        if patience is None or step < self.steps:
            return
        if loss < self.best * (1 - _THRESHOLD):
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > patience:
            self.scale, self.waited = self.scale * self.settings.plateau_factor, 0

    def state(self) -> dict[str, Any]:
        """What a resumed training must know."""
        return {"scale": self.scale, "best": self.best, "waited": self.waited}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up what :meth:`state` returned."""
        self.scale, self.best, self.waited = state["scale"], state["best"], state["waited"]
