"""Distance against test error: every upstream a point, every task a panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from atomcsi.report.drawing import FAINT, INK, PLAIN, panels, plain_log, series
from atomcsi.report.outcome import unit_name

_DASHED = {"color": FAINT, "linestyle": (0, (4, 3)), "linewidth": 1}


def scatter(
    points: pd.DataFrame,
    names: Sequence[str],
    *,
    titles: Mapping[str, str],
    scratch: Mapping[str, float],
    axis: str,
) -> Figure:
    """Draws distances against errors.

    Args:
        points: A row per task and upstream: ``task``, ``upstream``, ``csi``, the ends of its interval ``csi_low`` and
            ``csi_high`` where they are known, over seeds ``mean``, ``low`` and ``high``, ``unit``, and the ``paper``'s
            error where it has one.
        names: All upstreams, in the order that gives them their colours and markers.
        titles: Title of each task's panel.
        scratch: Error of each task without pretraining, where it is known.
        axis: What the distance is called; the number of points is written behind it.
    """
    tasks = list(dict.fromkeys(points["task"]))
    figure, grid = panels(len(tasks), height=2.6)
    beside = "paper" in points and points["paper"].notna().any()
    known = "csi_low" in points
    for axes, task in zip(grid, tasks, strict=True):
        rows = points[points["task"] == task]
        for _, point in rows.iterrows():
            color, marker = series(names, point["upstream"])
            spread = [[point["mean"] - point["low"]], [point["high"] - point["mean"]]]
            width = [[point["csi"] - point["csi_low"]], [point["csi_high"] - point["csi"]]] if known else None
            style = {"color": color, "marker": marker, "markersize": 6.5, "capsize": 2.5, "linewidth": 1.3}
            axes.errorbar(point["csi"], point["mean"], spread, width, **style)
            if beside:
                axes.plot(point["csi"], point["paper"], marker, color=color, markersize=8, markerfacecolor="none")
        if task in scratch:
            axes.axhline(scratch[task], **_DASHED)
        axes.margins(0.12)
        if (rows["csi_low" if known else "csi"] > 0).all():
            axes.set_xscale("log")
            plain_log(axes.xaxis)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(PLAIN)
        axes.grid(axis="y")
        axes.set_title(titles[task])
        axes.set_xlabel(f"{axis}, n = {len(rows)}")
        axes.set_ylabel(f"test MAE ({unit_name(rows['unit'].iloc[0])})")
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="", markersize=6.5, label=name)
        for name in names
        for color, marker in [series(names, name)]
    ]
    if beside:
        paper = {"marker": "o", "markersize": 8, "markerfacecolor": "none", "linestyle": ""}
        handles.append(Line2D([], [], color=INK, **paper, label="paper (hollow)"))
    if scratch:
        handles.append(Line2D([], [], label="from scratch", **_DASHED))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, handletextpad=0.6)
    return figure
