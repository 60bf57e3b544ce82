"""How a benchmark is measured and recorded."""

from __future__ import annotations

import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atomcsi.files import atomic_path, read_json, write_json

SCHEMA = "atomcsi.bench/1"
RESULTS = Path("results/bench.json")
PAGE = Path("docs/benchmarks.md")
_START, _END = "<!-- table: made by `make bench` -->", "<!-- end of the table -->"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measured comparison.

    Attributes:
        name: What was measured, unique, as ``topic: what``.
        ours: Our figure, in ``unit``.
        baseline: The plain implementation's figure in the same run; None where there is nothing to compare with.
        unit: Unit of both, such as ``s`` or ``structures/s``.
        ratio: How many times better ours is, whatever the unit; None without a baseline.
        target: What the ratio should reach, or, without a baseline, what ``ours`` or ``peak_mb`` must keep below.
        peak_mb: Peak resident memory of our process in MB; None where it was not measured.
    """

    name: str
    ours: float
    baseline: float | None = None
    unit: str
    ratio: float | None = None
    target: float | None = None
    peak_mb: float | None = None

    @classmethod
    def faster(
        cls, name: str, ours: float, baseline: float, target: float | None, peak_mb: float | None = None
    ) -> Record:
        """A comparison of times in seconds: the ratio is baseline / ours."""
        ratio = baseline / ours
        return cls(name=name, ours=ours, baseline=baseline, unit="s", ratio=ratio, target=target, peak_mb=peak_mb)


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(ours: Callable[[], object], baseline: Callable[[], object], repeats: int = 3) -> tuple[float, float]:
    """Median wall times of two functions that are called in turn, so that both see the same drift of the machine."""
    pairs = [(seconds(ours), seconds(baseline)) for _ in range(repeats)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def in_process(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Calls a module's function in a fresh process; returns its result and the peak memory of that process in MB."""
    # Not multiprocessing's own pool, whose processes may not have children.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_peak, function, arguments).result()


def _with_peak(function: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Any, float]:
    result = function(*arguments)
    return result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def save(records: Iterable[Record]) -> None:
    """Writes records into ``results/bench.json``, in place of earlier ones of the same name, and into the page."""
    known = {entry["name"]: entry for entry in read_json(RESULTS, SCHEMA)["records"]} if RESULTS.exists() else {}
    known |= {record.name: asdict(record) for record in records}
    write_json(RESULTS, SCHEMA, {"records": list(known.values())})
    text = PAGE.read_text(encoding="utf-8")
    head, tail = text.partition(_START)[0], text.partition(_END)[2]
    with atomic_path(PAGE) as temporary:
        temporary.write_text(f"{head}{_START}\n\n{_table(known.values())}\n\n{_END}{tail}", encoding="utf-8")


def _table(entries: Iterable[dict[str, Any]]) -> str:
    lines = ["| what | ours | baseline | unit | ratio | target | peak MB |", "|---|---:|---:|---|---:|---:|---:|"]
    for entry in sorted(entries, key=lambda entry: entry["name"]):
        cells = [entry["name"], *(_figure(entry[key]) for key in ("ours", "baseline")), entry["unit"]]
        cells += [_figure(entry[key]) for key in ("ratio", "target", "peak_mb")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def show(record: Record) -> str:
    """One line that tells a record."""
    return json.dumps(asdict(record))
