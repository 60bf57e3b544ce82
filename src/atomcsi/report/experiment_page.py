"""The experiments of a report: what the page shows of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_integer_dtype, is_numeric_dtype

from atomcsi.files import read_json
from atomcsi.quantities import number
from atomcsi.report.experiment import SCHEMA
from atomcsi.report.outcome import unit_name
from atomcsi.report.page import inline_svg

#: Columns of a figure's table that the page shows, with what they are called there; the CSV file has all.
_COLUMNS = {
    "label": "comparison",
    "task": "task",
    "dataset": "dataset",
    "downstream": "downstream",
    "upstream": "upstream",
    "backbone": "backbone",
    "start": "pretrained on",
    "selector": "selector",
    "aggregation": "aggregation",
    "structures": "structures N",
    "epochs": "epochs E",
    "rank": "rank",
    "estimate": "distance",
    "csi": "distance",
    "p_best": "P(nearest)",
    "mean": "mean",
    "low": "low",
    "high": "high",
    "unit": "unit",
    "paper": "paper",
    "later": "paper, later",
    "difference": "difference",
    "verdict": "verdict",
    "std": "std",
    "seeds": "seeds",
    "resamples": "resamples",
    "dim": "features",
    "spearman": "Spearman",
    "spearman_low": "from",
    "spearman_high": "to",
    "p": "p",
    "regret": "regret",
    "regret_low": "from",
    "regret_high": "to",
    "selected": "selected",
    "best": "best",
    "jmp_share": "C over JMP's",
    "gpu_hours": "GPU-hours of pretraining",
    "kwh": "kWh of pretraining",
}
#: Columns that say already what another one says.
_IMPLIED = {"task": "dataset", "label": "dataset"}


def shown_experiments(records: Sequence[Path]) -> list[dict[str, Any]]:
    """Reads the experiments that a report shows.

    Args:
        records: Their JSON files (:func:`atomcsi.report.experiment.write_experiment`); figure and table stand beside.

    Returns:
        The records, each with its ``figure`` as an element of the page, and its table: ``heads`` and ``rows`` of cells
        (``text``, and ``value`` of a number).

    Raises:
        InputError: A record is missing or holds something else.
    """
    return [
        read_json(path, SCHEMA)
        | {"figure": inline_svg(path.with_suffix(".svg"), f"experiment-{path.stem}")}
        | _table(pd.read_csv(path.with_suffix(".csv")))
        for path in records
    ]


def _table(table: pd.DataFrame) -> dict[str, Any]:
    # Whole numbers that are missing somewhere are read as fractions.
    table = table.convert_dtypes()
    names = [name for name in _COLUMNS if name in table and table[name].notna().any()]
    names = [name for name in names if not any(_IMPLIED.get(other) == name for other in names)]
    return {
        "heads": [{"text": _COLUMNS[name], "number": is_numeric_dtype(table[name])} for name in names],
        "rows": [[_cell(name, row[name], table[name].dtype) for name in names] for _, row in table.iterrows()],
    }


def _cell(name: str, value: Any, kind: Any) -> dict[str, Any]:
    if not is_numeric_dtype(kind):
        return {"text": "–" if pd.isna(value) else unit_name(value) if name == "unit" else value}
    if pd.isna(value):
        return {"text": "–", "value": math.nan}
    return {"text": f"{value:,}" if is_integer_dtype(kind) else number(value), "value": value}
