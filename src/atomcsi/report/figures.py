"""The figures of a report as SVG, each with the table that it draws beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from atomcsi.errors import did_you_mean
from atomcsi.quantities import number
from atomcsi.report.csi_figures import csi_elements, csi_matrix, csi_sample_size
from atomcsi.report.drawing import (
    CHOICE,
    FAINT,
    INK,
    PALE,
    PLAIN,
    WIDTH,
    panels,
    plain_log,
    plural,
    save,
    seed_count,
    series,
    styled,
)
from atomcsi.report.outcome import (
    SCRATCH,
    correlations,
    csi_against_mae,
    signed,
    summarise,
    unit_name,
)
from atomcsi.report.scatter import scatter
from atomcsi.report.tables import Tables


def draw(name: str, tables: Tables, path: Path) -> None:
    """Draws a figure as SVG, and writes the table that it draws beside it as CSV.

    The same tables give the same bytes.

    Args:
        name: One of :data:`FIGURES`.
        tables: The run's tables.
        path: The SVG file.

    Raises:
        KeyError: No such figure.
    """
    if name not in FIGURES:
        raise KeyError(f"unknown figure '{name}'{did_you_mean(name, FIGURES)}")
    with styled(name):
        figure, table = FIGURES[name](tables)
    save(path, name, figure, table)


def finetuning(tables: Tables) -> tuple[Figure, pd.DataFrame]:
    """Test error of every finetuning, a panel per task in its own unit."""
    runs = tables.finetuning
    table = summarise(runs)
    table["selected"] = table["init"] == table["dataset"].map(tables.choices)
    present = set(table["init"])
    mixes = sorted(present - {*tables.upstreams, SCRATCH})
    inits = [init for init in (*tables.upstreams, *mixes, SCRATCH) if init in present]
    tasks = list(dict.fromkeys(table["task"]))
    figure, grid = panels(len(tasks), height=1.0 + 0.27 * len(inits), sharey=True)
    for axes, task in zip(grid, tasks, strict=True):
        rows = table[table["task"] == task].set_index("init")
        seeds = runs[runs["task"] == task].groupby("init")["mae"]
        low, high = rows["low"].min(), rows["high"].max()
        width = (high - low) or abs(high) or 1.0
        axes.set_xlim(low - 0.07 * width, high + 0.36 * width)  # room for the numbers on the right
        for init, row in rows.iterrows():
            y = inits.index(init)
            color, filled = _role(init, chosen=bool(row["selected"]))
            if row["selected"]:
                axes.axhspan(y - 0.5, y + 0.5, color=PALE, linewidth=0, zorder=0)
            maes = seeds.get_group(init)
            face = color if filled else "none"
            axes.plot(maes, [y] * len(maes), "o", markersize=4.5, color=color, markerfacecolor=face, alpha=0.75)
            axes.plot([row["mean"]] * 2, [y - 0.36, y + 0.36], color=color, linewidth=2.4, solid_capstyle="butt")
            axes.text(
                0.985,
                y,
                number(row["mean"]),
                transform=axes.get_yaxis_transform(),
                ha="right",
                va="center",
                weight="bold" if row["selected"] else "normal",
            )
        if SCRATCH in rows.index:
            axes.axvline(rows.loc[SCRATCH, "mean"], color=FAINT, linestyle=(0, (4, 3)), linewidth=1, zorder=0.5)
        axes.set_yticks(range(len(inits)), inits)
        axes.set_ylim(len(inits) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(PLAIN)
        axes.grid(axis="x")
        axes.set_title(f"{task}\n{seed_count(rows['seeds'])}, {rows['structures'].max():,.0f} test structures")
        axes.set_xlabel(f"test MAE ({unit_name(rows['unit'].iloc[0])})")
    handles = [
        Line2D([], [], color=color, marker="o", linestyle="", markerfacecolor=color if filled else "none", label=label)
        for label, (color, filled) in {
            "CSI's choice": _role("", chosen=True),
            "other upstream or mix" if mixes else "other upstream": _role("", chosen=False),
            "from scratch": _role(SCRATCH, chosen=False),
        }.items()
    ]
    handles.append(
        Line2D([], [], color=INK, marker="|", markersize=11, markeredgewidth=2.4, linestyle="", label="mean")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=4, handletextpad=0.2, columnspacing=1.5)
    return figure, table


def csi_against_error(tables: Tables) -> tuple[Figure, pd.DataFrame]:
    """CSI against test error of every upstream, a panel per task, with rank correlations."""
    table = csi_against_mae(tables)
    found = correlations(table).set_index("task")
    scratch = summarise(tables.finetuning).query("init == @SCRATCH").set_index("task")["mean"]
    titles = {
        task: f"{task}\nSpearman {signed(row['spearman'])}, Kendall {signed(row['kendall'])}"
        for task, row in found.iterrows()
    }
    figure = scatter(
        table, tables.upstreams, titles=titles, scratch=scratch.to_dict(), axis="CSI (squared feature units)"
    )
    return figure, table.merge(found.rename(columns={"n": "upstreams"}), left_on="task", right_index=True, how="left")


def learning_curves(tables: Tables) -> tuple[Figure, pd.DataFrame]:
    """Validation loss of the pretrainings over epochs: each seed thin, their mean thick."""
    table = pd.DataFrame(
        [
            {"init": card["dataset"], "seed": card["seed"], "structures": card["structures"], **record}
            for card in tables.cards
            for record in card["history"]
        ],
        columns=["init", "seed", "structures", "epoch", "train_loss", "val_loss", "learning_rate"],
    )
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    axes = figure.subplots()
    names = [*tables.upstreams, *sorted(set(table["init"]) - set(tables.upstreams))]
    for init, curves in table.groupby("init", sort=False):
        color, marker = series(names, init)
        for _, curve in curves.groupby("seed"):
            axes.plot(curve["epoch"], curve["val_loss"], color=color, linewidth=0.8, alpha=0.4)
        mean = curves.groupby("epoch")["val_loss"].mean()
        label = f"{init}: {plural(curves['seed'].nunique(), 'seed')}, n = {curves['structures'].max():,}"
        axes.plot(mean.index, mean, color=color, marker=marker, markersize=4.5, linewidth=1.8, label=label)
    axes.set_yscale("log")
    plain_log(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid()
    axes.set_xlabel("epoch of n structures")
    axes.set_ylabel("validation loss\n(in units of each dataset's spread)")
    if len(table):
        figure.legend(loc="outside lower center", ncols=2, columnspacing=3)
    return figure, table


FIGURES: dict[str, Callable[[Tables], tuple[Figure, pd.DataFrame]]] = {
    "csi-matrix": csi_matrix,
    "csi-elements": csi_elements,
    "csi-sample-size": csi_sample_size,
    "finetuning": finetuning,
    "csi-against-mae": csi_against_error,
    "learning-curves": learning_curves,
}


def _role(init: str, *, chosen: bool) -> tuple[str, bool]:
    """Colour of an init in the figure of the finetunings, and whether its points are filled."""
    if init == SCRATCH:
        return FAINT, False
    return (CHOICE, True) if chosen else ("#4a4f57", True)
