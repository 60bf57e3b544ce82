"""Was CSI right? The choice of each task against what finetuning found, in numbers and in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from atomcsi.errors import AtomcsiError
from atomcsi.report.ranking import COEFFICIENTS, agreement, regrets
from atomcsi.report.tables import Tables

SCRATCH = "scratch"
#: A choice that is less probable than this to be the one of least CSI is a close call.
SURE = 0.95
#: Label of the row of :func:`correlations` that takes all tasks together.
ALL_TASKS = "all tasks"


@dataclass(frozen=True)
class Errors:
    """Test errors of a task's finetunings from one start, over seeds.

    Attributes:
        init: The upstream dataset, or ``scratch``.
        mean: Mean absolute error, averaged over seeds, in the task's unit; so are ``low``, ``high`` and ``std``.
        low: Least over seeds.
        high: Largest over seeds.
        std: Standard deviation over seeds (n - 1); NaN for one seed.
        seeds: Number of seeds.
    """

    init: str
    mean: float
    low: float
    high: float
    std: float
    seeds: int

    def apart_from(self, other: Errors) -> bool | None:
        """Whether the ranges over seeds do not overlap; None where one seed shows no spread."""
        if min(self.seeds, other.seeds) < 2:
            return None
        return self.high < other.low or other.high < self.low


@dataclass(frozen=True)
class Outcome:
    """A task's choice and what came of it.

    Attributes:
        task: The task's id.
        dataset: Its downstream dataset.
        unit: Unit of all its errors.
        selected: The upstream that CSI chose.
        p_best: Probability that it is the one of least CSI; None where CSI has no error bar.
        runner_up: The upstream with the second least CSI.
        margin: How much farther away, relative to the choice, the runner-up is; None if the least CSI is zero.
        upstreams: Errors of the upstreams that were finetuned, best first.
        scratch: Errors without pretraining; None if that was not run.
    """

    task: str
    dataset: str
    unit: str
    selected: str
    p_best: float | None
    runner_up: str
    margin: float | None
    upstreams: Sequence[Errors]
    scratch: Errors | None

    @property
    def chosen(self) -> Errors | None:
        """Errors of the choice."""
        return next((errors for errors in self.upstreams if errors.init == self.selected), None)

    @property
    def rival(self) -> Errors | None:
        """The best upstream beside the choice."""
        return next((errors for errors in self.upstreams if errors.init != self.selected), None)

    @property
    def close(self) -> bool:
        """Whether sampling alone could have made another upstream the choice."""
        return self.p_best is not None and self.p_best < SURE

    @property
    def judged(self) -> bool:
        """Whether the choice and at least one other upstream were finetuned."""
        return self.chosen is not None and self.rival is not None

    @property
    def regret(self) -> float | None:
        """How much larger the choice's mean error is than the best upstream's: 0 if it is the best."""
        return self._regrets[self.selected] if self.judged else None

    @property
    def random_regret(self) -> float | None:
        """The regret to expect of an upstream picked at random."""
        return sum(self._regrets.values()) / len(self.upstreams) if self.judged else None

    @property
    def _regrets(self) -> dict[str, float]:
        found = regrets(np.array([errors.mean for errors in self.upstreams]))
        return dict(zip((errors.init for errors in self.upstreams), found.tolist(), strict=True))

    @property
    def won(self) -> bool | None:
        """Whether no upstream has a lower mean error than the choice."""
        return self.chosen.mean <= self.rival.mean if self.judged else None

    @property
    def clear(self) -> bool | None:
        """Whether the choice and its rival differ beyond their seeds: their ranges do not overlap."""
        return self.chosen.apart_from(self.rival) if self.judged else None

    @property
    def gain(self) -> float | None:
        """The share of the error from scratch that pretraining on the choice takes away; negative if it adds."""
        if self.chosen is None or self.scratch is None:
            return None
        return 1 - self.chosen.mean / self.scratch.mean

    @property
    def gain_clear(self) -> bool | None:
        """Whether the choice and scratch differ beyond their seeds."""
        return None if self.gain is None else self.chosen.apart_from(self.scratch)


def summarise(
    finetuning: pd.DataFrame,
    by: Sequence[str] = ("task", "dataset", "unit", "init"),
    **more: tuple[str, str],
) -> pd.DataFrame:
    """Returns mean, least, largest and standard deviation of the MAE over seeds, a row per task and init.

    Args:
        finetuning: One row per finetuning.
        by: What the finetunings of a row have in common.
        **more: Further columns as pandas aggregates them; by default how many test structures there are.

    Raises:
        AtomcsiError: A run has no finite error. To leave it out would judge its start by the seeds that went well.
    """
    broken = finetuning[~np.isfinite(finetuning["mae"])]
    if len(broken):
        run = broken.iloc[0]
        raise AtomcsiError(
            f"finetuning on {run['task']} from {run['init']}, seed {run['seed']}: the test error is {run['mae']}"
            " (delete its metrics.json and run again)"
        )
    groups = finetuning.groupby(list(by), sort=False)
    return groups.agg(
        seeds=("mae", "size"),
        mean=("mae", "mean"),
        low=("mae", "min"),
        high=("mae", "max"),
        std=("mae", "std"),
        **(more or {"structures": ("structures", "max")}),
    ).reset_index()


def judge(tables: Tables, task: str, *, dataset: str, unit: str) -> Outcome:
    """Sets a task's choice against its finetunings from single upstreams, which it was made among, and from scratch.

    Args:
        tables: The run's tables.
        task: The task's id.
        dataset: Its downstream dataset, which the choice is made for.
        unit: Unit of its errors.
    """
    selection = {selection["downstream"]: selection for selection in tables.selections}[dataset]
    summary = summarise(tables.finetuning[tables.finetuning["task"] == task]).sort_values("mean")
    errors = [Errors(**row) for row in summary[list(Errors.__annotations__)].to_dict("records")]
    upstreams = {record["upstream"] for record in selection["ranking"]}
    return Outcome(
        task=task,
        dataset=dataset,
        unit=unit,
        selected=selection["selected"],
        p_best=selection["p_best"],
        runner_up=selection["runner_up"],
        margin=selection["margin"],
        upstreams=[found for found in errors if found.init in upstreams],
        scratch=next((found for found in errors if found.init == SCRATCH), None),
    )


def csi_against_mae(tables: Tables) -> pd.DataFrame:
    """Returns a row per task and finetuned upstream: its CSI beside mean, least and largest MAE over seeds."""
    csi = tables.csi[["upstream", "downstream", "estimate"]].dropna()
    paired = summarise(tables.finetuning).merge(
        csi, left_on=["init", "dataset"], right_on=["upstream", "downstream"], how="inner"
    )
    paired = paired.rename(columns={"estimate": "csi"})
    return paired[["task", "dataset", "unit", "upstream", "csi", "mean", "low", "high", "seeds"]]


def correlations(paired: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation of CSI and MAE per task, and over all tasks with ranks taken within each task.

    1 means that the upstreams' order by CSI is their order by error. Errors of different tasks are never
    compared: over all tasks, Spearman's coefficient correlates ranks around their task's mean, and Kendall's counts
    only pairs of the same task.

    Args:
        paired: As :func:`csi_against_mae` returns it.

    Returns:
        Task, ``n`` (upstreams; points for all tasks), ``spearman``, ``kendall``; NaN where no order can be told.
    """
    tasks = [
        (task, points["csi"].to_numpy(dtype=float), points["mean"].to_numpy(dtype=float))
        for task, points in paired.groupby("task", sort=False)
    ]
    groups = {task: ([csi], [errors]) for task, csi, errors in tasks}
    ordered = [(csi, errors) for _, csi, errors in tasks if np.ptp(csi) > 0 and np.ptp(errors) > 0]
    if ordered:
        groups[ALL_TASKS] = tuple(zip(*ordered, strict=True))
    rows = [
        {"task": task, "n": sum(map(len, csi))} | {kind: float(agreement(kind, csi, errors)) for kind in COEFFICIENTS}
        for task, (csi, errors) in groups.items()
    ]
    return pd.DataFrame(rows, columns=["task", "n", *COEFFICIENTS])


def least_p(n: int) -> float:
    """The two-sided p-value of a perfect order of ``n`` things: 2 of the n! orders are that extreme."""
    return min(2 / math.factorial(n), 1.0)


def verdict(outcome: Outcome) -> str:
    """Says in plain words whether the choice of a task was right and whether it paid."""
    if outcome.chosen is None:
        return f"CSI chose {outcome.selected}, but nothing was finetuned from it, so the choice cannot be judged."
    if outcome.rival is None:
        sentence = f"CSI chose {outcome.selected}; no other upstream was finetuned, so the choice cannot be judged."
    else:
        sentence = _against_rival(outcome, outcome.rival)
    return f"{sentence} {_against_scratch(outcome)}".strip()


def _against_rival(outcome: Outcome, rival: Errors) -> str:
    if outcome.won:
        sentence = (
            f"CSI chose {outcome.selected}, which has the lowest mean error of {len(outcome.upstreams)} upstreams"
        )
        ends = {
            True: f", and every seed of it is better than every seed of the next best, {rival.init}.",
            False: f", but its seeds overlap with those of {rival.init}: the win is within the noise.",
        }
    else:
        excess = percent(outcome.regret)
        sentence = (
            f"CSI chose {outcome.selected}, but {rival.init} was better: the choice's mean error is {excess} higher"
        )
        ends = {
            True: f", and every seed of it is worse than every seed of {rival.init}.",
            False: ", though the seeds overlap: the miss is within the noise.",
        }
    return sentence + ends.get(outcome.clear, "; with a single seed, the noise is unknown.")


def _against_scratch(outcome: Outcome) -> str:
    if outcome.gain is None:
        return ""
    ends = {True: ".", False: ", which is within the noise."}
    end = ends.get(outcome.gain_clear, "; with a single seed, the noise is unknown.")
    if outcome.gain > 0:
        return f"Pretraining on it takes {percent(outcome.gain)} off the error from scratch{end}"
    excess = percent(outcome.chosen.mean / outcome.scratch.mean - 1)
    return f"Pretraining on it did not pay: the choice's mean error is {excess} higher than from scratch{end}"


def overall(outcomes: Sequence[Outcome]) -> list[str]:
    """Says in plain words, a sentence each, what the run shows about CSI, failures included."""
    judged = [outcome for outcome in outcomes if outcome.judged]
    sentences = []
    if judged:
        won = [outcome for outcome in judged if outcome.won]
        sentence = f"CSI chose the best upstream in {len(won)} of {_tasks(len(judged))}"
        sentence += _beyond([outcome.clear for outcome in won])
        missed = [
            f"{outcome.task} (error {percent(outcome.regret)} above the best, {outcome.rival.init})"
            for outcome in judged
            if not outcome.won
        ]
        sentences.append(sentence + (f"; it failed for {listed(missed)}." if missed else "."))
        regret, random = (
            sum(values) / len(judged)
            for values in zip(*((outcome.regret, outcome.random_regret) for outcome in judged), strict=True)
        )
        sentences.append(
            f"On average its choice's error is {percent(regret)} above the best upstream's;"
            f" a choice at random would be {percent(random)} above."
        )
    if len(judged) < len(outcomes):
        unjudged = len(outcomes) - len(judged)
        sentences.append(f"{_tasks(unjudged).capitalize()} cannot be judged: too few upstreams were finetuned.")
    compared = [outcome for outcome in outcomes if outcome.gain is not None]
    if compared:
        paid = [outcome for outcome in compared if outcome.gain > 0]
        sentences.append(
            f"Pretraining on the choice beat training from scratch in {len(paid)} of {_tasks(len(compared))}"
            + f"{_beyond([outcome.gain_clear for outcome in paid])}."
        )
    selected = {outcome.selected for outcome in outcomes}
    if len(outcomes) > 1 and len(selected) == 1:
        sentences.append(
            f"The choice is {selected.pop()} for every task, so this run cannot tell CSI from a rule of thumb that"
            " always takes it."
        )
    return sentences


def _beyond(clear: Sequence[bool | None]) -> str:
    """Says how many wins are more than noise."""
    if not clear:
        return ""
    if None in clear:
        return ", with too few seeds to know the noise"
    return f", beyond the noise of the seeds in {sum(clear)}"


def _tasks(count: int) -> str:
    return f"{count} task" if count == 1 else f"{count} tasks"


def listed(parts: Sequence[str]) -> str:
    """Writes things as a list in a sentence."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def percent(share: float | None) -> str:
    """Writes a share as a percentage, with a decimal where it is below 10%."""
    if share is None or not math.isfinite(share):
        return "–"
    return f"{100 * share:.{1 if 0 < abs(share) < 0.0995 else 0}f}%"


def chance(probability: float | None) -> str:
    """Writes a probability that is known from a finite number of draws, and from a model of the errors."""
    if probability is None or not math.isfinite(probability):
        return "–"
    if not 0.001 <= probability <= 0.999:
        return "more than 99.9%" if probability > 0.5 else "less than 0.1%"
    return percent(probability)


def signed(coefficient: float) -> str:
    """Writes a correlation coefficient."""
    return "–" if math.isnan(coefficient) else f"{coefficient:+.2f}".replace("-", "−")


def unit_name(unit: str) -> str:
    """Writes a unit of the config as people do."""
    return unit.replace("angstrom", "Å")
