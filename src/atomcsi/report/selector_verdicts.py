"""What a table of selectors says, in plain sentences, failures included."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from atomcsi.quantities import number
from atomcsi.report.drawing import plural
from atomcsi.report.outcome import ALL_TASKS, least_p, listed, percent, signed

#: The level that p-values are held against.
_SIGNIFICANT = 0.05


def verdicts(table: pd.DataFrame) -> dict[str, str]:
    """Says of each selector how good it is.

    Args:
        table: As :func:`atomcsi.report.selectors.selector_table` returns it.

    Returns:
        Title of the selector -> sentences.
    """
    totals = _totals(table)
    return {
        title: f"{_choices(row)} {_order(row, table)}{_rule_of_thumb(title, table)}" for title, row in totals.items()
    }


def findings(table: pd.DataFrame, selector: str) -> list[str]:
    """Says of the selector that a run goes by how good it is, where it fails, and what others would have done.

    Args:
        table: As :func:`atomcsi.report.selectors.selector_table` returns it.
        selector: Its title.
    """
    sentences = [f"{selector}: {verdicts(table)[selector]}", failures(table, selector)]
    totals = _totals(table)
    own = totals[selector]
    trivial = {title: row for title, row in totals.items() if row["trivial"] and title != selector}
    others = {title: row for title, row in totals.items() if not row["trivial"] and title != selector}
    alike = [title for title in totals if title != selector and _chosen(table, title) == _chosen(table, selector)]
    if trivial:
        better = [title for title, row in trivial.items() if row["regret"] < own["regret"]]
        sentence = f"The mean regret of trivial selectors: {_regrets(trivial)}. "
        sentence += f"{_capital(listed(better))} would have done better in the mean" if better else "None does better"
        same = [title for title in alike if title in trivial]
        sentence += f"; {listed(same)} would have chosen the same in every task." if same else "."
        sentences.append(sentence)
    if others:
        better = [title for title, row in others.items() if row["regret"] < own["regret"]]
        same = [title for title in alike if title in others]
        sentences.append(
            f"Of {plural(len(others), 'other distance')}, {len(same)} would have chosen the same in every task;"
            f" {f'{listed(better)} would have done better in the mean' if better else 'none would have done better'}."
        )
    return sentences


def failures(table: pd.DataFrame, selector: str) -> str:
    """Says in which tasks a selector's choice was not the best, and whether the seeds bear that out."""
    rows = _tasks(table, selector)
    missed = rows[rows["regret"] > 0]
    if missed.empty and len(rows) == 1:
        return "It chose the best upstream."
    if missed.empty:
        return f"It chose the best upstream in every one of {plural(len(rows), 'task')}."
    parts = []
    for beyond, start in ((1, "It fails for"), (0, "Within the noise of the seeds it misses"), (math.nan, "It misses")):
        group = missed[missed["beyond_seeds"].isna() if math.isnan(beyond) else missed["beyond_seeds"] == beyond]
        names = [
            f"{row['task']} ({row['selected']}: error {percent(row['regret'])} above that of {row['best']})"
            for _, row in group.iterrows()
        ]
        if names:
            end = ", by one seed, so that the noise is unknown." if math.isnan(beyond) else "."
            parts.append(f"{start} {listed(names)}{end}")
    return " ".join(parts)


def _choices(row: pd.Series) -> str:
    right = number(row["right"]) if row["right"] % 1 else f"{row['right']:.0f}"
    sentence = f"Right in {right} of {plural(row['tasks'], 'task')}"
    if row["beyond_seeds"] > 0:
        sentence += f", worse than the best beyond the seeds in {row['beyond_seeds']:.0f}"
    sentence += f"; on average the choice's error is {percent(row['regret'])} above the best upstream's"
    if math.isnan(row["regret_low"]):
        return sentence + " (one seed only: no interval)."
    return sentence + f" (95 % interval over seeds: {percent(row['regret_low'])} to {percent(row['regret_high'])})."


def _order(row: pd.Series, table: pd.DataFrame) -> str:
    if math.isnan(row["spearman"]):
        return "It puts the upstreams in no order."
    low, high = row["spearman_low"], row["spearman_high"]
    words = "agrees with" if low > 0 else "is opposed to" if high < 0 else "is not seen to be"
    upstreams = int(_tasks(table, row["selector"])["n"].max())
    least = least_p(upstreams)
    # The interval is of other seeds, p of the chance that any order has; few upstreams cannot make it smaller.
    words = "is not seen to be" if row["p"] > max(_SIGNIFICANT, least) else words
    words = "compares with" if math.isnan(low) else words
    interval = "" if math.isnan(low) else f", 95 % interval {signed(low)} to {signed(high)}"
    sentence = f"Its order of the upstreams {words} that of the errors (Spearman {signed(row['spearman'])}{interval}"
    if math.isnan(row["p"]):
        return f"{sentence})."
    sentence += f"; p = {number(row['p'])})"
    if least > _SIGNIFICANT:
        return f"{sentence}; {upstreams} upstreams cannot give p below {number(least)}: too few to exclude chance."
    return f"{sentence}."


def _rule_of_thumb(selector: str, table: pd.DataFrame) -> str:
    chosen = _chosen(table, selector)
    if len(chosen) < 2 or len(set(chosen)) > 1 or " or " in chosen[0]:
        return ""
    return f" It chose {chosen[0]} for every task: a rule that always takes that does as well."


def _regrets(totals: dict[str, pd.Series]) -> str:
    ordered = sorted(totals.items(), key=lambda item: item[1]["regret"])
    return listed([f"{title} {percent(row['regret'])}" for title, row in ordered])


def _totals(table: pd.DataFrame) -> dict[str, pd.Series]:
    return {row["selector"]: row for _, row in table[table["task"] == ALL_TASKS].iterrows()}


def _tasks(table: pd.DataFrame, selector: str) -> pd.DataFrame:
    return table[(table["selector"] == selector) & (table["task"] != ALL_TASKS)]


def _chosen(table: pd.DataFrame, selector: str) -> Sequence[str]:
    return _tasks(table, selector)["selected"].tolist()


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
