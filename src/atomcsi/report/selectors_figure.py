"""The figure of selectors: what their choices cost, and whether their order is that of the errors."""

from __future__ import annotations

from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from atomcsi.report.drawing import FAINT, INK, PALE, SERIES, WIDTH, plural, seed_count, series
from atomcsi.report.outcome import ALL_TASKS, percent, signed

_TICKS = (0.002, 0.02, 0.1, 0.25, 0.5, 1, 2, 5)


def selectors_figure(table: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Regret per task and its mean, and the rank correlation over all tasks, a row per selector, trivial ones last.

    Args:
        table: As :func:`atomcsi.report.selectors.selector_table` returns it.

    Returns:
        The figure, and the table in the order of its rows.
    """
    totals = table[table["task"] == ALL_TASKS].sort_values(["trivial", "regret"], kind="stable").set_index("selector")
    selectors = list(totals.index)
    tasks = [task for task in dict.fromkeys(table["task"]) if task != ALL_TASKS]
    figure = Figure(
        figsize=(WIDTH, 1.6 + (0.28 + 0.02 * len(tasks)) * len(selectors) + 0.1 * len(tasks)), layout="constrained"
    )
    regret, order = figure.subplots(1, 2, sharey=True, width_ratios=[1.7, 1])
    _draw_regrets(regret, table, totals, tasks)
    _draw_correlations(order, totals)
    trivial = totals["trivial"].tolist()
    for axes in (regret, order):
        if True in trivial:
            axes.axhspan(trivial.index(True) - 0.5, len(selectors) - 0.5, color=PALE, linewidth=0, zorder=0)
        axes.set_ylim(len(selectors) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
    regret.set_yticks(range(len(selectors)), [fill(selector, 24) for selector in selectors])
    handles = [
        Line2D([], [], **style, linestyle="", markersize=4, label=task) for task, style in _styles(tasks).items()
    ]
    mean = {"marker": "|", "markersize": 10, "markeredgewidth": 2.4, "linestyle": ""}
    handles.append(Line2D([], [], color=INK, **mean, label="mean over tasks"))
    if totals["regret_low"].notna().any():
        handles.append(Line2D([], [], color=INK, linewidth=1.2, label="95 % interval"))
    if True in trivial:
        handles.append(Line2D([], [], color=PALE, linewidth=8, label="trivial selectors"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, handletextpad=0.4, columnspacing=1.5)
    rank = {selector: place for place, selector in enumerate(selectors)}
    return figure, table.sort_values("selector", key=lambda column: column.map(rank), kind="stable")


def _draw_regrets(axes: Axes, table: pd.DataFrame, totals: pd.DataFrame, tasks: list[str]) -> None:
    styles = _styles(tasks)
    for y, (selector, total) in enumerate(totals.iterrows()):
        regrets = table[(table["selector"] == selector) & (table["task"] != ALL_TASKS)].set_index("task")["regret"]
        for lane, task in enumerate(tasks):
            if task in regrets.index:
                # A lane for each task, so that none hides another.
                height = y + 0.6 * ((lane + 0.5) / len(tasks) - 0.5)
                axes.plot(regrets[task], height, **styles[task], markersize=3.5, clip_on=False, zorder=3)
        axes.plot([total["regret_low"], total["regret_high"]], [y, y], color=INK, linewidth=1)
        axes.plot([total["regret"]] * 2, [y - 0.36, y + 0.36], color=INK, linewidth=2.4, solid_capstyle="butt")
        _write(axes, y, percent(total["regret"]))
    largest = max(table["regret"].max(), totals["regret_high"].fillna(0).max(), 0.01)
    # Square roots show small regrets beside those of a random choice.
    axes.set_xscale("function", functions=(_signed_root, lambda roots: np.sign(roots) * np.square(roots)))
    axes.set_xlim(0, 1.8 * largest)  # room for the numbers on the right
    axes.set_xticks([0, *(tick for tick in _TICKS if largest / 100 < tick <= largest)])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title(f"cost of the choice\n{plural(len(tasks), 'task')}, {seed_count(totals['seeds'])}")
    axes.set_xlabel("error above the best\n(square-root scale)")


def _draw_correlations(axes: Axes, totals: pd.DataFrame) -> None:
    for y, (_, total) in enumerate(totals.iterrows()):
        axes.plot([total["spearman_low"], total["spearman_high"]], [y, y], color=INK, linewidth=1.2)
        axes.plot(total["spearman"], y, "o", color=INK, markersize=5)
        axes.text(
            0.99,
            y,
            signed(total["spearman"]),
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="center",
            fontsize=8,
        )
    axes.axvline(0, color=FAINT, linestyle=(0, (4, 3)), linewidth=1, zorder=0.5)
    axes.set_xlim(-1.08, 2.1)  # room for the numbers on the right
    axes.set_xticks([-1, 0, 1])
    axes.set_title(f"order against error\nn = {totals['n'].max()} points")
    axes.set_xlabel("rank correlation\n(Spearman)")


def _write(axes: Axes, y: float, text: str) -> None:
    axes.text(0.98, y, text, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=8)


def _signed_root(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.sqrt(np.abs(values))


def _styles(tasks: list[str]) -> dict[str, dict[str, str]]:
    """Colour and marker of each task: filled, and open from where colours repeat."""
    styles = {}
    for place, task in enumerate(tasks):
        color, marker = series(tasks, task)
        face = color if place // len(SERIES) % 2 == 0 else "none"
        styles[task] = {"color": color, "marker": marker, "markerfacecolor": face}
    return styles
