"""Measures how far several upstream datasets are from one downstream dataset, with error bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atomcsi.distances.base import Distance
from atomcsi.embeddings import Embedding
from atomcsi.errors import InputError
from atomcsi.files import read_json, versions, write_json
from atomcsi.progress import Progress
from atomcsi.registry import DISTANCES, load
from atomcsi.uncertainty import Estimate, difference, estimate, probability_best

SCHEMA = "atomcsi.distances/1"
#: Two embeddings can be compared if these are equal.
_ALIKE = ("extractor", "implementation", "options", "checkpoint")


def measure(
    upstreams: Sequence[Embedding],
    downstream: Embedding,
    *,
    distance: str,
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Measures the distance of every upstream to a downstream dataset.

    Args:
        upstreams: Embeddings of the upstream datasets, aggregated as the downstream one.
        downstream: Embedding of the downstream dataset.
        distance: Id of the distance.
        device: Where distances are computed that are worth it, in PyTorch's terms.
        seed: Seed of resampling, and of what a distance draws.

    Returns:
        What was compared and, under ``upstreams``, a record each, the nearest first: ``value``; its ``terms``;
        ``corrected`` for the size of the samples, with ``standard_error`` and the 95 % interval ``low`` to ``high``;
        ``p_best``, the probability that no other upstream is nearer; ``beyond_best`` with ``beyond_best_low`` and
        ``beyond_best_high``, how much farther than the nearest it is (0 for itself); ``by_share``, the value by share
        of the structures; ``elements`` (see :meth:`FrechetPair.elements`); ``upstream_sampling``, how its structures
        were drawn, and how many ``upstream_classes`` they are of; sizes and times. None where an error bar is
        unknown for want of blocks, and ``p_best`` of a single upstream. The upstreams are ranked by ``estimate``:
        ``corrected``, or ``value`` where it is unknown for one of them.

    Raises:
        InputError: A file cannot be read, or was embedded unlike the others.
    """
    implementation: Distance = load(DISTANCES, distance)(device=device, seed=seed)
    progress = Progress(f"{distance} to {downstream.name}", total=len(upstreams), unit="upstreams")
    records: list[dict[str, Any]] = []
    estimates: list[Estimate] = []
    for upstream in upstreams:
        require_alike(upstream, downstream)
        pair = implementation.pair(upstream, downstream)
        estimates.append(estimate(pair, seed=seed))
        if not math.isfinite(estimates[-1].found.value):
            mend = "compare more of them, or by another distance"
            raise InputError(upstream.path, f"has too few structures for the distance '{distance}'", mend=mend)
        records.append(_record(upstream, estimates[-1]) | {"elements": pair.elements()})
        progress.advance()
    progress.finish()
    # A corrected value cannot be compared with a plain one.
    ranked_by = "corrected" if all(each.known for each in estimates) else "value"
    for record in records:
        record["estimate"] = record[ranked_by]
    order = sorted(range(len(records)), key=lambda i: (records[i]["estimate"], records[i]["upstream"]))
    # One upstream alone is no choice.
    chances = probability_best(estimates, seed=seed) if len(estimates) > 1 else [math.nan]
    for i, record in enumerate(records):
        gap, low, high = difference(estimates[order[0]], estimates[i]) if i != order[0] else (0.0, math.nan, math.nan)
        more = {"p_best": chances[i], "beyond_best": gap, "beyond_best_low": low, "beyond_best_high": high}
        record.update({name: _known(value) for name, value in more.items()})
    return {
        "downstream": downstream.name,
        "extractor": downstream.provenance["extractor"],
        "aggregation": downstream.aggregation,
        "distance": distance,
        "resampled": downstream.provenance["sampling"]["resample"],
        "downstream_structures": downstream.provenance["drawn"],
        "downstream_atoms": downstream.provenance["atoms"],
        "downstream_blocks": downstream.blocks,
        "downstream_embedding_seconds": downstream.provenance["seconds"],
        "upstreams": [records[i] for i in order],
        "versions": versions("numpy", "scipy"),
    }


def require_alike(upstream: Embedding, downstream: Embedding) -> None:
    """Refuses to compare embeddings of different extractors, see :func:`measure`."""
    for key in _ALIKE:
        found, wanted = upstream.provenance[key], downstream.provenance[key]
        if found != wanted:
            problem = f"was embedded with {key} {wanted}, {upstream.path} with {found}"
            raise InputError(downstream.path, problem, mend="embed both alike")


def _record(upstream: Embedding, found: Estimate) -> dict[str, Any]:
    low, high = found.interval()
    return {
        "upstream": upstream.name,
        "value": found.found.value,
        "terms": dict(found.found.terms),
        "corrected": _known(found.corrected),
        "standard_error": _known(found.standard_error),
        "low": _known(low),
        "high": _known(high),
        "by_share": [{"share": share, "value": _known(value)} for share, value in found.by_share.items()],
        "upstream_population": upstream.provenance["structures"],
        "upstream_structures": upstream.provenance["drawn"],
        "upstream_distinct": upstream.structures,
        "upstream_sampling": upstream.provenance["sampling"]["method"],
        "upstream_classes": len(np.unique(upstream.classes)),
        "upstream_atoms": upstream.provenance["atoms"],
        "upstream_blocks": upstream.blocks,
        "upstream_embedding_seconds": upstream.provenance["seconds"],
    }


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return None if pd.isna(value) else float(value)


def write_measurement(path: Path, found: dict[str, Any]) -> None:
    """Writes what :func:`measure` found as JSON."""
    write_json(path, SCHEMA, found)


def read_measurements(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Reads what :func:`write_measurement` wrote."""
    return [read_json(path, SCHEMA) for path in paths]


def distance_table(measurements: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Returns measurements in long form: one row per extractor, aggregation, distance, upstream and downstream.

    A distance's own terms are columns, empty for other distances; ``value_half`` and ``value_quarter`` are the value
    for that share of the structures.
    """
    rows = []
    for found in measurements:
        for record in found["upstreams"]:
            row = {key: found[key] for key in ("extractor", "aggregation", "distance")}
            row |= {"upstream": record["upstream"], "downstream": found["downstream"]}
            row |= {key: value for key, value in record.items() if key not in ("terms", "by_share", "elements")}
            row |= record["terms"]
            shares = {entry["share"]: entry["value"] for entry in record["by_share"]}
            row |= {"value_half": shares.get(0.5), "value_quarter": shares.get(0.25)}
            rows.append(row | {key: value for key, value in found.items() if key.startswith("downstream_")})
    return pd.DataFrame(rows)


def element_table(measurements: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Returns which elements make the distances, in long form: one row per pair of datasets and element."""
    rows = []
    columns = ["extractor", "aggregation", "distance", "downstream", "upstream", "symbol"]
    columns += ["upstream_share", "downstream_share", "upstream_csi", "downstream_csi"]
    for found in measurements:
        names = {key: found[key] for key in ("extractor", "aggregation", "distance", "downstream")}
        for record in found["upstreams"]:
            rows += [names | {"upstream": record["upstream"]} | element for element in record["elements"]]
    return pd.DataFrame(rows, columns=columns)
