"""Whether training in bfloat16 costs accuracy: the demo's pretraining on ani1x-mini, against float32, over three seeds.

What is compared is the validation loss of the best epoch. The ratio is the spread of float32 from seed to seed (twice
its standard deviation) over the difference of the means: above 1, the difference does not show.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from atomcsi.jobs import set_threads
from atomcsi.project import load_project
from atomcsi.structure_lmdb import StructureLMDB
from atomcsi.training.model_files import read_card
from atomcsi.training.train import pretrain
from benchmarks.harness import Record

_DATASET, _SEEDS = "ani1x-mini", range(3)
_FILES = [Path("results/lmdb") / _DATASET / f"{split}.lmdb" for split in ("train", "val")]


def run() -> Iterator[Record]:
    """Yields the comparison."""
    set_threads(1)
    command = [sys.executable, "-m", "snakemake", "--profile", "profiles/local", "--quiet", "--", *map(str, _FILES)]
    subprocess.run(command, check=True)
    losses = {precision: [_loss(precision, seed) for seed in _SEEDS] for precision in ("float32", "bfloat16")}
    ours, baseline = (statistics.mean(losses[precision]) for precision in ("bfloat16", "float32"))
    spread = 2 * statistics.stdev(losses["float32"])
    what = (
        f"gemnet-oc-tiny: validation loss on {_DATASET}, bfloat16 against float32, of 3 seeds; spread over difference"
    )
    ratio = spread / max(abs(ours - baseline), 1e-12)
    yield Record(name=what, ours=ours, baseline=baseline, unit="loss", ratio=ratio, target=1)


def _loss(precision: str, seed: int) -> float:
    project = load_project()
    settings = project.run.pretrain.model_copy(update={"precision": precision})
    with tempfile.TemporaryDirectory() as folder:
        train, val = (StructureLMDB(file) for file in _FILES)
        backbone = project.backbones[project.run.backbone]
        pretrain([train], [val], Path(folder), backbone=backbone, settings=settings, seed=seed)
        return min(record["val_loss"] for record in read_card(Path(folder))["history"])
