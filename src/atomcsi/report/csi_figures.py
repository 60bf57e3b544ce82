"""The figures of distances, before anything is trained."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from atomcsi.quantities import number
from atomcsi.report.drawing import FAINT, INK, SERIES, panels, plain_log, series
from atomcsi.report.tables import Tables

#: Elements that the figure of elements tells apart by colour; the others are one.
_ELEMENTS = len(SERIES)


def csi_matrix(tables: Tables) -> tuple[Figure, pd.DataFrame]:
    """Heat map of the distances with their intervals, a row per downstream dataset, the choice of each row framed."""
    csi, choices = tables.csi, tables.choices
    rows, columns = list(dict.fromkeys(csi["downstream"])), tables.upstreams
    cells = {name: _cells(csi, name, rows, columns) for name in ("estimate", "low", "high")}
    values = cells["estimate"]
    width = max(0.85, 0.15 + 0.063 * max(map(len, columns)))  # inches of a column, for its name
    figure = Figure(figsize=(2.0 + width * len(columns), 1.25 + 0.5 * len(rows)), layout="constrained")
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
        style = {"ha": "center", "va": "center", "color": "white" if dark else INK}
        text = f"★ {number(value)}" if chosen else number(value)
        axes.text(column + 0.5, row + 0.4, text, weight="bold" if chosen else "normal", **style)
        ends = cells["low"][row, column], cells["high"][row, column]
        if np.isfinite(ends).all():
            axes.text(column + 0.5, row + 0.72, f"{number(ends[0])} – {number(ends[1])}", fontsize=7, **style)
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
    bar.set_label(tables.axis_label)
    bar.outline.set_visible(False)
    plain_log(bar.ax.yaxis)
    bar.ax.tick_params(which="both", length=2)
    return figure, csi.assign(selected=csi["upstream"] == csi["downstream"].map(choices))


def _cells(csi: pd.DataFrame, name: str, rows: list[str], columns: list[str]) -> np.ndarray:
    return csi.pivot(index="downstream", columns="upstream", values=name).loc[rows, columns].to_numpy(dtype=float)


def csi_elements(tables: Tables) -> tuple[Figure, pd.DataFrame]:
    """Which elements of each upstream make its CSI: bars of shares, a panel per downstream dataset."""
    table = tables.elements
    rows, columns = list(dict.fromkeys(table["downstream"])), tables.upstreams
    shares = table["upstream_csi"] / table.groupby(["downstream", "upstream"])["upstream_csi"].transform("sum")
    colors = element_colors(shares.groupby(table["symbol"]).sum())
    figure, grid = panels(len(rows), height=0.75 + 0.27 * len(columns), sharey=True)
    for axes, downstream in zip(grid, rows, strict=True):
        for y, upstream in enumerate(columns):
            pair = table[(table["downstream"] == downstream) & (table["upstream"] == upstream)]
            parts = shares[pair.index].set_axis(pair["symbol"])
            left = 0.0
            for symbol, color in {**colors, "other": FAINT}.items():
                share = parts.drop(list(colors), errors="ignore").sum() if symbol == "other" else parts.get(symbol, 0.0)
                axes.barh(y, share, left=left, height=0.72, color=color, edgecolor="white", linewidth=0.6)
                if share >= 0.08:
                    axes.text(left + share / 2, y, symbol, ha="center", va="center", color="white", fontsize=8)
                left += share
        axes.set_yticks(range(len(columns)), columns)
        axes.set_ylim(len(columns) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.tick_params(axis="y", length=0)
        axes.set_title(f"to {downstream}")
        axes.set_xlabel("share of CSI")
    return figure, table


def element_colors(weights: pd.Series) -> dict[str, str]:
    """Colours of the elements of most weight, a series by symbol, in that order; the others share one."""
    largest = weights.nlargest(_ELEMENTS).index
    return {symbol: color for symbol, (color, _) in zip(largest, SERIES, strict=False)}


def csi_sample_size(tables: Tables) -> tuple[Figure, pd.DataFrame]:
    """Distance against one over the number of structures, extrapolated to zero, a panel per downstream dataset."""
    table = tables.csi
    rows = list(dict.fromkeys(table["downstream"]))
    figure, grid = panels(len(rows), height=2.2)
    for axes, downstream in zip(grid, rows, strict=True):
        for _, pair in table[table["downstream"] == downstream].iterrows():
            color, marker = series(tables.upstreams, pair["upstream"])
            sizes = [pair["value"], pair["value_half"], pair["value_quarter"]]
            axes.plot([1, 2, 4], sizes, color=color, marker=marker, markersize=5, linewidth=0, markerfacecolor="none")
            axes.plot([0, 1, 2], [pair["corrected"], *sizes[:2]], color=color, linewidth=1)
            if np.isfinite(pair["corrected"]):
                spread = [[max(pair["corrected"] - pair["low"], 0.0)], [max(pair["high"] - pair["corrected"], 0.0)]]
                axes.errorbar(0, pair["corrected"], spread, color=color, marker=marker, markersize=5, capsize=3)
        axes.set_xticks([0, 1, 2, 4], ["∞", "all", "1/2", "1/4"])
        axes.set_xlim(-0.4, 4.4)
        if (table.loc[table["downstream"] == downstream, "low"] > 0).all():
            axes.set_yscale("log")
            plain_log(axes.yaxis)
        axes.grid(axis="y")
        axes.set_title(f"to {downstream}")
        axes.set_xlabel("structures of both sets (scale: 1/n)")
        axes.set_ylabel(tables.axis_label)
    handles = [
        mpl.lines.Line2D([], [], color=color, marker=marker, markersize=5, linewidth=1, label=name)
        for name in tables.upstreams
        for color, marker in [series(tables.upstreams, name)]
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, handletextpad=0.6)
    columns = ["downstream", "upstream", "value", "value_half", "value_quarter", "corrected", "low", "high"]
    return figure, table[columns]
