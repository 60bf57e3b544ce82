"""The demo on a SLURM of this machine against the demo without: what a cluster costs, and whether results differ."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import Record, seconds
from tests.pipeline import results_of
from tests.slurm.cluster import Cluster, why_not, write_profile

ROOT = Path(__file__).parents[1]


def run() -> Iterator[Record]:
    """Yields nothing where there can be no SLURM; see tests/slurm. Takes the demo's time and more."""
    if problem := why_not():
        print(f"slurm: not measured: {problem}", flush=True)
        return
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        baseline = seconds(lambda: _demo(folder / "local", ROOT / "profiles" / "local", "--cores", "2"))
        (folder / "slurm").mkdir()
        with Cluster(folder / "slurm"):
            profile = write_profile("slurm", folder / "profile")
            ours = seconds(lambda: _demo(folder / "cluster", profile))
        results, expected = results_of(folder / "cluster"), results_of(folder / "local")
    different = [name for name in {*results, *expected} if results.get(name) != expected.get(name)]
    print(
        f"slurm: {len(different)} of {len(expected)} files differ from those without: {sorted(different)}", flush=True
    )
    yield Record.faster("slurm: the demo with one seed, against a run without", ours, baseline, target=0.5)
    yield Record(
        name="slurm: the demo's files that differ from a run without", ours=len(different), unit="files", target=1
    )


def _demo(folder: Path, profile: Path, *arguments: str) -> None:
    shutil.copytree(ROOT / "config", folder / "config")
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    command += ["--workflow-profile", "none", "--profile", profile, *arguments, "all", "--config", "seeds=[0]"]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
