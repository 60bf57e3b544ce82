"""The figures of a report as SVG, each with the table that it draws beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from atomcsi.errors import did_you_mean
from atomcsi.files import atomic_path, write_table
from atomcsi.report.outcome import (
    SCRATCH,
    Tables,
    correlations,
    csi_against_mae,
    number,
    signed,
    summarise,
    unit_name,
)

#: Inches; narrow enough that the text can still be read where a telephone shrinks a figure to its screen.
WIDTH = 5.8
INK, FAINT, CHOICE, PALE = "#1b2330", "#6b7280", "#0072b2", "#e3eff7"
#: Colours of Okabe and Ito, told apart by the colour-blind; the marker tells them apart in grey.
SERIES = list(zip(["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"], "osD^vP", strict=True))
PLAIN = FuncFormatter(lambda value, _: f"{value:,.12g}")
STYLE = {
    # Text stays text: it can be searched and read aloud. Matplotlib sets it in DejaVu, which is wider than what a
    # reader's machine may put in its place, so nothing collides there.
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": "#e3e6eb",
    "legend.frameon": False,
}


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
    path = Path(path)
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure, table = FIGURES[name](tables)
        write_table(path.with_suffix(".csv"), table)
        with atomic_path(path) as temporary:
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(temporary, format="svg", metadata=nothing)


def csi_matrix(tables: Tables) -> tuple[Figure, pd.DataFrame]:
    """Heat map of the CSI, a row per downstream dataset, with the choice of each row framed."""
    csi, choices = tables.csi, tables.choices
    rows, columns = list(dict.fromkeys(csi["downstream"])), tables.upstreams
    values = csi.pivot(index="downstream", columns="upstream", values="value").loc[rows, columns].to_numpy()
    width = max(0.75, 0.15 + 0.063 * max(map(len, columns)))  # inches of a column, for its name
    figure = Figure(figsize=(2.0 + width * len(columns), 1.25 + 0.46 * len(rows)), layout="constrained")
    axes = figure.subplots()

    # A distance of zero has no logarithm: it takes the darkest colour.
    positive = values[values > 0]
    low, high = (positive.min(), positive.max()) if positive.size else (1.0, 10.0)
    scale = LogNorm(low, max(high, low * 1.01), clip=True)
    cividis = mpl.colormaps["cividis"].with_extremes(bad="#ffffff")
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(np.maximum(values, low)), cmap=cividis, norm=scale, edgecolors="white", linewidth=1.5
    )
    for (row, column), value in np.ndenumerate(values):
        chosen = choices.get(rows[row]) == columns[column]
        dark = np.isfinite(value) and scale(max(value, low)) < 0.5
        axes.text(
            column + 0.5,
            row + 0.5,
            f"★ {number(value)}" if chosen else number(value),
            ha="center",
            va="center",
            color="white" if dark else INK,
            weight="bold" if chosen else "normal",
        )
        if chosen:
            frame = (column + 0.05, row + 0.07)
            axes.add_patch(Rectangle(frame, 0.9, 0.86, fill=False, edgecolor="white" if dark else INK, linewidth=1.6))

    structures = {side: csi.groupby(side)[f"{side}_structures"].first() for side in ("upstream", "downstream")}
    for axis, side, names in ((axes.xaxis, "upstream", columns), (axes.yaxis, "downstream", rows)):
        labels = [f"{name}\nn = {structures[side][name]:,}" for name in names]
        axis.set_ticks(np.arange(len(names)) + 0.5, labels)
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("upstream (n structures)", color=FAINT)
    axes.set_ylabel("downstream (n structures)", color=FAINT)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)

    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=14)
    bar.set_label("CSI (squared feature units)")
    bar.outline.set_visible(False)
    _plain_log(bar.ax.yaxis)
    bar.ax.tick_params(which="both", length=2)
    return figure, csi.assign(selected=csi["upstream"] == csi["downstream"].map(choices))


def finetuning(tables: Tables) -> tuple[Figure, pd.DataFrame]:
    """Test error of every finetuning, a panel per task in its own unit."""
    runs = tables.finetuning
    table = summarise(runs)
    table["selected"] = table["init"] == table["dataset"].map(tables.choices)
    present = set(table["init"])
    inits = [init for init in (*tables.upstreams, SCRATCH) if init in present]
    tasks = list(dict.fromkeys(table["task"]))
    figure, panels = _panels(len(tasks), height=1.0 + 0.27 * len(inits), sharey=True)
    for axes, task in zip(panels, tasks, strict=True):
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
        axes.set_title(f"{task}\n{_count(rows['seeds'])}, {rows['structures'].max():,.0f} test structures")
        axes.set_xlabel(f"test MAE ({unit_name(rows['unit'].iloc[0])})")
    handles = [
        Line2D([], [], color=color, marker="o", linestyle="", markerfacecolor=color if filled else "none", label=label)
        for label, (color, filled) in {
            "CSI's choice": _role("", chosen=True),
            "other upstream": _role("", chosen=False),
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
    tasks = list(dict.fromkeys(table["task"]))
    figure, panels = _panels(len(tasks), height=2.45)
    for axes, task in zip(panels, tasks, strict=True):
        points = table[table["task"] == task]
        for _, point in points.iterrows():
            color, marker = _series(tables.upstreams, point["upstream"])
            spread = [[point["mean"] - point["low"]], [point["high"] - point["mean"]]]
            axes.errorbar(
                point["csi"],
                point["mean"],
                spread,
                color=color,
                marker=marker,
                markersize=6.5,
                capsize=3,
                linewidth=1.3,
            )
        if task in scratch.index:
            axes.axhline(scratch[task], color=FAINT, linestyle=(0, (4, 3)), linewidth=1)
        axes.margins(0.12)
        if (points["csi"] > 0).all():
            axes.set_xscale("log")
            _plain_log(axes.xaxis)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(PLAIN)
        axes.grid(axis="y")
        row = found.loc[task]
        coefficients = f"Spearman {signed(row['spearman'])}, Kendall {signed(row['kendall'])}"
        axes.set_title(f"{task}, n = {row['n']:.0f}\n{coefficients}")
        axes.set_xlabel("CSI (squared feature units)")
        axes.set_ylabel(f"test MAE ({unit_name(points['unit'].iloc[0])})")
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="", markersize=6.5, label=name)
        for name in tables.upstreams
        for color, marker in [_series(tables.upstreams, name)]
    ]
    handles.append(Line2D([], [], color=FAINT, linestyle=(0, (4, 3)), linewidth=1, label="from scratch"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, handletextpad=0.6)
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
    for init, curves in table.groupby("init", sort=False):
        color, marker = _series(tables.upstreams, init)
        for _, curve in curves.groupby("seed"):
            axes.plot(curve["epoch"], curve["val_loss"], color=color, linewidth=0.8, alpha=0.4)
        mean = curves.groupby("epoch")["val_loss"].mean()
        label = f"{init}: {_plural(curves['seed'].nunique(), 'seed')}, n = {curves['structures'].max():,}"
        axes.plot(mean.index, mean, color=color, marker=marker, markersize=4.5, linewidth=1.8, label=label)
    axes.set_yscale("log")
    _plain_log(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid()
    axes.set_xlabel("epoch of n structures")
    axes.set_ylabel("validation loss\n(in units of each dataset's spread)")
    if len(table):
        figure.legend(loc="outside lower center", ncols=2, columnspacing=3)
    return figure, table


FIGURES: dict[str, Callable[[Tables], tuple[Figure, pd.DataFrame]]] = {
    "csi-matrix": csi_matrix,
    "finetuning": finetuning,
    "csi-against-mae": csi_against_error,
    "learning-curves": learning_curves,
}


def _panels(count: int, *, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """Returns a figure with ``count`` panels in at most two columns, each ``height`` inches high."""
    columns = min(max(count, 1), 2)
    rows = math.ceil(count / columns) or 1
    figure = Figure(figsize=(WIDTH, 0.35 + height * rows), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.06, w_pad=0.09)
    grid = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, list(grid[:count])


def _series(names: Sequence[str], name: str) -> tuple[str, str]:
    """Colour and marker of an upstream, the same in every figure."""
    return SERIES[(names.index(name) if name in names else len(names)) % len(SERIES)]


def _role(init: str, *, chosen: bool) -> tuple[str, bool]:
    """Colour of an init in the figure of the finetunings, and whether its points are filled."""
    if init == SCRATCH:
        return FAINT, False
    return (CHOICE, True) if chosen else ("#4a4f57", True)


def _plain_log(axis: Any) -> None:
    """Labels a logarithmic axis with plain numbers, the fewer per power of ten the more of these it spans."""
    low, high = sorted(axis.get_view_interval())
    powers = math.log10(high / low) if low > 0 else 0.0
    axis.set_major_locator(LogLocator(subs=(1,) if powers > 3 else (1, 3) if powers > 1.5 else (1, 2, 5)))
    axis.set_major_formatter(PLAIN)
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _count(seeds: pd.Series) -> str:
    low, high = seeds.min(), seeds.max()
    return _plural(high, "seed") if low == high else f"{low} to {high} seeds"
