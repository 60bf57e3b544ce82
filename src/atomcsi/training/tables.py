"""What trainings took and reached, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from atomcsi.files import read_json
from atomcsi.training.model_files import SCHEMA as MODEL_SCHEMA
from atomcsi.training.train import METRICS_SCHEMA


def pretraining_table(cards: Sequence[Path]) -> pd.DataFrame:
    """One row per pretrained model: init, seed, budget, size, best epoch, validation loss, seconds."""
    columns = ["seed", "structures", "budget", "atoms", "parameters", "best_epoch", "seconds"]
    rows: list[dict[str, Any]] = []
    for card in (read_json(path, MODEL_SCHEMA) for path in cards):
        losses = [record["val_loss"] for record in card["history"]]
        rows.append({"init": card["dataset"], **{name: card[name] for name in columns}, "val_loss": min(losses)})
    # Named even without rows: from scratch alone nothing is pretrained.
    return pd.DataFrame(rows, columns=["init", *columns, "val_loss"])


def finetuning_table(metrics: Sequence[Path]) -> pd.DataFrame:
    """One row per finetuning: task, init, seed, MAE in the task's unit, and what it averages over."""
    left_out = ["schema", "by_element", "by_class"]
    return pd.DataFrame([read_json(path, METRICS_SCHEMA) for path in metrics]).drop(columns=left_out)
