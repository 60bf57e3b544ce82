"""What an experiment found, in plain sentences: the first one sums up, the others go into detail."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import pandas as pd

from atomcsi.paper import PaperNumbers, published, same_csi_order, same_order
from atomcsi.quantities import number
from atomcsi.report import selector_verdicts
from atomcsi.report.drawing import plural
from atomcsi.report.experiment_table import budget_name, contests, short
from atomcsi.report.outcome import SCRATCH, Errors, listed, percent, unit_name
from atomcsi.report.selectors import selector_table

if TYPE_CHECKING:
    from atomcsi.report.experiment import Results

_BUDGET = ["budget", "structures", "epochs"]
_LITTLE = "less than 0.1%"


def csi(results: Results, table: pd.DataFrame) -> list[str]:
    """Says what is nearest to what, and which comparisons say so too."""
    nearest = table[table["rank"] == 1].groupby(["label", "downstream"], sort=False)["upstream"].first().unstack(0)
    labels = list(dict.fromkeys(table["label"]))
    first = nearest[labels[0]]
    sentences = [f"Nearest{f' by {labels[0]}' if len(labels) > 1 else ''} is {_of_whom(first)}."]
    for label in labels[1:]:
        others = nearest[label][nearest[label] != first]
        changes = [f"{upstream} to {downstream}" for downstream, upstream in others.items()]
        agree = f"{len(first) - len(others)} of {plural(len(first), 'choice')} the same"
        sentences.append(f"By {label}: {agree}" + (f"; nearest is {listed(changes)}." if changes else "."))
    if results.paper is not None:
        orders = same_csi_order(results.csi[results.csi["label"] == labels[0]], results.paper)
        sentences.append(f"CSI is {_in_order(orders, 'downstream dataset')}; the paper tells it of the ends only.")
    return [*sentences, *_classes(results)]


def _classes(results: Results) -> list[str]:
    """Counts the classes in samples of the same size that were drawn in different ways, beside the paper's counts."""
    keys = ["upstream", "upstream_structures", "upstream_sampling"]
    counts = results.csi.drop_duplicates(keys).set_index(keys)["upstream_classes"].unstack()
    found = []
    for (upstream, structures), row in counts.iterrows():
        ways = row.dropna()
        if len(ways) < 2:
            continue
        theirs = {} if results.paper is None else _counted_by_paper(results.paper, upstream, structures)
        beside = {way: f" (paper: {count:,})" for way, count in theirs.items()}
        told = [f"{int(count):,} {way}{beside.get(way, '')}" for way, count in ways.items()]
        found.append(f"{upstream} has {listed(told)} among {structures:,} structures")
    return [f"Classes in a sample, by how it was drawn: {'; '.join(found)}."] if found else []


def _counted_by_paper(paper: PaperNumbers, upstream: str, structures: int) -> Mapping[str, int]:
    """Classes by way of drawing, as far as the paper counts them in samples of that size."""
    table = paper.unique_classes
    rows = table[(table["dataset"] == upstream) & (table["structures"] == structures)]
    return rows[["random", "balanced"]].iloc[0].to_dict() if len(rows) else {}


def _of_whom(nearest: pd.Series) -> str:
    groups = nearest.groupby(nearest, sort=False).groups
    return "; ".join(f"{upstream} to {listed(list(downstreams))}" for upstream, downstreams in groups.items())


def effective_rank(results: Results, table: pd.DataFrame) -> list[str]:
    """Compares the rank of atoms with that of structures, where both have most structures."""
    largest = table[table["structures"] == table.groupby("dataset")["structures"].transform("max")]
    ranks = largest.pivot(index="dataset", columns="aggregation", values="mean")
    structures = ranks.drop(columns="flat")
    more = int((ranks["flat"] > structures.max(axis=1)).sum())
    sizes = " to ".join(f"{size:,}" for size in sorted({largest["structures"].min(), largest["structures"].max()}))
    summary = f"Features of atoms vary in more directions than features of structures in {more} of"
    sentences = [f"{summary} {plural(len(ranks), 'dataset')}, at {sizes} structures."]
    of = f"of {largest['dim'].max():,}"
    sentences.append(f"Effective rank of atoms: {_range(ranks['flat'])} {of}.")
    sentences += [f"Of structures ({name}): {_range(structures[name])} {of}." for name in structures]
    return sentences


def finetuning(results: Results, table: pd.DataFrame) -> list[str]:
    """Says which start has the least error on each task, whether the seeds tell, and what the paper says."""
    found = list(contests(table))
    several = len({backbone for _, backbone, _ in found}) > 1
    sentences = []
    for task, backbone, errors in found:
        unit = unit_name(table.loc[table["task"] == task, "unit"].iloc[0])
        sentences.append(f"{_name(task, backbone, several)}: {_contest(errors, unit)}")
    summary = _summary([errors for _, _, errors in found], "pairs of task and backbone" if several else "tasks")
    return [*summary, *sentences, *_odds(table), *_against_paper(results, [table])]


def _odds(table: pd.DataFrame) -> list[str]:
    """Says how often luck alone keeps the seeds of two equals apart."""
    seeds = int(table.loc[table["seeds"] > 0, "seeds"].min())
    if seeds < 2:
        return []
    odds = math.comb(2 * seeds, seeds) // 2
    return [f"Luck alone keeps {seeds} seeds each of two equals apart in 1 of {odds} cases."]


def _summary(contested: Sequence[Sequence[Errors]], of_what: str) -> list[str]:
    """Counts who has the least error how often, if there is anything to count."""
    if len(contested) < 2:
        return []
    wins = Counter(best.init for best, *_ in contested)
    parts = [f"{init} in {count}" for init, count in wins.most_common()]
    clear = [errors[0].apart_from(errors[1]) for errors in contested if len(errors) > 1]
    return [f"Who has the least mean error in {len(contested)} {of_what}: {listed(parts)}{_beyond(clear)}."]


def _beyond(clear: Sequence[bool | None]) -> str:
    if not clear:
        return ""
    if None in clear:
        return "; with one seed, nothing tells this from luck"
    return f"; the seeds of best and second best do not overlap in {sum(clear)} of {len(clear)}"


def _contest(errors: Sequence[Errors], unit: str) -> str:
    best, *others = errors
    sentence = f"{best.init} has the least error, {number(best.mean)} {unit}"
    if others:
        sentence += f"; {others[0].init} is {_excess(others[0], best)} above, {_noise(best, others[0])}"
    if best.init == SCRATCH:
        sentence += "; no pretraining paid"
    for scratch in others[1:]:
        if scratch.init == SCRATCH:
            sentence += f"; scratch is {_excess(scratch, best)} above, {_noise(best, scratch)}"
    return f"{sentence}."


def _excess(one: Errors, other: Errors) -> str:
    share = abs(one.mean / other.mean - 1)
    return _LITTLE if share < 0.001 else percent(share)


def _noise(one: Errors, other: Errors) -> str:
    words = {True: "beyond the seeds", False: "within the noise of the seeds"}
    return words.get(one.apart_from(other), "with one seed only")


def budget(results: Results, table: pd.DataFrame) -> list[str]:
    """Says which start is best at which budget, what a larger one brings, and whether epochs or structures do more."""
    ours = (table["epochs"] > 0) & (table["seeds"] > 0) & ~published(table)
    pretrained = table[ours].sort_values(["budget", "epochs"])
    pretrained = pretrained.assign(start=pretrained["init"])
    several = pretrained["backbone"].nunique() > 1
    every, courses, changes = [], [], []
    for (task, backbone), rows in pretrained.groupby(["task", "backbone"], sort=False):
        name = _name(task, backbone, several)
        sizes = [next(contests(at))[2] for _, at in rows.groupby(_BUDGET) if len(at) > 1]
        totals = [size[0] for size, at in rows.groupby(_BUDGET) if len(at) > 1]
        if sizes:
            every += sizes
            courses.append(f"{name}: {_course(totals, sizes)}")
        scratch = table[(table["task"] == task) & (table["backbone"] == backbone) & (table["init"] == SCRATCH)]
        changes += [f"{name}: {sentence}" for sentence in (*_paid(rows, scratch), *_more(rows), *_longer(rows))]
    alike = [at for _, at in table[table["epochs"] > 0].groupby(_BUDGET)]
    summary = _summary(every, "comparisons at equal budget")
    return [*summary, *courses, *changes, *_against_paper(results, alike)] or ["There is nothing to compare."]


def _course(totals: Sequence[int], contested: Sequence[Sequence[Errors]]) -> str:
    """Says who is best at which budgets, from the budgets, ascending, and the errors at each."""
    clear = [errors[0].apart_from(errors[1]) for errors in contested]
    winners = zip(totals, (errors[0].init for errors in contested), strict=True)
    first, *later = [(init, next(run)[0]) for init, run in groupby(winners, key=lambda winner: winner[1])]
    if later:
        overtaking = [f"{init} overtakes at C = {short(at)}" for init, at in later]
        sentence = f"{first[0]} has the least error at the smallest budget, {listed(overtaking)}"
    else:
        sentence = f"{first[0]} has the least error at every budget"
    return f"{sentence}{_beyond(clear)}."


def _paid(rows: pd.DataFrame, scratch: pd.DataFrame) -> list[str]:
    """At how many budgets each init is better than no pretraining."""
    found = []
    for init, line in rows.groupby("init", sort=False) if len(scratch) else ():
        better = line[line["mean"] < scratch["mean"].iloc[0]]
        clear = f", {(better['high'] < scratch['low'].iloc[0]).sum()} of them beyond the seeds"
        known = min(line["seeds"].min(), scratch["seeds"].min()) > 1
        found.append(f"{init} at {len(better)} of {plural(len(line), 'budget')}{clear if known else ''}")
    return [f"better than from scratch are {listed(found)}."] if found else []


def _more(rows: pd.DataFrame) -> list[str]:
    """What the largest budget brings each init over the smallest, at the same number of epochs."""
    usual = rows[rows["epochs"] == rows["epochs"].mode().iloc[0]]
    least, most = usual["budget"].min(), usual["budget"].max()
    pairs = {
        init: (line[line["budget"] == least], line[line["budget"] == most])
        for init, line in usual.groupby("init", sort=False)
    }
    if changes := _changes(pairs):
        return [f"from C = {short(least)} to {short(most)} errors change by {listed(changes)}."]
    return []


def _longer(rows: pd.DataFrame) -> list[str]:
    """What more epochs of fewer structures bring each init, at the same budget."""
    sentences = []
    for _, same in rows.groupby("budget"):
        (few, *many) = same[["structures", "epochs"]].drop_duplicates().itertuples(index=False, name=None)
        for other in many:
            pairs = {
                init: tuple(line[(line["structures"] == n) & (line["epochs"] == e)] for n, e in (few, other))
                for init, line in same.groupby("init", sort=False)
            }
            if changes := _changes(pairs):
                names = [budget_name(*found) for found in (other, few)]
                sentences.append(f"with {names[0]} instead of {names[1]} errors change by {listed(changes)}.")
    return sentences


def _changes(pairs: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]) -> list[str]:
    """Relative changes of errors from one row to another, by init, where there are both."""
    found = []
    for init, (before, after) in pairs.items():
        if len(before) == len(after) == 1 and before.index[0] != after.index[0]:
            (_, _, (old,)), (_, _, (new,)) = (next(contests(row)) for row in (before, after))
            excess = _excess(new, old)
            sign = "" if excess == _LITTLE else "+" if new.mean > old.mean else "−"
            found.append(f"{sign}{excess} ({init}, {_noise(old, new)})")
    return found


def _against_paper(results: Results, alike: Sequence[pd.DataFrame]) -> list[str]:
    """Sums up the verdicts of ours beside the paper, and whether errors have its order within each table."""
    if results.paper is None:
        return []
    rows = pd.concat(alike)
    known = rows[(rows["seeds"] > 0) & rows["paper"].notna()]
    if known.empty:
        return ["The paper has no numbers of this."]
    verdicts = [f"{verdict} ({count})" for verdict, count in Counter(known["verdict"]).most_common()]
    ordered = [same_order(some) for table in alike for _, some in table[table["seeds"] > 0].groupby("backbone")]
    orders = pd.concat(ordered)
    return [
        f"Beside the paper's numbers: {listed(verdicts)}.",
        *([f"Errors are {_in_order(orders, 'comparison')}."] if orders["pairs"].any() else []),
    ]


def _in_order(orders: pd.DataFrame, noun: str) -> str:
    told = orders[orders["pairs"] > 0]
    alike = sum(found is True for found in told["same_order"])
    pairs = f"{told['alike'].sum()} of {told['pairs'].sum()} pairs that it tells apart"
    return f"in the paper's order in {alike} of {plural(len(told), noun)}, {pairs}"


def _name(task: str, backbone: str, several: bool) -> str:
    return f"{task}, {backbone}" if several else task


def _range(values: pd.Series) -> str:
    low, high = number(values.min()), number(values.max())
    return low if low == high else f"{low} to {high}"


def csi_against_error(results: Results, table: pd.DataFrame) -> list[str]:
    """Says whether the order by distance is that of the errors, where it misleads, and what the paper's errors are."""
    label, judged = results.experiment.comparisons[0].label, selector_table(results.csi, results.finetuning)
    sentences = [selector_verdicts.verdicts(judged)[label], selector_verdicts.failures(judged, label)]
    return [*sentences, *_against_paper(results, [table])]


def selectors(results: Results, table: pd.DataFrame) -> list[str]:
    """Says what the first way of choosing is worth, where it fails, and what the others would have done."""
    return selector_verdicts.findings(table, results.experiment.comparisons[0].label)


#: By ``plot``; each takes the results and the table that their figure draws.
FINDINGS: dict[str, Callable[[Results, pd.DataFrame], list[str]]] = {
    "csi": csi,
    "effective-rank": effective_rank,
    "finetuning": finetuning,
    "budget": budget,
    "csi-against-error": csi_against_error,
    "selectors": selectors,
}
