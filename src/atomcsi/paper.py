"""The numbers of the paper (arXiv 2502.11085), as data in ``resources/paper``, and how others compare with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from atomcsi.errors import AtomcsiError, InputError

#: What two errors must have in common to be compared.
KEYS = ["backbone", "init", "structures", "epochs", "task"]
#: Numbers that differ by less than this share agree. The paper's own versions of one number differ by up to 7 %.
TOLERANCE = 0.05
NOT_IN_THE_PAPER = "not in the paper"
_LATER = "later version"
_COLUMNS = {
    "finetuning": [*KEYS, "mae", "unit", "source"],
    "unique_classes": ["dataset", "structures", "random", "balanced", "whole"],
    "csi_order": ["downstream", "place", "upstream"],
}


@dataclass(frozen=True)
class PaperNumbers:
    """What the paper reports; ``resources/paper/README.md`` says what the columns mean.

    Attributes:
        finetuning: Test errors, a row per backbone, init, budget, task and version of the paper.
        unique_classes: How many classes a sample of each upstream dataset has.
        csi_order: Which upstream datasets are ``lowest`` and ``highest`` in CSI to a downstream dataset.
    """

    finetuning: pd.DataFrame
    unique_classes: pd.DataFrame
    csi_order: pd.DataFrame


def read_paper_numbers(folder: Path = Path("resources/paper")) -> PaperNumbers:
    """Reads the paper's numbers.

    Args:
        folder: Where they are; relative to the repository by default.

    Raises:
        InputError: A file is missing or lacks a column.
    """
    return PaperNumbers(**{name: _read(folder / f"{name}.csv", columns) for name, columns in _COLUMNS.items()})


def _read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except FileNotFoundError as error:
        raise InputError(path, "is missing") from error
    if absent := [name for name in columns if name not in table]:
        raise InputError(path, f"lacks the column {absent[0]}")
    return table


def published(table: pd.DataFrame) -> pd.Series:
    """Which rows are of models that others published (JMP), the paper's baselines: their own backbone and init."""
    return table["backbone"] == table["init"]


def with_published_budgets(ours: pd.DataFrame, paper: PaperNumbers) -> pd.DataFrame:
    """Gives finetunings of models that others pretrained the budgets that the paper tells of them.

    Args:
        ours: A row per run: ``backbone``, ``init``, and ``structures``, ``epochs`` and ``budget`` (their product).
        paper: The paper's numbers.
    """
    theirs = paper.finetuning[published(paper.finetuning)].drop_duplicates("init").set_index("init")
    known = published(ours) & ours["init"].isin(theirs.index)
    ours = ours.copy()
    for name in ("structures", "epochs"):
        ours.loc[known, name] = ours.loc[known, "init"].map(theirs[name])
    ours["budget"] = ours["structures"] * ours["epochs"]
    return ours


def compare(ours: pd.DataFrame, paper: PaperNumbers) -> pd.DataFrame:
    """Sets our test errors beside the paper's.

    The verdict of a row: ``agrees within 5 %`` if our mean is within 5 % of the paper's number, of either where two
    versions of the paper give two. Otherwise it is ``better`` or ``worse``: ``beyond the seeds`` if every seed of
    ours is on that side of the paper's number, ``within the seeds`` if not, ``one seed only`` if there is no spread
    to go by. The paper gives no spread of its own, so "the seeds" are ours alone.

    Args:
        ours: A row per run: ``backbone``, ``init``, ``structures`` and ``epochs`` of the pretraining, ``task``,
            ``unit``, ``seed`` and ``mae``.
        paper: The paper's numbers.

    Returns:
        A row per start and task: the first six columns of ours; over seeds ``mean``, ``low``, ``high`` and
        ``seeds``; ``paper``, ``later`` (the number of the later version, mostly NaN), ``difference`` (our mean less the
        paper's), ``ratio`` (our mean over the paper's) and ``verdict``.

    Raises:
        AtomcsiError: A unit is not the paper's.
    """
    table = ours.groupby([*KEYS, "unit"], sort=False, as_index=False).agg(
        mean=("mae", "mean"), low=("mae", "min"), high=("mae", "max"), seeds=("seed", "size")
    )
    theirs = paper.finetuning
    later = theirs["source"] == _LATER
    first = theirs[~later].rename(columns={"mae": "paper", "unit": "unit_of_paper"}).drop(columns="source")
    second = theirs[later].rename(columns={"mae": "later"})[[*KEYS, "later"]]
    for numbers in (first, second):
        table = table.merge(numbers, on=KEYS, how="left", validate="m:1")
    odd = table[table["paper"].notna() & (table["unit"] != table["unit_of_paper"])]
    if len(odd):
        row = odd.iloc[0]
        raise AtomcsiError(f"{row['task']}: errors are in {row['unit']}, the paper's in {row['unit_of_paper']}")
    table = table.drop(columns="unit_of_paper")
    table["difference"] = table["mean"] - table["paper"]
    table["ratio"] = table["mean"] / table["paper"]
    table["verdict"] = [_verdict(row) for _, row in table.iterrows()]
    return table


def _verdict(row: pd.Series) -> str:
    if np.isnan(row["paper"]):
        return NOT_IN_THE_PAPER
    if any(abs(row["mean"] / known - 1) <= TOLERANCE for known in row[["paper", "later"]].dropna()):
        return f"agrees within {TOLERANCE:.0%}".replace("%", " %")
    side = "better" if row["ratio"] < 1 else "worse"
    if row["seeds"] < 2:
        return f"{side}, one seed only"
    apart = row["high"] < row["paper"] or row["low"] > row["paper"]
    return f"{side} beyond the seeds" if apart else f"{side}, within the seeds"


def same_order(compared: pd.DataFrame) -> pd.DataFrame:
    """Says of each task whether our errors are in the paper's order.

    Only pairs that the paper tells apart count: those that differ by more than 5 % in its numbers.

    Args:
        compared: What :func:`compare` returned, or those of its rows that are to be ordered.

    Returns:
        A row per task: ``n`` starts that both have, ``pairs`` of them that count, ``alike`` of these that are in
        the paper's order, and ``same_order``: whether all are; None if no pair counts.
    """
    rows = []
    for task, points in compared.dropna(subset="paper").groupby("task", sort=False):
        pairs = list(combinations(points[["paper", "mean"]].to_numpy(), 2))
        signs = [np.sign(a - b) for a, b in pairs if max(a[0], b[0]) > min(a[0], b[0]) * (1 + TOLERANCE)]
        rows.append({"task": task, "n": len(points)} | _agreement([theirs == own for theirs, own in signs]))
    return pd.DataFrame(rows, columns=["task", "n", "pairs", "alike", "same_order"])


def same_csi_order(distances: pd.DataFrame, paper: PaperNumbers) -> pd.DataFrame:
    """Says of each downstream dataset whether our distances have the order that the paper tells of its CSI.

    Args:
        distances: Distances of one extractor, aggregation and kind (:func:`atomcsi.measure.distance_table`).
        paper: The paper's numbers.

    Returns:
        A row per downstream dataset that both have: ``lowest``, our nearest upstream, and ``pairs``, ``alike`` and
        ``same_order`` as in :func:`same_order`; pairs count that the paper puts in an order.
    """
    rows = []
    for downstream, places in paper.csi_order.groupby("downstream", sort=False):
        ours = distances[distances["downstream"] == downstream].set_index("upstream")["estimate"]
        if ours.empty:
            continue
        rank = (
            dict.fromkeys(ours.index, 0)
            | places.set_index("upstream")["place"].map({"lowest": -1, "highest": 1}).to_dict()
        )
        told = [(a, b) for a in ours.index for b in ours.index if rank[a] < rank[b]]
        agreement = _agreement([ours[a] < ours[b] for a, b in told])
        rows.append({"downstream": downstream, "lowest": ours.idxmin()} | agreement)
    return pd.DataFrame(rows, columns=["downstream", "lowest", "pairs", "alike", "same_order"])


def _agreement(alike: Sequence[bool]) -> dict[str, int | bool | None]:
    return {"pairs": len(alike), "alike": int(sum(alike)), "same_order": all(alike) if alike else None}
