"""How good is a way of selecting upstream datasets? Distances against trivial selectors, by what finetuning found.

A selector gives every upstream of a task a score and chooses the least. Two questions are asked of it. *Is its order
that of the errors?* Rank correlation, in a task and over all. *What does its choice cost?* Regret: the error of the
choice over that of the best upstream, less 1.

*Intervals* are parametric bootstraps: everything is computed again over draws of the errors and of the scores, and the
middle 95 % of the results is the interval. A mean error over s seeds is drawn from Student's t with s - 1 degrees of
freedom. A seed's pretraining moves the errors in all tasks at once: the draw weighs the seeds' deviations with normal
numbers that all tasks share (wild bootstrap, Wu 1986). A score that has an error bar is drawn from the normal
distribution of its difference to the nearest upstream, from which the error of the downstream sample, common to all,
has mostly gone. With one seed the noise is unknown, and so are the intervals. Those of regrets are over the seeds
alone, for the choice is what was really chosen. Noise can only add to the regret of the best and only spoil a perfect
order, so that the draws lean to that side; an interval is widened to hold the number that it is of. In simulations with
three seeds 98 to 99 % of the intervals of a regret held the truth: they are wider than they need to be.

*p-values* are exact permutation tests over the upstreams (:func:`atomcsi.report.ranking.permutation_p`). With four
upstreams no order, however perfect, has one below 1/12, in one task or in many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from atomcsi.registry import DISTANCES, load
from atomcsi.report.outcome import ALL_TASKS, Errors, summarise
from atomcsi.report.ranking import COEFFICIENTS, agreement, permutation_p, regrets

_DRAWS = 4000
_LEVEL = 0.95
#: Extractor and distance that know nothing but elements.
_COMPOSITION, _ELEMENTS = "composition", "elements"

COLUMNS = [
    *("selector", "trivial", "extractor", "aggregation", "distance", "task", "tasks", "n", "seeds"),
    *(f"{kind}{end}" for kind in COEFFICIENTS for end in ("", "_low", "_high")),
    *("p", "selected", "best", "regret", "regret_low", "regret_high", "right", "beyond_seeds"),
]


@dataclass(frozen=True)
class _Task:
    """What finetuning found of a task.

    Attributes:
        dataset: Its downstream dataset.
        upstreams: The upstreams that were finetuned, in alphabetical order.
        errors: Their errors over seeds.
        means: Mean errors, shape (upstreams,).
        draws: Draws of them, shape (draws, upstreams); NaN of a single seed.
    """

    dataset: str
    upstreams: list[str]
    errors: list[Errors]
    means: np.ndarray
    draws: np.ndarray


@dataclass(frozen=True)
class _Selector:
    """A way of selecting.

    Attributes:
        names: Title, whether it is trivial, extractor, aggregation and distance, by column.
        scores: Downstream dataset -> upstream -> score; the least is selected.
        errors: The same of the standard errors of their differences to the nearest; 0 where none is known.
    """

    names: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, float]]
    errors: Mapping[str, Mapping[str, float]]


def selector_table(
    distances: pd.DataFrame,
    finetuning: pd.DataFrame,
    *,
    sizes: Mapping[str, float] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Tells how good every distance and every trivial selector is.

    Trivial are the largest dataset, one at random, and whatever knows nothing but elements: the distance ``elements``
    and all distances of the extractor ``composition``. Upstreams that score alike are chosen with equal probability,
    and what is expected then is tabulated.

    Args:
        distances: All distances in long form (:func:`atomcsi.measure.distance_table`). Where there is a column
            ``label``, it tells selectors apart, and is their title.
        finetuning: Test errors, a row per run, of one backbone and budget; starts that are no upstream of
            ``distances`` do not count, nor do tasks with less than two upstreams.
        sizes: Structures of upstreams, where they are not those that ``distances`` tells of.
        seed: Seed of the draws.

    Returns:
        A row per selector and task, and one for ``all tasks``: ``selector`` (title), ``trivial``, ``extractor``,
        ``aggregation``, ``distance`` (empty where they do not apply), ``task``, ``tasks`` (1, or how many), ``n``
        upstreams (points, of all tasks), ``seeds`` (least over upstreams), ``spearman`` and ``kendall`` with the ends
        of their 95 % intervals, ``p``, ``selected`` and ``best`` upstream, ``regret`` with its interval (their mean,
        of all tasks), ``right`` (whether the choice is the best: its probability, and over all tasks the expected
        number) and ``beyond_seeds``: whether every seed of the choice is worse than every seed of the best (over all
        tasks, in how many).

    Raises:
        AtomcsiError: A run has no finite error.
    """
    upstreams = sorted(set(distances["upstream"]))
    generator = np.random.default_rng(seed)
    tasks = _tasks(finetuning, upstreams, generator)
    # The same draws for every selector, so that one more changes nothing.
    normals = {
        dataset: dict(zip(upstreams, generator.standard_normal((len(upstreams), _DRAWS)), strict=True))
        for dataset in dict.fromkeys(task.dataset for task in tasks.values())
    }
    rows = []
    for selector in _selectors(distances, list(normals), sizes or {}):
        judged = {name: _judged(task, selector, normals) for name, task in tasks.items()}
        judged = {name: found for name, found in judged.items() if found is not None}
        rows += [selector.names | {"task": name} | _row([found], seed) for name, found in judged.items()]
        if judged:
            rows.append(selector.names | {"task": ALL_TASKS} | _row(list(judged.values()), seed))
    return pd.DataFrame(rows, columns=COLUMNS)


def _tasks(finetuning: pd.DataFrame, upstreams: Sequence[str], generator: np.random.Generator) -> dict[str, _Task]:
    runs = finetuning[finetuning["init"].isin(upstreams)]
    summary = summarise(runs)
    seeds = sorted(set(runs["seed"]))
    weights = {upstream: generator.standard_normal((_DRAWS, len(seeds))) for upstream in upstreams}
    scales = {upstream: generator.chisquare(max(len(seeds) - 1, 1), _DRAWS) for upstream in upstreams}
    tasks = {}
    for task, rows in summary.groupby("task", sort=False):
        if len(rows) < 2:
            continue
        rows = rows.sort_values("init")
        maes = runs[runs["task"] == task].pivot(index="init", columns="seed", values="mae").reindex(columns=seeds)
        draws = [_mean_draws(maes.loc[name].to_numpy(), weights[name], scales[name]) for name in rows["init"]]
        tasks[task] = _Task(
            dataset=rows["dataset"].iloc[0],
            upstreams=rows["init"].tolist(),
            errors=[Errors(**row) for row in rows[list(Errors.__annotations__)].to_dict("records")],
            means=rows["mean"].to_numpy(),
            draws=np.stack(draws, axis=-1),
        )
    return tasks


def _mean_draws(maes: np.ndarray, weights: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Draws of a mean error: Student's t around the mean, on the logarithmic scale, for errors are positive.

    Args:
        maes: By seed, shape (seeds,); NaN where there is no run.
        weights: Normal numbers, shape (draws, seeds).
        scale: Chi-square numbers of as many degrees of freedom as the run has seeds less 1, shape (draws,).
    """
    there = ~np.isnan(maes)
    count, mean = int(there.sum()), np.nanmean(maes)
    if count < 2:
        return np.full(len(weights), np.nan)
    deviations = np.where(there, maes - mean, 0.0)
    normal = weights @ deviations / math.sqrt(count * (count - 1))
    # Two seeds bound nothing: a factor of a million keeps quotients of such draws finite.
    return mean * np.exp(np.clip(normal / np.sqrt(scale / (len(maes) - 1)) / mean, *np.log([1e-6, 1e6])))


def _selectors(distances: pd.DataFrame, datasets: Sequence[str], known: Mapping[str, float]) -> Iterator[_Selector]:
    keys = ["extractor", "aggregation", "distance"]
    measured = distances.dropna(subset="estimate")
    if "label" not in measured:
        titles = [_title(*names) for names in measured[keys].itertuples(index=False)]
        measured = measured.assign(label=titles)
    # The elements are the same whatever the extractor: once is enough.
    elements = measured["distance"] == _ELEMENTS
    first = measured[elements].drop_duplicates(["upstream", "downstream"])
    measured = pd.concat([measured[~elements], first.assign(extractor="", aggregation="")])
    # Trivial ones last.
    trivial = measured["extractor"].isin([_COMPOSITION, ""])
    for part, is_trivial in ((measured[~trivial], False), (measured[trivial], True)):
        for (title, *names), rows in part.groupby(["label", *keys], sort=False):
            yield _Selector(
                names={"selector": title, "trivial": is_trivial, **dict(zip(keys, names, strict=True))},
                scores=_nested(rows, rows["estimate"]),
                errors=_nested(rows, _error_of_difference(rows)),
            )
    sizes = distances.groupby("upstream")["upstream_population"].max().to_dict()
    sizes |= {name: size for name, size in known.items() if name in sizes}
    unknown = dict.fromkeys(keys, "")
    for title, score in (("largest dataset", lambda name: -sizes[name]), ("random dataset", lambda name: 0)):
        scores = {dataset: {name: float(score(name)) for name in sizes} for dataset in datasets}
        exact = {dataset: dict.fromkeys(sizes, 0.0) for dataset in datasets}
        yield _Selector({"selector": title, "trivial": True, **unknown}, scores, exact)


def _title(extractor: str, aggregation: str, distance: str) -> str:
    if distance == _ELEMENTS:
        return "element overlap"
    title = f"{load(DISTANCES, distance).title} of {'elements' if extractor == _COMPOSITION else extractor}"
    return title if aggregation == "flat" else f"{title} ({aggregation})"


def _error_of_difference(rows: pd.DataFrame) -> pd.Series:
    """Standard error of how much farther than the nearest an upstream is, from its 95 % interval."""
    width = rows["beyond_best_high"].astype(float) - rows["beyond_best_low"].astype(float)
    return (width / (2 * norm.ppf((1 + _LEVEL) / 2))).fillna(0.0)


def _nested(rows: pd.DataFrame, values: pd.Series) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for downstream, upstream, value in zip(rows["downstream"], rows["upstream"], values, strict=True):
        found.setdefault(downstream, {})[upstream] = float(value)
    return found


@dataclass(frozen=True)
class _Judged:
    """A task by a selector: upstreams with both a score and an error, and ``scores`` with ``score_draws`` of them."""

    task: _Task
    scores: np.ndarray
    score_draws: np.ndarray

    @property
    def chosen(self) -> np.ndarray:
        """Probability of each upstream to be chosen, shape (upstreams,)."""
        nearest = self.scores == self.scores.min()
        return nearest / nearest.sum()

    @property
    def best(self) -> int:
        return int(self.task.means.argmin())

    @property
    def beyond_seeds(self) -> bool | None:
        """Whether whatever may be chosen is worse than the best in every seed; None if a seed shows no spread."""
        apart = [self.task.errors[i].apart_from(self.task.errors[self.best]) for i in np.flatnonzero(self.chosen)]
        return None if None in apart else all(apart)


def _judged(task: _Task, selector: _Selector, normals: Mapping[str, Mapping[str, np.ndarray]]) -> _Judged | None:
    scores, errors = selector.scores.get(task.dataset, {}), selector.errors.get(task.dataset, {})
    kept = [i for i, name in enumerate(task.upstreams) if name in scores]
    if len(kept) < 2:
        return None
    names = [task.upstreams[i] for i in kept]
    values = np.array([scores[name] for name in names])
    noise = np.stack([normals[task.dataset][name] * errors[name] for name in names], axis=-1)
    own = _Task(task.dataset, names, [task.errors[i] for i in kept], task.means[kept], task.draws[:, kept])
    return _Judged(own, values, values + noise)


def _row(judged: Sequence[_Judged], seed: int) -> dict[str, Any]:
    """The numbers of one task, or of all of them together."""
    scores, means = [each.scores for each in judged], [each.task.means for each in judged]
    drawn_scores, drawn_means = [each.score_draws for each in judged], [each.task.draws for each in judged]
    known = not any(np.isnan(draws).any() for draws in drawn_means)
    row: dict[str, Any] = {
        "tasks": len(judged),
        "n": sum(map(len, scores)),
        "seeds": min(errors.seeds for each in judged for errors in each.task.errors),
    }
    for kind in COEFFICIENTS:
        row[kind] = float(agreement(kind, scores, means))
        draws = agreement(kind, drawn_scores, drawn_means) if known and not math.isnan(row[kind]) else None
        row[f"{kind}_low"], row[f"{kind}_high"] = _interval(row[kind], draws)
    same = len({tuple(each.task.upstreams) for each in judged}) == 1
    row["p"] = permutation_p(scores, means, seed=seed) if same else math.nan
    if len(judged) == 1:
        (only,) = judged
        names = [only.task.upstreams[i] for i in np.flatnonzero(only.chosen)]
        row["selected"] = " or ".join(names)
        row["best"] = only.task.upstreams[only.best]
    row["regret"] = float(np.mean([regrets(each.task.means) @ each.chosen for each in judged]))
    drawn = np.mean([regrets(each.task.draws) @ each.chosen for each in judged], axis=0) if known else None
    row["regret_low"], row["regret_high"] = _interval(row["regret"], drawn)
    row["right"] = float(sum(each.chosen @ (each.task.means == each.task.means.min()) for each in judged))
    beyond = [each.beyond_seeds for each in judged]
    row["beyond_seeds"] = math.nan if None in beyond else float(sum(beyond))
    return row


def _interval(value: float, draws: np.ndarray | None) -> tuple[float, float]:
    if draws is None:
        return math.nan, math.nan
    low, high = np.nanpercentile(draws, [50 * (1 - _LEVEL), 50 * (1 + _LEVEL)])
    return min(float(low), value), max(float(high), value)
