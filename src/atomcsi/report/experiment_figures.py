"""How experiments are drawn, by their ``plot``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator

from atomcsi.paper import published
from atomcsi.quantities import number
from atomcsi.registry import DISTANCES, load
from atomcsi.report.drawing import CHOICE, FAINT, INK, PALE, PLAIN, WIDTH, panels, plain_log, plural, seed_count, series
from atomcsi.report.experiment_table import KEYS, contests, error_table, short
from atomcsi.report.outcome import SCRATCH, signed, unit_name
from atomcsi.report.scatter import scatter
from atomcsi.report.selectors import selector_table
from atomcsi.report.selectors_figure import selectors_figure

if TYPE_CHECKING:
    from atomcsi.report.experiment import Results

_DASHED = {"color": FAINT, "linestyle": (0, (4, 3)), "linewidth": 1}
_PAPER = "#d55e00"
_FILLS = ["full", "none", "left", "bottom", "right", "top"]
_LINES = ["-", (0, (1, 1)), "-.", (0, (7, 1.5)), (0, (3, 1, 1, 1, 1, 1))]
_ON_PAPER = {"color": _PAPER, "marker": "D", "markersize": 5, "markerfacecolor": "none", "linestyle": ""}
#: Errors that differ by more than this factor are drawn on a logarithmic axis.
_FAR_APART = 4


def csi(results: Results) -> tuple[Figure, pd.DataFrame, str]:
    """Heat maps of distances, a panel per comparison: every row is coloured by the order of its upstreams."""
    table = results.csi.copy()
    rows = table.groupby(["label", "downstream"], sort=False)["estimate"]
    table["rank"] = rows.rank(method="min")
    labels, downstreams = (list(dict.fromkeys(table[key])) for key in ("label", "downstream"))
    upstreams = sorted(set(table["upstream"]))
    wide = len(labels) == 1
    columns = 1 if wide or len(upstreams) > 5 else 2
    lines = -(-len(labels) // columns)
    height = (
        0.65
        + 0.055 * max(map(len, upstreams))
        + lines * ((0.6 if wide else 0.73) + (0.42 if wide else 0.3) * len(downstreams))
    )
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    shades = mpl.colormaps["cividis"].resampled(len(upstreams))
    norm = BoundaryNorm(np.arange(len(upstreams) + 1) + 0.5, shades.N)
    for axes in grid[len(labels) :]:
        axes.set_visible(False)
    for axes, label in zip(grid, labels, strict=False):
        own = table[table["label"] == label]
        cells = own.set_index(["downstream", "upstream"])
        ranks = cells["rank"].unstack().reindex(index=downstreams, columns=upstreams).to_numpy()
        axes.pcolormesh(np.ma.masked_invalid(ranks), cmap=shades, norm=norm, edgecolors="white", linewidth=1.2)
        for (row, column), rank in np.ndenumerate(ranks):
            found = cells.loc[(downstreams[row], upstreams[column])] if np.isfinite(rank) else None
            style = {"ha": "center", "va": "center", "color": "white" if rank <= len(upstreams) / 2 else INK}
            text = "–" if found is None else number(found["estimate"])
            if wide and found is not None and np.isfinite([found["low"], found["high"]]).all():
                text += f"\n{number(found['low'])} to {number(found['high'])}"
            weight = "bold" if rank == 1 else "normal"
            axes.text(column + 0.5, row + 0.5, text, fontsize=7.5, weight=weight, linespacing=1.3, **style)
            if rank == 1:
                frame = Rectangle((column + 0.05, row + 0.08), 0.9, 0.84, fill=False, edgecolor="white", linewidth=1.4)
                axes.add_patch(frame)
        axes.set_xticks(np.arange(len(upstreams)) + 0.5, upstreams, rotation=0 if wide else 60, ha="center")
        if not wide:
            mpl.artist.setp(axes.get_xticklabels(), ha="right", rotation_mode="anchor")
        axes.set_yticks(np.arange(len(downstreams)) + 0.5, downstreams)
        axes.set_ylim(len(downstreams), 0)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        unit = _unit(own) if wide else _unit(own).replace(" ", "\n", 1)
        axes.set_title(f"{label or 'CSI'}{unit}\n{_sampled(own)}", fontsize=8.5)
    ends = {1: "nearest of the row", len(upstreams): "farthest"}
    handles = [Patch(facecolor=shades(norm(rank)), label=name) for rank, name in ends.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    shown = ["label", "extractor", "aggregation", "distance", "downstream", "upstream", "rank", "estimate", "low"]
    shown += ["high", "p_best", "upstream_structures", "downstream_structures"]
    caption = "Rows are downstream datasets, columns upstream ones. Numbers are distances in the unit of their"
    caption += " comparison, so compare within a row: the darker, the nearer; the nearest is framed."
    if wide:
        caption += " Below each distance is its 95 % interval."
    caption += " n: structures that were embedded of each upstream dataset; of each downstream one."
    return figure, table[shown], caption


def _unit(cells: pd.DataFrame) -> str:
    unit = load(DISTANCES, cells["distance"].iloc[0]).unit
    return f" ({unit})" if unit else ""


def _sampled(cells: pd.DataFrame) -> str:
    upstream, downstream = (_ends(cells[f"{role}_structures"]) for role in ("upstream", "downstream"))
    return f"n = {upstream}" if upstream == downstream else f"n = {upstream}; {downstream}"


def _ends(counts: pd.Series) -> str:
    low, high = counts.min(), counts.max()
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def effective_rank(results: Results) -> tuple[Figure, pd.DataFrame, str]:
    """Effective rank over the number of structures, a line per aggregation, a panel per dataset."""
    keys = ["dataset", "extractor", "dim", "aggregation", "structures"]
    ranks = results.ranks.groupby(keys, sort=False)["effective_rank"]
    table = ranks.agg(resamples="size", mean="mean", low="min", high="max", std="std").reset_index()
    datasets, aggregations = (list(dict.fromkeys(table[key])) for key in ("dataset", "aggregation"))
    sizes = sorted(set(table["structures"]))
    figure, grid = panels(len(datasets), height=1.9, sharey=True)
    for axes, dataset in zip(grid, datasets, strict=True):
        rows = table[table["dataset"] == dataset]
        for place, aggregation in enumerate(aggregations):
            line = rows[rows["aggregation"] == aggregation]
            color, marker = series(aggregations, aggregation)
            # Side by side, so that none hides another.
            at = line["structures"] * 1.05 ** (place - (len(aggregations) - 1) / 2)
            axes.errorbar(at, line["mean"], _spread(line), color=color, marker=marker, markersize=5, capsize=2)
        axes.set(xscale="log", xlim=(sizes[0] / 1.4, sizes[-1] * 1.4))
        axes.set_xticks(sizes, [short(size) for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(axis="y")
        axes.set_title(f"{dataset}\n{rows['dim'].iloc[0]:,} features")
        axes.set_xlabel("structures")
        axes.set_ylabel("effective rank")
    grid[0].set_ylim(0, 1.1 * table["high"].max())  # the axes share it
    grid[0].yaxis.set_major_locator(MaxNLocator(4))
    names = {name: "atoms" if name == "flat" else f"structures ({name})" for name in aggregations}
    handles = [_handle(*series(aggregations, name), label) for name, label in names.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    resamples = plural(int(table["resamples"].max()), "bootstrap resample")
    caption = "The number of directions in which z-scored features vary: the exponential of the entropy of their"
    caption += " covariance's spectrum, at most the number of features and 0 if none varies. Points are means over"
    caption += f" {resamples} of structures, bars their range. Of structures there can be no more directions than"
    caption += " structures, so that few of them limit the rank of structures, but hardly that of atoms."
    return figure, table, caption


def finetuning(results: Results) -> tuple[Figure, pd.DataFrame, str]:
    """Test errors, a panel per task and a row per backbone and start, at full scale beside the paper's."""
    table = error_table(results)
    runs = results.finetuning.merge(table[[*KEYS, "start"]], on=KEYS).groupby(["task", "backbone", "start"])["mae"]
    beside = results.paper is not None
    rows = _rows(table)
    tasks = list(dict.fromkeys(table["task"]))
    figure, grid = panels(len(tasks), height=(1.2 if beside else 1.0) + 0.25 * len(rows), sharey=True)
    for axes, task in zip(grid, tasks, strict=True):
        cells = table[table["task"] == task].set_index(["backbone", "start"])
        points = cells[["low", "high", *(["paper"] if beside else [])]]
        wide = _set_scale(axes, "x", points.to_numpy())
        low, high = (np.log(end) if wide else end for end in (np.nanmin(points), np.nanmax(points)))
        width = (high - low) or abs(high) or 1.0
        ends = np.array([low - 0.07 * width, high + (0.75 if beside else 0.36) * width])  # room for the numbers
        axes.set_xlim(np.exp(ends) if wide else ends)
        best = {backbone: errors[0].init for name, backbone, errors in contests(table) if name == task}
        for y, (backbone, start) in enumerate(rows):
            if (backbone, start) in cells.index:
                key = (task, backbone, start)
                maes = runs.get_group(key) if key in runs.groups else []
                _draw_row(axes, y, cells.loc[(backbone, start)], maes, start=start, best=best.get(backbone) == start)
        for backbone in best:
            if (backbone, SCRATCH) in cells.index:
                own = [y for y, (name, start) in enumerate(rows) if name == backbone and start is not None]
                at = cells.loc[(backbone, SCRATCH), "mean"]
                axes.plot([at, at], [min(own) - 0.5, max(own) + 0.5], zorder=0.5, **_DASHED)
        axes.set_yticks(range(len(rows)), [start or backbone for backbone, start in rows])
        for label, (_, start) in zip(axes.get_yticklabels(), rows, strict=False):
            label.set_weight("bold" if start is None else "normal")
        axes.set_ylim(len(rows) - 0.5, -1.2 if beside else -0.5)
        if beside:
            for x, text in ((0.76, "ours"), (0.985, "paper")):
                axes.text(x, -0.85, text, transform=axes.get_yaxis_transform(), ha="right", va="center", color=FAINT)
        axes.tick_params(axis="y", length=0)
        _label(axes.xaxis, 3 if beside else 4)
        axes.grid(axis="x")
        axes.set_title(_title(cells, task))
        axes.set_xlabel(f"test MAE ({unit_name(cells['unit'].iloc[0])})")
    marks = {
        "least mean error": {"color": CHOICE, "marker": "o", "linestyle": ""},
        "another start": {"color": _OTHER, "marker": "o", "linestyle": ""},
        "from scratch": {"color": FAINT, "marker": "o", "markerfacecolor": "none", **_DASHED},
        "mean": {"color": INK, "marker": "|", "markersize": 11, "markeredgewidth": 2.4, "linestyle": ""},
        **({"paper": _ON_PAPER} if beside else {}),
    }
    handles = [Line2D([], [], label=label, **mark) for label, mark in marks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, handletextpad=0.3, columnspacing=1.3)
    caption = "Further left is better. A circle is a seed, a bar and the number on the right are the mean over seeds;"
    caption += " the least of a task" + (" and backbone" if any(start is None for _, start in rows) else "")
    caption += " is blue and bold. The dashed line is the mean without pretraining. Axes do not start at zero, and"
    caption += " each task has its own."
    if beside:
        caption += " Diamonds are the paper's numbers, which have no error bars."
    return figure, table, caption


_OTHER = "#4a4f57"


def _draw_row(axes: Axes, y: int, cell: pd.Series, maes: Sequence[float], *, start: str, best: bool) -> None:
    color = FAINT if start == SCRATCH else CHOICE if best else _OTHER
    numbers = {0.985: cell["mean"]}
    if "paper" in cell.index:
        numbers = {0.76: cell["mean"], 0.985: cell["paper"]}
        axes.plot(cell["paper"], y, zorder=4, **_ON_PAPER)
    if best:
        axes.axhspan(y - 0.5, y + 0.5, color=PALE, linewidth=0, zorder=0)
    face = "none" if start == SCRATCH else color
    axes.plot(maes, [y] * len(maes), "o", markersize=4.5, color=color, markerfacecolor=face, alpha=0.75)
    axes.plot([cell["mean"]] * 2, [y - 0.36, y + 0.36], color=color, linewidth=2.4, solid_capstyle="butt")
    for place, (x, value) in enumerate(numbers.items()):
        weight = "bold" if best and place == 0 else "normal"
        text = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center", "weight": weight}
        axes.text(x, y, number(value), **text)


def _rows(table: pd.DataFrame) -> list[tuple[str, str | None]]:
    """Backbone and start of every row, scratch last; a row without a start heads a backbone where there are several."""
    is_published = published(table)
    ours, theirs = (
        table.loc[wanted, ["backbone", "start"]].drop_duplicates() for wanted in (~is_published, is_published)
    )
    several = ours["backbone"].nunique() > 1
    rows: list[tuple[str, str | None]] = []
    for backbone, starts in ours.groupby("backbone", sort=False)["start"]:
        rows += [(backbone, None)] if several else []
        rows += [(backbone, start) for start in sorted(starts, key=lambda start: start == SCRATCH)]
    if several and len(theirs):
        rows.append(("published models", None))
    return rows + list(theirs.itertuples(index=False, name=None))


def budget(results: Results) -> tuple[Figure, pd.DataFrame, str]:
    """Test errors over the budget of pretraining, a line per init, a panel per task."""
    table = error_table(results)
    lines = table[(table["epochs"] > 0) & ~published(table)]
    inits = list(dict.fromkeys(lines["init"]))
    epochs = list(lines.drop_duplicates(["structures", "epochs"])["epochs"].value_counts().index)
    tasks = list(dict.fromkeys((task, backbone) for task, backbone, _ in contests(table)))
    budgets = sorted(set(lines["budget"]))
    figure, grid = panels(len(tasks), height=2.6)
    for axes, (task, backbone) in zip(grid, tasks, strict=True):
        cells = table[(table["task"] == task) & (table["backbone"] == backbone)]
        for place, init in enumerate(inits):
            color, marker = series(inits, init)
            own = cells[cells["init"] == init].sort_values("budget")
            # Side by side, so that none hides another.
            shift = 1.03 ** (place - (len(inits) - 1) / 2)
            for fill, count in zip(_FILLS, epochs, strict=False):
                line = own[own["epochs"] == count]
                at = line["budget"] * shift * 1.07 ** _FILLS.index(fill)
                bars = {"color": color, "marker": marker, "fillstyle": fill, "markersize": 6, "capsize": 2.5}
                dashes = _LINES[place % len(_LINES)] if fill == "full" else ""
                axes.errorbar(at, line["mean"], _spread(line), linestyle=dashes, linewidth=1.3, **bars)
                if results.paper is not None:
                    axes.plot(at, line["paper"], color=color, marker="x", markersize=6, linestyle="", zorder=4)
        for at in cells.loc[cells["init"] == SCRATCH, "mean"]:
            axes.axhline(at, zorder=0.5, **_DASHED)
        axes.set_xscale("log")
        axes.set_xticks(budgets, [short(found) for found in budgets])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.1)
        _set_scale(axes, "y", cells[["low", "high"]].to_numpy())
        _label(axes.yaxis, 5)
        axes.grid(axis="y")
        several = len({name for _, name in tasks}) > 1
        axes.set_title(_title(cells, f"{task}, {backbone}" if several else task))
        axes.set_xlabel("budget C = N × E (structures seen)")
        axes.set_ylabel(f"test MAE ({unit_name(cells['unit'].iloc[0])})")
    handles = [
        _handle(*series(inits, init), init, linestyle=_LINES[place % len(_LINES)]) for place, init in enumerate(inits)
    ]
    for fill, count in zip(_FILLS, epochs, strict=False):
        handles.append(Line2D([], [], color=INK, marker="o", fillstyle=fill, linestyle="", label=f"E = {count}"))
    if results.paper is not None:
        handles.append(Line2D([], [], color=INK, marker="x", linestyle="", label="paper"))
    if SCRATCH in set(table["init"]):
        handles.append(Line2D([], [], label="from scratch", **_DASHED))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, handletextpad=0.6)
    caption = "N structures seen E times. Points are means over seeds, bars their range; points of one budget are set"
    caption += " side by side. Lines join budgets of the same number of epochs; other numbers have markers of another"
    caption += " filling. The dashed line is the mean without pretraining. The error axes do not start at zero."
    if results.paper is not None:
        caption += " Crosses are the paper's numbers, in the colour of ours; they have no error bars."
    return figure, table, caption


def csi_against_error(results: Results) -> tuple[Figure, pd.DataFrame, str]:
    """Distance against test error of every upstream, a panel per task, with the rank correlation."""
    errors = error_table(results)
    names = {"downstream": "dataset", "upstream": "upstream"}
    names |= {"estimate": "csi", "low": "csi_low", "high": "csi_high"}
    measured = results.csi[list(names)].rename(columns=names).dropna(subset="csi")
    table = errors.merge(measured, left_on=["init", "dataset"], right_on=["upstream", "dataset"])
    label = results.experiment.comparisons[0].label
    coefficients = selector_table(results.csi, results.finetuning)
    coefficients = coefficients[coefficients["selector"] == label]
    keys = ["task", "spearman", "spearman_low", "spearman_high", "kendall", "kendall_low", "kendall_high", "p"]
    table = table.merge(coefficients[keys], on="task", how="left")
    titles = {}
    for task, points in table.groupby("task"):
        low, middle, high = (signed(points[name].iloc[0]) for name in ("spearman_low", "spearman", "spearman_high"))
        interval = "" if "–" in (low, high) else f" ({low} to {high})"
        titles[task] = f"{_title(points, task)}\nSpearman {middle}{interval}"
    scratch = errors[errors["init"] == SCRATCH].set_index("task")["mean"].to_dict()
    upstreams = [init for init in dict.fromkeys(errors["init"]) if init in set(measured["upstream"])]
    figure = scatter(table, upstreams, titles=titles, scratch=scratch, axis=f"{label or 'CSI'}{_unit(results.csi)}")
    caption = "Each point is an upstream dataset: if distance foretells the error, points rise to the right. Vertical"
    caption += " bars are the range over seeds, horizontal ones the 95 % interval of the distance. Spearman's rank"
    caption += " correlation is 1 where the order by distance is that of the errors; its 95 % interval is over other"
    caption += " seeds and samples, and n counts the points. The dashed line is the mean without pretraining."
    if results.paper is not None:
        caption += " Hollow markers are the paper's errors, at our distances."
    return figure, table, caption


def selectors(results: Results) -> tuple[Figure, pd.DataFrame, str]:
    """Ways of choosing: what their choices cost, and whether their order is that of the errors."""
    table = selector_table(results.csi, results.finetuning, sizes=results.experiment.sizes)
    figure, table = selectors_figure(table)
    caption = (
        "Left: regret, by how much the error of a choice is above that of the best upstream, on a square-root scale;"
        " a point is a task, a bar the mean over tasks. Right: rank correlation of distance and error over all tasks."
        " Lines are 95 % intervals. Shaded: ways that need no embedding. The regret of a random choice is the expected"
        " one."
    )
    return figure, table, caption


#: Each returns the figure, the table that it draws, and its caption.
PLOTS: dict[str, Callable[[Results], tuple[Figure, pd.DataFrame, str]]] = {
    "csi": csi,
    "effective-rank": effective_rank,
    "finetuning": finetuning,
    "budget": budget,
    "csi-against-error": csi_against_error,
    "selectors": selectors,
}


def _set_scale(axes: Axes, axis: str, errors: np.ndarray) -> bool:
    """Makes an axis logarithmic if the errors are far apart, and says whether it is."""
    wide = bool(np.nanmax(errors) > _FAR_APART * np.nanmin(errors) > 0)
    axes.set(**{f"{axis}scale": "log" if wide else "linear"})
    return wide


def _label(axis: Axis, ticks: int) -> None:
    if axis.get_scale() == "log":
        plain_log(axis)
    else:
        axis.set_major_locator(MaxNLocator(ticks))
        axis.set_major_formatter(PLAIN)


def _title(cells: pd.DataFrame, name: str) -> str:
    ours = cells[cells["seeds"] > 0]
    return f"{name}\n{seed_count(ours['seeds'])}, {ours['test_structures'].max():,.0f} test structures"


def _spread(line: pd.DataFrame) -> list[pd.Series]:
    return [line["mean"] - line["low"], line["high"] - line["mean"]]


def _handle(color: str, marker: str, label: str, **more: Any) -> Line2D:
    return Line2D([], [], color=color, marker=marker, markersize=6, label=label, **more)
