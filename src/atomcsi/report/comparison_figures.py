"""The figures of a comparison of a user's own datasets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.decomposition import PCA

from atomcsi.quantities import number
from atomcsi.report.csi_figures import csi_elements, csi_sample_size, element_colors
from atomcsi.report.drawing import FAINT, INK, WIDTH, series
from atomcsi.report.tables import Tables

if TYPE_CHECKING:
    from atomcsi.comparison import Comparison
    from atomcsi.embeddings import Embedding

#: Points of each dataset on the map.
_POINTS = 1500
_SEED = 0


def pairwise(comparison: Comparison) -> tuple[Figure, pd.DataFrame]:
    """Heat map of the distances between all datasets."""
    table = comparison.pairwise
    names, values = list(table.index), table.to_numpy()
    size = 0.62 + 0.055 * max(map(len, names))
    figure = Figure(figsize=(1.4 + size * len(names), 0.9 + 0.5 * len(names)), layout="constrained")
    axes = figure.subplots()
    positive = values[values > 0]
    low, high = (positive.min(), positive.max()) if positive.size else (1.0, 10.0)
    scale = LogNorm(low, max(high, low * 1.01), clip=True)
    shown = np.ma.masked_array(np.maximum(values, low), np.eye(len(names), dtype=bool))
    axes.pcolormesh(shown, cmap="cividis", norm=scale, edgecolors="white", linewidth=1.5)
    for (row, column), value in np.ndenumerate(values):
        if row != column:
            color = "white" if scale(max(value, low)) < 0.5 else INK
            axes.text(column + 0.5, row + 0.5, number(value), ha="center", va="center", color=color)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(np.arange(len(names)) + 0.5, names)
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    return figure, table.rename_axis("dataset").reset_index()


def embedding_map(comparison: Comparison) -> tuple[Figure, pd.DataFrame]:
    """The first two principal components of all datasets' features, each dataset with the same weight."""
    embeddings = comparison.embeddings
    drawn = {name: embedding.rows(embedding.sample(_POINTS, _SEED)) for name, embedding in embeddings.items()}
    # As many of each, whatever the datasets' sizes.
    least = min(map(len, drawn.values()))
    generator = np.random.default_rng(_SEED)
    fitted = PCA(2 if next(iter(drawn.values())).shape[1] > 1 else 1, svd_solver="full").fit(
        np.concatenate([generator.permutation(rows)[:least] for rows in drawn.values()])
    )
    parts = []
    for name, rows in drawn.items():
        found = np.zeros((len(rows), 2))
        found[:, : fitted.n_components_] = fitted.transform(rows)
        parts.append(pd.DataFrame(found, columns=["pc1", "pc2"]).assign(dataset=name))
    # In random order, so that no dataset hides the others.
    table = pd.concat(parts).sample(frac=1, random_state=_SEED, ignore_index=True)
    figure = Figure(figsize=(WIDTH, 4.3), layout="constrained")
    axes = figure.subplots()
    names = list(embeddings)
    colors = {name: series(names, name)[0] for name in names}
    # As pixels: thousands of marks would make the page slow. Mine last and larger, for it is what all is about.
    others, mine = table[table["dataset"] != names[0]], table[table["dataset"] == names[0]]
    style = {"linewidth": 0, "rasterized": True}
    axes.scatter(others["pc1"], others["pc2"], s=9, c=others["dataset"].map(colors), alpha=0.5, **style)
    axes.scatter(mine["pc1"], mine["pc2"], s=9, c=colors[names[0]], alpha=0.8, **style)
    shares = [*fitted.explained_variance_ratio_, 0.0]
    axes.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second ({shares[1]:.0%})")
    axes.grid()
    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=6, color=color, label=name)
        for name, color in colors.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, handletextpad=0.2)
    return figure, table[["dataset", "pc1", "pc2"]]


def composition(comparison: Comparison) -> tuple[Figure, pd.DataFrame]:
    """Share of the elements of every dataset, a bar each."""
    shares = pd.DataFrame({name: _shares(embedding) for name, embedding in comparison.embeddings.items()}).fillna(0.0)
    names, colors = list(shares.columns), element_colors(shares.sum(axis=1))
    figure = Figure(figsize=(WIDTH, 0.8 + 0.34 * len(names)), layout="constrained")
    axes = figure.subplots()
    for y, name in enumerate(names):
        left = 0.0
        for symbol, color in colors.items():
            share = shares[name].get(symbol, 0.0)
            axes.barh(y, share, left=left, height=0.72, color=color, edgecolor="white", linewidth=0.6)
            if share >= 0.04:
                axes.text(left + share / 2, y, symbol, ha="center", va="center", color="white", fontsize=8)
            left += share
        if left < 0.999:
            axes.barh(y, 1 - left, left=left, height=0.72, color=FAINT, edgecolor="white", linewidth=0.6)
            if left < 0.96:
                axes.text((1 + left) / 2, y, "other", ha="center", va="center", color="white", fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("share of the atoms")
    table = shares.rename_axis("symbol").reset_index().melt("symbol", var_name="dataset", value_name="share")
    return figure, table


def _shares(embedding: Embedding) -> pd.Series:
    from ase.data import chemical_symbols

    weights = np.repeat(embedding.multiplicity, np.diff(embedding.ptr))
    counts = np.bincount(embedding.numbers, weights)
    present = np.flatnonzero(counts)
    return pd.Series(counts[present] / counts.sum(), index=[chemical_symbols[z] for z in present])


def figures(comparison: Comparison, tables: Tables) -> dict[str, Callable[[], tuple[Figure, pd.DataFrame]]]:
    """The figures of a comparison's page by name, to be made within the style of each."""
    found = {
        "pairwise": lambda: pairwise(comparison),
        "map": lambda: embedding_map(comparison),
        "composition": lambda: composition(comparison),
    }
    if len(tables.elements):
        found["csi-elements"] = lambda: csi_elements(tables)
    if tables.csi["corrected"].notna().all():
        found["csi-sample-size"] = lambda: csi_sample_size(tables)
    return found
