"""The test errors of an experiment over its seeds, at full scale beside the paper's: what its figures draw."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.ticker import EngFormatter

from atomcsi.costs.bill import JMP_BUDGET
from atomcsi.paper import KEYS as PAPER_KEYS
from atomcsi.paper import compare, published
from atomcsi.report.outcome import Errors, summarise

if TYPE_CHECKING:
    from atomcsi.report.experiment import Results

#: What the finetunings of a row have in common.
KEYS = ["backbone", "init", "structures", "epochs", "budget", "task", "dataset", "unit"]
_SHORT = EngFormatter(sep="")


def error_table(results: Results) -> pd.DataFrame:
    """Returns the errors of an experiment's finetunings over seeds, a row per start and task.

    Returns:
        :data:`KEYS`; ``start``, what figures call it; ``seeds``, ``mean``, ``low``, ``high``, ``std`` (n - 1);
        ``test_structures``; ``gpu_hours``, ``kwh`` and ``seconds`` of a pretraining, averaged over seeds. At full
        scale also ``jmp_share``, the budget over JMP's, the paper's measure of cost. Where the paper's numbers are
        given, also what :func:`atomcsi.paper.compare` says of each, and rows of the published
        models that only the paper has: there ``seeds`` is 0.

    Raises:
        AtomcsiError: A finetuning has no finite error, or another unit than the paper's.
    """
    costs = {name: (name, "mean") for name in ("gpu_hours", "kwh", "seconds")}
    table = summarise(results.finetuning, KEYS, test_structures=("test_structures", "max"), **costs)
    if results.paper is not None:
        beside = compare(results.finetuning, results.paper)
        beside = beside[[*PAPER_KEYS, "paper", "later", "difference", "ratio", "verdict"]]
        table = table.merge(beside, on=PAPER_KEYS, how="left", validate="1:1")
        theirs = results.paper.finetuning
        theirs = theirs[published(theirs) & theirs["task"].isin(table["task"])]
        theirs = theirs[~pd.MultiIndex.from_frame(theirs[PAPER_KEYS]).isin(pd.MultiIndex.from_frame(table[PAPER_KEYS]))]
        theirs = theirs.assign(budget=theirs["structures"] * theirs["epochs"], seeds=0)
        table = pd.concat([table, theirs.rename(columns={"mae": "paper"}).drop(columns="source")], ignore_index=True)
    if results.scale == "full":
        table["jmp_share"] = table["budget"] / JMP_BUDGET
    several = table.groupby("init")[["structures", "epochs"]].transform("nunique").max(axis=1) > 1
    budgets = [budget_name(*found) for found in zip(table["structures"], table["epochs"], strict=True)]
    table.insert(2, "start", table["init"].where(~several, table["init"] + ", " + pd.Series(budgets)))
    return table


def budget_name(structures: int, epochs: int) -> str:
    """Writes a budget as structures x epochs."""
    return f"{short(structures)} × {epochs}"


def short(count: float) -> str:
    """Writes a number of structures in little room: 2M, 500k, 5k, 1,920."""
    return f"{count:,}" if count < 10_000 and count % 1000 else _SHORT(count)


def contests(table: pd.DataFrame) -> Iterator[tuple[str, str, list[Errors]]]:
    """Yields what can be compared: task, backbone, and the errors of its starts, the least mean first.

    Args:
        table: What :func:`error_table` returned, or some of its rows.
    """
    ours = table[table["seeds"] > 0].sort_values("mean", kind="stable")
    for task, backbone in table.loc[table["seeds"] > 0, ["task", "backbone"]].drop_duplicates().itertuples(index=False):
        rows = ours[(ours["task"] == task) & (ours["backbone"] == backbone)]
        names = ["mean", "low", "high", "std", "seeds"]
        yield task, backbone, [Errors(row["start"], **row[names]) for _, row in rows.iterrows()]
