"""What can be watched of a training while it runs, and what it took."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from atomcsi.costs.rates import ASSUMED_WATTS
from atomcsi.files import remove, write_table
from atomcsi.training.module import PotentialModule

HISTORY, TENSORBOARD = "history.csv", "tensorboard"
#: Seconds between two looks at what a GPU draws.
_EVERY = 10.0


class Records(pl.Callback):
    """Writes the history after each validation: as a table, and for TensorBoard where that is installed.

    Args:
        folder: Where ``history.csv`` and the folder ``tensorboard`` go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._board: TensorBoardLogger | None = None

    def on_train_start(self, trainer: pl.Trainer, module: PotentialModule) -> None:
        """Starts a record, or goes on with one behind the last checkpoint."""
        if not trainer.is_global_zero or not (find_spec("tensorboard") or find_spec("tensorboardX")):
            return
        if module.step == 0:
            remove(self._folder / TENSORBOARD)
        # Steps that are repeated after the last checkpoint replace those of before.
        self._board = TensorBoardLogger(self._folder, name=TENSORBOARD, version="", purge_step=module.step + 1)

    def on_validation_end(self, trainer: pl.Trainer, module: PotentialModule) -> None:
        """Writes what the validation found."""
        if not trainer.is_global_zero:
            return
        write_table(self._folder / HISTORY, pd.DataFrame(module.history))
        if self._board is not None:
            record = module.history[-1]
            metrics = {name: value for name, value in record.items() if name != "step"}
            self._board.log_metrics(metrics, step=record["step"])
            self._board.save()

    def teardown(self, trainer: pl.Trainer, module: PotentialModule, stage: str) -> None:
        """Closes the record."""
        if self._board is not None:
            self._board.finalize("done")


class PowerMeter(pl.Callback):
    """Looks now and then at what the first process's GPU draws; its readings are part of every checkpoint."""

    def __init__(self) -> None:
        self._watts, self._readings, self._last = 0.0, 0, time.monotonic()

    @property
    def watts(self) -> float | None:
        """Mean of the readings; None if there are none."""
        return self._watts / self._readings if self._readings else None

    def on_train_batch_end(self, trainer: pl.Trainer, module: PotentialModule, *_: Any) -> None:
        """Reads the meter if the last reading is old enough."""
        if module.device.type != "cuda" or time.monotonic() - self._last < _EVERY:
            return
        self._last = time.monotonic()
        try:
            watts = torch.cuda.power_draw(module.device) / 1000
        except Exception:  # whatever NVML has against it, and whether it is there at all, is of no consequence
            return
        self._watts, self._readings = self._watts + watts, self._readings + 1

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training goes on with."""
        return {"watts": self._watts, "readings": self._readings}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` returned."""
        self._watts, self._readings = state_dict["watts"], state_dict["readings"]


def costs(seconds: float, *, device: torch.device, world: int, watts: float | None) -> dict[str, Any]:
    """Returns what a training took, for its card.

    Args:
        seconds: Wall time of training and validation.
        device: Where the first process ran.
        world: How many processes shared the steps.
        watts: What a process's device drew; None to assume :data:`ASSUMED_WATTS`.

    Returns:
        ``device`` and ``processes``; ``gpu_hours``; ``watts`` a process, with how they are known (``watts_are``); and
        ``kwh`` of them all.
    """
    known = ASSUMED_WATTS[device.type] if watts is None else watts
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": world,
        "gpu_hours": seconds * world / 3600 if device.type == "cuda" else 0.0,
        "watts": known,
        "watts_are": "assumed" if watts is None else "measured",
        "kwh": known * world * seconds / 3.6e6,
    }
