"""Disks that are full or read-only, and processes that write the same file."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from pipeline import ROOT

from atomcsi.config import BackboneSpec, ExtractorSpec, Sampling, TrainSettings
from atomcsi.embed import embed
from atomcsi.embeddings import Embedding
from atomcsi.errors import AtomcsiError
from atomcsi.extractors.composition import CompositionExtractor
from atomcsi.files import write_json
from atomcsi.structure_lmdb import write_structures
from atomcsi.training.train import pretrain

SPEC = ExtractorSpec(implementation="composition", max_atoms=100, chunk=20)
SAMPLING = Sampling(method="random", structures=60)
TINY = yaml.safe_load((ROOT / "tests" / "data" / "config" / "backbones" / "gemnet-oc-test.yaml").read_text())


def mount(folder: Path, *options: str) -> bool:
    """Mounts a file system of 16 megabytes, or mounts one anew with other options; only root can."""
    command = ["mount", "-t", "tmpfs", "-o", ",".join(("size=16m", *options)), "tmpfs", folder]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A disk of 16 megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount(folder):
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def steps(toy_lmdb):
    """What writes: an LMDB file, an embedding, a training and a table, each into a folder."""
    structures = toy_lmdb(80)
    members = [structures[i] for i in range(80)]

    def embedding(folder: Path) -> None:
        embed(structures, folder / "x.h5", extractor=CompositionExtractor(), name="composition", spec=SPEC,
              sampling=SAMPLING)  # fmt: skip

    def training(folder: Path) -> None:
        settings = TrainSettings(structures=8, epochs=2, batch_size=4, learning_rate=1e-3, val_structures=4)
        pretrain([structures], [structures], folder / "model", seed=0, settings=settings,
                 backbone=BackboneSpec.model_validate(TINY))  # fmt: skip

    return {
        "LMDB": lambda folder: write_structures(folder / "x.lmdb", members, provenance={}),
        "embedding": embedding,
        "training": training,
        "table": lambda folder: write_json(folder / "x.json", "a/1", {"x": "y" * 1000}),
    }


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != "ballast")


@pytest.mark.parametrize("step", ["LMDB", "embedding", "training", "table"])
def test_a_full_disk(disk, steps, step, ledger):
    """One message, nothing half-written, and the step works once there is room."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes((16 << 20) - (0 if step == "table" else 8192)))
    with pytest.raises(AtomcsiError, match="the disk is full"):
        steps[step](disk)
    assert [name for name in files(disk) if name not in ("plan.json", "000000.h5", "history.csv")] == []
    ballast.unlink()
    steps[step](disk)
    ledger.add("full disk", "one message, nothing half-written, goes on when there is room")


@pytest.mark.parametrize("step", ["LMDB", "embedding", "training", "table"])
def test_a_read_only_disk(disk, steps, step, ledger):
    assert mount(disk, "remount", "ro")
    with pytest.raises(AtomcsiError, match=r"cannot be written: Read-only file system"):
        steps[step](disk)
    assert mount(disk, "remount", "rw")
    assert files(disk) == []
    ledger.add("read-only folder", "one message")


WRITER = """
import sys, time
from pathlib import Path
from atomcsi.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary, temporary.open("w") as file:
    for _ in range(200):
        file.write(sys.argv[2] * 1000)
        file.flush()
        time.sleep(0.002)
"""


def test_two_processes_write_one_file(tmp_path, ledger):
    """As after Snakemake was killed and started again while its jobs lived on: whichever is last, the file is whole."""
    target = tmp_path / "x.txt"
    for round_ in range(5):
        writers = [subprocess.Popen([sys.executable, "-c", WRITER, target, letter]) for letter in "ab"]
        assert [writer.wait() for writer in writers] == [0, 0], round_
        text = target.read_text()
        assert len(text) == 200_000 and text in ("a" * 200_000, "b" * 200_000)
        ledger.add("two processes write one file", "whole, by the one that was last")
    assert files(tmp_path) == ["x.txt"]


def test_two_processes_embed_the_same(tmp_path, toy_lmdb, ledger):
    """They share the folder of parts; one may fail, and what is there is right."""
    structures = toy_lmdb(80)
    embed(structures, tmp_path / "whole.h5", extractor=CompositionExtractor(), name="composition", spec=SPEC,
          sampling=SAMPLING)  # fmt: skip
    children = []
    for _ in range(2):
        if (child := os.fork()) == 0:
            try:
                embed(structures, tmp_path / "x.h5", extractor=CompositionExtractor(), name="composition", spec=SPEC,
                      sampling=SAMPLING)  # fmt: skip
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    found, whole = Embedding(tmp_path / "x.h5"), Embedding(tmp_path / "whole.h5")
    np.testing.assert_array_equal(found.moments.scatter, whole.moments.scatter)
    ledger.add("two processes write one file", "whole, by the one that was last")
