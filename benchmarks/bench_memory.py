"""Peak memory of writing an embedding and of measuring a pair at the paper's size, at once and ten times the rows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench_csi import DIM, ROWS, timed_measure, write
from benchmarks.harness import Record, in_process

#: Megabytes that neither may exceed, whatever the number of rows.
TARGET = 1500


def run() -> Iterator[Record]:
    """Writes a set of either size and compares it with a third."""
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other.h5"
        in_process(write, 1, ROWS, other)
        for factor in (1, 10):
            path, rows = Path(folder) / f"{factor}.h5", f"d = {DIM}, {factor} x {ROWS:,} rows"
            _, peak = in_process(write, 0, factor * ROWS, path)
            name = f"memory: writing an embedding with its moments, {rows}"
            yield Record(name=name, ours=peak, unit="MB", target=TARGET, peak_mb=peak)
            _, peak = in_process(timed_measure, (path, other))
            name = f"memory: one pair with error bar and elements, {rows}"
            yield Record(name=name, ours=peak, unit="MB", target=TARGET, peak_mb=peak)
