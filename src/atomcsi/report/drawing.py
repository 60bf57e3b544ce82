"""What all figures share: style, panels, axes, and how a figure becomes a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from atomcsi.files import atomic_path, write_table

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
    # Names of datasets are the user's, and may hold a dollar sign.
    "text.parse_math": False,
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


def save(path: Path, name: str, figure: Figure, table: pd.DataFrame) -> None:
    """Writes a figure as SVG, and the table that it draws beside it as CSV.

    The same figure gives the same bytes.

    Args:
        path: The SVG file.
        name: The figure's name, from which the ids in it are made.
        figure: The figure, made within :func:`styled`.
        table: What it draws.
    """
    with styled(name):
        write_table(path.with_suffix(".csv"), table)
        with atomic_path(path) as temporary:
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(temporary, format="svg", metadata=nothing)


def styled(name: str) -> AbstractContextManager[None]:
    """The style in which the figure ``name`` is made and saved."""
    return mpl.rc_context({**STYLE, "svg.hashsalt": name})


def panels(count: int, *, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """Returns a figure with ``count`` panels in at most two columns, each ``height`` inches high."""
    columns = min(max(count, 1), 2)
    rows = math.ceil(count / columns) or 1
    figure = Figure(figsize=(WIDTH, 0.35 + height * rows), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.06, w_pad=0.09)
    grid = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, list(grid[:count])


def series(names: Sequence[str], name: str) -> tuple[str, str]:
    """Colour and marker of an upstream, the same in every figure."""
    return SERIES[(names.index(name) if name in names else len(names)) % len(SERIES)]


def plain_log(axis: Any) -> None:
    """Labels a logarithmic axis with plain numbers, the fewer per power of ten the more of these it spans."""
    low, high = sorted(axis.get_view_interval())
    powers = math.log10(high / low) if low > 0 else 0.0
    axis.set_major_locator(LogLocator(subs=(1,) if powers > 3 else (1, 3) if powers > 1.5 else (1, 2, 5)))
    axis.set_major_formatter(PLAIN)
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def plural(count: int, noun: str) -> str:
    """Writes a number of things."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def seed_count(seeds: pd.Series) -> str:
    """Writes how many seeds the bars of a panel have."""
    low, high = seeds.min(), seeds.max()
    return plural(high, "seed") if low == high else f"{low} to {high} seeds"
