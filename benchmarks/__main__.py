"""Runs the benchmarks, all or those named: ``python -m benchmarks [TOPIC ...]``; topics are the ``bench_*.py`` files.

A topic is a module with a function ``run() -> Iterator[Record]``.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from benchmarks.harness import save, show

TOPICS = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


def main() -> None:
    """Runs topics one after the other; what is done is saved even if a later one fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ratios against plain baselines.")
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=f"of {', '.join(TOPICS)}; default: all")
    topics = parser.parse_args().topics or TOPICS
    if unknown := set(topics) - set(TOPICS):
        parser.error(f"unknown topic {', '.join(sorted(unknown))}; known: {', '.join(TOPICS)}")
    for topic in topics:
        for record in import_module(f"benchmarks.bench_{topic}").run():
            print(show(record), flush=True)
            save([record])


if __name__ == "__main__":
    main()
