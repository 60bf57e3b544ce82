"""From distances to a choice: the upstream dataset to pretrain on, per downstream dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from atomcsi.distances.frechet import Distance
from atomcsi.embeddings import read_moments
from atomcsi.errors import InputError
from atomcsi.files import read_json, versions, write_json
from atomcsi.registry import DISTANCES, load

DISTANCE_SCHEMA = "atomcsi.distance/1"
SELECTION_SCHEMA = "atomcsi.selection/1"


#: Two embeddings can be compared if these are equal.
_ALIKE = ("extractor", "implementation", "options", "checkpoint")


def compare(upstream: Path, downstream: Path, *, distance: str) -> dict[str, Any]:
    """Measures the distance between two embedding files.

    Returns:
        ``value`` and its two terms, what was compared, and what the embeddings took.

    Raises:
        InputError: A file cannot be read, or the two were not embedded alike.
    """
    a, a_provenance = read_moments(upstream)
    b, b_provenance = read_moments(downstream)
    for key in _ALIKE:
        if a_provenance[key] != b_provenance[key]:
            problem = f"was embedded with {key} {b_provenance[key]}, {upstream} with {a_provenance[key]}"
            raise InputError(downstream, problem, mend="embed both alike")
    found: Distance = load(DISTANCES, distance)(a, b)
    return {
        "upstream": a_provenance["dataset"],
        "downstream": b_provenance["dataset"],
        "extractor": a_provenance["extractor"],
        "distance": distance,
        "value": found.value,
        "mean_term": found.mean_term,
        "covariance_term": found.covariance_term,
        "upstream_structures": a_provenance["drawn"],
        "downstream_structures": b_provenance["drawn"],
        "upstream_atoms": a.count,
        "downstream_atoms": b.count,
        "upstream_embedding_seconds": a_provenance["seconds"],
        "downstream_embedding_seconds": b_provenance["seconds"],
        "versions": versions("numpy", "scipy"),
    }


def measure(upstream: Path, downstream: Path, path: Path, *, distance: str) -> None:
    """Writes what :func:`compare` finds as JSON."""
    write_json(path, DISTANCE_SCHEMA, compare(upstream, downstream, distance=distance))


def distance_table(paths: Sequence[Path]) -> pd.DataFrame:
    """Returns the measured distances in long form: one row per extractor, distance, upstream and downstream."""
    records = [read_json(path, DISTANCE_SCHEMA) for path in paths]
    return pd.DataFrame(records).drop(columns=["schema", "versions"])


def select(table: pd.DataFrame, downstream: str) -> dict[str, Any]:
    """Chooses the upstream of least distance to a downstream dataset.

    Args:
        table: Rows of one extractor and one distance, as :func:`distance_table` gives them.
        downstream: The downstream dataset's id.

    Returns:
        ``selected``, the ``ranking`` with every upstream's distance, and ``margin``: by how much, relative to the
        least distance, the runner-up is farther away (None if the least distance is zero).
    """
    ranking = table[table["downstream"] == downstream].sort_values(["value", "upstream"])
    best, runner_up = ranking["value"].iloc[:2]
    return {
        "downstream": downstream,
        "selected": ranking["upstream"].iloc[0],
        "runner_up": ranking["upstream"].iloc[1],
        "margin": float(runner_up / best - 1) if best > 0 else None,
        "ranking": ranking[["upstream", "value"]].to_dict("records"),
    }


def write_selection(table_path: Path, path: Path, downstream: str) -> None:
    """Reads a distance table (CSV), chooses, and writes the choice as JSON."""
    write_json(path, SELECTION_SCHEMA, select(pd.read_csv(table_path), downstream))
