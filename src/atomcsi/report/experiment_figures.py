"""How experiments are drawn, by their ``plot``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from atomcsi.report.experiment import Results

#: Each returns the figure, the table that it draws, and its caption.
PLOTS: dict[str, Callable[[Results], tuple[Figure, pd.DataFrame, str]]] = {}
