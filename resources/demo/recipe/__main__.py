"""Command line: ``PYTHONPATH=resources/demo python -m recipe --out resources/demo``."""

from __future__ import annotations

import argparse
import hashlib
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from .datasets import DATASETS


def make(name: str, out: Path, seed: int) -> str:
    """Make one dataset in its own folder; every dataset has its own stream of random numbers."""
    start = time.perf_counter()
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    DATASETS[name](folder, (seed + zlib.crc32(name.encode())) % 2**31)
    return f"{name}: {time.perf_counter() - start:.0f} s"


def write_checksums(out: Path) -> None:
    """List the sha256 of every file of every dataset."""
    files = sorted(path for name in DATASETS for path in (out / name).glob("*") if path.is_file())
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(out)}" for path in files]
    (out / "SHA256SUMS").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Make the datasets asked for, and the list of checksums."""
    parser = argparse.ArgumentParser(prog="recipe", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the demo data")
    parser.add_argument("--only", nargs="+", choices=list(DATASETS), default=list(DATASETS), metavar="DATASET")
    parser.add_argument("--jobs", type=int, default=2, help="datasets made at a time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with ProcessPoolExecutor(options.jobs) as pool:
        jobs = [pool.submit(make, name, options.out, options.seed) for name in options.only]
        for job in jobs:
            print(job.result(), flush=True)
    write_checksums(options.out)


if __name__ == "__main__":
    main()
