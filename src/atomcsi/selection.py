"""From distances to a choice: the upstream dataset to pretrain on, per downstream dataset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atomcsi.files import read_json, write_json
from atomcsi.measure import SCHEMA as DISTANCES_SCHEMA

SCHEMA = "atomcsi.selection/2"


def select(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Chooses the upstream of least distance to a downstream dataset.

    Args:
        measured: What :func:`atomcsi.measure.measure` returned, of two upstreams at least.

    Returns:
        What was measured; ``selected`` and ``p_best``, the probability that it is the nearest (None if there are no
        error bars); ``runner_up`` and ``margin``, by how much it is farther away, relative to the least distance
        (None if that is zero); ``ranking``: every upstream with its distance, the nearest first.
    """
    ranking = measured["upstreams"]
    best, second = ranking[:2]
    least, next_least = best["estimate"], second["estimate"]
    kept = ("upstream", "value", "estimate", "low", "high", "p_best")
    kept += ("beyond_best", "beyond_best_low", "beyond_best_high")
    return {
        **{name: measured[name] for name in ("downstream", "extractor", "aggregation", "distance")},
        "selected": best["upstream"],
        "p_best": best["p_best"],
        "runner_up": second["upstream"],
        "margin": next_least / least - 1 if least > 0 else None,
        "ranking": [{name: record[name] for name in kept} for record in ranking],
    }


def write_selection(measurement: Path, path: Path) -> None:
    """Reads a measurement (JSON), chooses, and writes the choice as JSON."""
    write_json(path, SCHEMA, select(read_json(measurement, DISTANCES_SCHEMA)))
