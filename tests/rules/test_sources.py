"""Where raw files come from, through the pipeline: families of datasets, mirrors, and the paper's config."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from atomcsi.embeddings import Embedding
from atomcsi.models.equiformer_v2 import EquiformerV2Blocks
from atomcsi.structure_lmdb import StructureLMDB

ROOT = Path(__file__).parents[2]


def snakemake(folder: Path, config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    command += ["--workflow-profile", "none", "--profile", ROOT / "profiles" / "local", "--cores", "2"]
    command += [*arguments, "--configfile", config]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)


@pytest.fixture
def family(tmp_path):
    """A config with a family of two molecules whose publisher is not to be reached, and a mirror that has its file."""
    config, mirror, publisher = tmp_path / "config", tmp_path / "mirror", tmp_path / "publisher"
    shutil.copytree(ROOT / "tests" / "data" / "config", config)
    for name in ("datasets.yaml", "extractors.yaml"):
        shutil.copy(ROOT / "config" / name, config / name)
    publisher.mkdir()
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        positions, forces = generator.normal(size=(2, 10, 3, 3))
        arrays = {"nuclear_charges": [8, 1, 1], "coords": positions, "energies": np.arange(10.0), "forces": forces}
        np.savez(publisher / f"{name}.npz", **arrays)
    archive = Path(shutil.make_archive(str(mirror / "waters"), "zip", publisher))
    entry = {
        "role": "downstream",
        "licence": "CC0-1.0",
        "source": "a test",
        "files": [
            {
                "name": "waters.zip",
                "url": "http://127.0.0.1:9/waters.zip",
                "hash": "sha256:" + hashlib.sha256(archive.read_bytes()).hexdigest(),
                "unpack": ["*.npz"],
            }
        ],
        "reader": {"format": "rmd17"},
        "units": {"energy": "kcal/mol"},
        "split": {"kind": "random", "train": "rest", "val": 2, "test": 2},
        "variants": {name: {"title": f"water {name}", "reader": {"file": f"{name}.npz"}} for name in ("a", "b")},
    }
    (config / "datasets").mkdir()
    (config / "datasets" / "waters.yaml").write_text(yaml.safe_dump({"waters": entry}))
    return tmp_path, config / "small.yaml", mirror


def test_a_family_is_fetched_once_and_from_the_mirror(family):
    folder, config, mirror = family
    targets = [f"results/lmdb/waters-{name}/train.lmdb" for name in ("a", "b")]
    done = snakemake(folder, config, *targets, "--config", f"mirror={mirror}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("Fetch the raw files of waters") == 1
    first, second = (StructureLMDB(folder / target) for target in targets)
    assert len(first) == len(second) == 6
    assert not np.array_equal(first[0].positions, second[0].positions)
    # Another mirror, or none, fetches nothing again.
    assert "Nothing to be done" in snakemake(folder, config, *targets).stderr


def test_a_publisher_who_is_not_there_is_named(family):
    folder, config, _ = family
    done = snakemake(folder, config, "resources/raw/waters/manifest.json", "--config", f"mirror={folder / 'none'}")
    assert done.returncode != 0
    assert "none: is named as the mirror, but is no folder" in (done.stdout + done.stderr)
    assert not (folder / "resources" / "raw" / "waters" / "waters.zip").exists()


@pytest.mark.parametrize(
    ("dataset", "raw"),
    [("rmd17-aspirin", "rmd17"), ("oc22", "oc22"), ("matbench-phonons-fold3", "matbench-phonons")],
)
def test_the_paper_s_data_can_be_planned_without_its_extractor(tmp_path, dataset, raw):
    target = f"results/lmdb/{dataset}/train.lmdb"
    done = snakemake(tmp_path, ROOT / "config" / "paper.yaml", target, "--dry-run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Fetch the raw files of {raw}" in done.stdout + done.stderr


def test_the_paper_s_run_fetches_its_extractor(tmp_path):
    done = snakemake(tmp_path, ROOT / "config" / "paper.yaml", "results/figures/csi.svg", "--dry-run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (done.stdout + done.stderr).count("Fetch the checkpoint of equiformer-v2") == 1


def test_a_checkpoint_is_fetched_once_and_used(family):
    """From the mirror: a random EquiformerV2 of no size, in the layout that is published."""
    folder, config, mirror = family
    sizes = dict.fromkeys(
        ("sphere_channels", "attn_hidden_channels", "num_heads", "attn_alpha_channels", "attn_value_channels",
         "ffn_hidden_channels", "edge_channels"), 4,
    )  # fmt: skip
    settings = {**sizes, "num_layers": 1, "lmax_list": [1], "mmax_list": [1], "grid_resolution": 8, "max_radius": 4.0}
    state = EquiformerV2Blocks(**settings).state_dict()
    content = {"state_dict": state, "config": {"model": "equiformer_v2", "model_attributes": settings}}
    (mirror / "tiny").mkdir(parents=True)
    torch.save(content, mirror / "tiny" / "tiny.pt")
    entry = {"implementation": "equiformer-v2", "source": {"name": "tiny.pt", "url": "http://127.0.0.1:9/tiny.pt"}}
    (config.parent / "extractors.yaml").write_text(yaml.safe_dump({"tiny": entry}))
    run = yaml.safe_load(config.read_text())
    run["embedding"]["extractor"] = "tiny"
    for role in ("upstream", "downstream"):
        run["embedding"][role]["structures"] = 4
        run["embedding"][role]["blocks"] = 2
    config.write_text(yaml.safe_dump(run))
    target = "results/embeddings/tiny/rmd17-mini.h5"
    done = snakemake(folder, config, target, "--config", f"mirror={mirror}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("Fetch the checkpoint of tiny") == 1
    fetched = folder / "resources" / "checkpoints" / "tiny"
    digest = hashlib.sha256((fetched / "tiny.pt").read_bytes()).hexdigest()
    assert Embedding(folder / target).provenance["checkpoint"] == digest
