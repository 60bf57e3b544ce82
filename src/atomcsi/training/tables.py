"""What trainings took and reached, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from atomcsi.files import read_json
from atomcsi.training.model_files import METRICS_SCHEMA
from atomcsi.training.model_files import SCHEMA as MODEL_SCHEMA

_COSTS = ("gpu_hours", "kwh")


def pretraining_table(cards: Sequence[Path]) -> pd.DataFrame:
    """One row per pretrained model: init, seed, budget, size, best epoch, validation loss, seconds, GPU-hours, kWh."""
    columns = ["seed", "structures", "budget", "atoms", "parameters", "best_epoch", "seconds"]
    rows: list[dict[str, Any]] = []
    for card in (read_json(path, MODEL_SCHEMA) for path in cards):
        losses = [record["val_loss"] for record in card["history"]]
        measured = {name: card[name] for name in columns}
        rows.append({"init": card["dataset"], **measured, **_costs(card), "val_loss": min(losses)})
    # Named even without rows: from scratch alone nothing is pretrained.
    return pd.DataFrame(rows, columns=["init", *columns, *_COSTS, "val_loss"])


def finetuning_table(metrics: Sequence[Path]) -> pd.DataFrame:
    """One row per finetuning: task, init, seed, MAE in the task's unit, what it averages over, GPU-hours, kWh."""
    left_out = ["schema", "by_element", "by_class", "costs"]
    found = (read_json(path, METRICS_SCHEMA) for path in metrics)
    return pd.DataFrame([{**record, **_costs(record)} for record in found]).drop(columns=left_out, errors="ignore")


def fold_table(finetuning: pd.DataFrame, families: Mapping[str, str]) -> pd.DataFrame:
    """Averages errors over the folds of a dataset, as MatBench's leaderboard does.

    Args:
        finetuning: What :func:`finetuning_table` returned.
        families: The datasets that are folds -> the dataset that they are folds of.

    Returns:
        A row per dataset, target and init: how many ``folds`` were finetuned on, and with how many ``seeds`` each; mean
        (``mae``), standard deviation (n - 1; NaN of one), least and largest over folds of a fold's mean over seeds.
        Where classes are predicted, also the mean of ``roc_auc``.
    """
    folds = finetuning[finetuning["dataset"].isin(list(families))]
    names = ["target", "unit", "init"]
    metrics = [name for name in ("mae", "roc_auc") if name in folds]
    seeds = folds.groupby(["dataset", *names], sort=False).agg(
        seeds=("seed", "size"), **{name: (name, "mean") for name in metrics}
    )
    seeds = seeds.reset_index()
    seeds["dataset"] = seeds["dataset"].map(families)
    aggregated = seeds.groupby(["dataset", *names], sort=False).agg(
        folds=("mae", "size"),
        seeds=("seeds", "min"),
        mae=("mae", "mean"),
        std=("mae", "std"),
        low=("mae", "min"),
        high=("mae", "max"),
        **({"roc_auc": ("roc_auc", "mean")} if "roc_auc" in metrics else {}),
    )
    return aggregated.reset_index()


def _costs(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: record["costs"][name] for name in _COSTS}
