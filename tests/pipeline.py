"""The pipeline as a user runs it, on a small config, in a folder of its own."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[1]


#: Fields and columns that tell how long something took, and what follows from that.
_TIMES = re.compile("seconds$|^costs$|^gpu_hours$|^kwh$")


class Run:
    """A folder with a copy of the small config, and Snakemake in it.

    Args:
        folder: The folder; it must not exist, or be empty.
        profile: Folder of the profile that says where jobs run.
        snakemake: What Python is called with to be Snakemake.
    """

    def __init__(
        self,
        folder: Path,
        profile: Path = ROOT / "profiles" / "local",
        snakemake: Sequence[str] = ("-m", "snakemake", "--cores", "2"),
    ) -> None:
        self.folder, self.profile, self.snakemake = folder, profile, snakemake
        config = folder / "config"
        shutil.copytree(ROOT / "tests" / "data" / "config", config)
        for name in ("datasets.yaml", "extractors.yaml"):
            shutil.copy(ROOT / "config" / name, config / name)
        # Chunks that a test can interrupt between, and some hundred structures less to evaluate on.
        extractors = config / "extractors.yaml"
        extractors.write_text(extractors.read_text() + "composition: {max_atoms: 100, chunk: 5}\n")
        self.edit("datasets.yaml", "train: rest, val: 100, test: 100", "train: rest, val: 20, test: 20")
        self.edit("datasets.yaml", "train: rest, val: 100, test: 100", "train: rest, val: 20, test: 20")

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / "config" / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def command(self, *arguments: str) -> list[str]:
        command = [sys.executable, *self.snakemake, "--snakefile", ROOT / "Snakefile", "--directory", self.folder]
        command += ["--workflow-profile", "none", "--profile", self.profile]
        return [*map(str, command), *arguments, "--configfile", str(self.folder / "config" / "small.yaml")]

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=600)

    def planned(self, *arguments: str) -> dict[str, int]:
        """Rules that a dry run would execute, with their number of jobs."""
        found = self(*arguments, "--dry-run", "--quiet", "rules")
        assert found.returncode == 0, found.stderr
        lines = found.stdout.splitlines()
        table = lines[lines.index(next(line for line in lines if line.startswith("job "))) + 2 :]
        rows = [line.split() for line in table[: table.index(next(line for line in table if "total" in line))]]
        return {name: int(count) for name, count in rows}

    def results(self) -> dict[str, object]:
        """Everything that the run made, see results_of."""
        return results_of(self.folder)

    def lost(self, whole: "Run") -> int:
        """Bytes of another run's results that this one has not, or not so."""
        mine, results = self.results(), whole.results()
        different = [name for name in results if mine.get(name) != results[name]]
        return sum((whole.folder / name).stat().st_size for name in different)

    def leftovers(self) -> list[str]:
        """What unfinished steps left behind."""
        results = self.folder / "results"
        found = (*self.folder.rglob(".*.tmp"), *self.folder.rglob("*.parts"), *results.rglob("checkpoints"))
        return sorted(str(path.relative_to(self.folder)) for path in found)


def results_of(folder: Path) -> dict[str, object]:
    """Everything that a run in a folder made, by file: records and tables without times, arrays, bytes of all else.

    Pages and model cards tell times, and what else they tell is in other files; logs and benchmarks are no results.
    """
    found = {}
    for path in sorted((folder / "results").rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix in _CONTENT and not name.startswith(("results/logs/", "results/benchmarks/")):
            found[name] = _CONTENT[path.suffix](path)
    return found


def _record(path: Path) -> object:
    content = json.loads(path.read_text())
    for record in (content, *content.get("history", []), *content.get("upstreams", [])):
        for key in filter(_TIMES.search, list(record)):
            del record[key]
    return content


def _table(path: Path) -> str:
    table = pd.read_csv(path)
    return table.drop(columns=[name for name in table if _TIMES.search(name)]).to_csv()


def _arrays(path: Path) -> dict[str, str]:
    found = {}

    def take(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            values = np.asarray(item[()])
            content = repr(values.tolist()).encode() if values.dtype.hasobject else values.tobytes()
            found[name] = f"{values.dtype} {values.shape} {_digest(content)}"

    with h5py.File(path) as file:
        file.visititems(take)
        provenance = json.loads(file.attrs.get("provenance", "{}"))
    return found | {name: repr(value) for name, value in provenance.items() if not _TIMES.search(name)}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _bytes(path: Path) -> str:
    return _digest(path.read_bytes())


_CONTENT = {".json": _record, ".csv": _table, ".h5": _arrays}
_CONTENT |= dict.fromkeys((".lmdb", ".safetensors", ".svg", ".png"), _bytes)
