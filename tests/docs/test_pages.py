"""README.md and the pages in docs/: every command is run, every file is written, every link leads somewhere.

In a copy of the repository with all files and edits of all pages, so that they fit together. Snakemake commands are
planned; with ATOMCSI_DOCS=full (`make docs-test`) they run for real. The demo has fewer structures and steps there.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ase.io
import pytest
import yaml
from ase import Atoms
from pages import NOT_RUN, PROGRAMS, ROOT, blocks, pages

from atomcsi.config import BackboneSpec, ExtractorSpec, Sampling, Task, TrainSettings
from atomcsi.embed import embed
from atomcsi.extraction import build_extractor
from atomcsi.structure_lmdb import StructureLMDB, write_structures
from atomcsi.training.processes import Execution
from atomcsi.training.train import finetune, pretrain

FULL = os.environ.get("ATOMCSI_DOCS") == "full"
BLOCKS = [block for page in pages() for block in blocks(page)]
#: What is not copied: what users made, and what tools left.
LEFT_OUT = (".git", ".venv", ".snakemake", "results", "raw", "checkpoints", "_build", "*_cache", "__pycache__")
#: A model that the pipeline makes, which pages also call MODEL.
MODEL = "results/finetune/gemnet-oc-tiny/scratch__rmd17-mini-forces/seed0"


@pytest.fixture(scope="module")
def tree(tmp_path_factory, toy_structures):
    """A copy of the repository with what the pages add to it, and with what a reader has who comes to a page."""
    folder = tmp_path_factory.mktemp("docs") / "atomcsi"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "MODEL").symlink_to(MODEL)
    for block in BLOCKS:
        path = folder / block.argument
        if block.mark == "file":
            assert not path.exists(), f"{block.where}: {block.argument} is there already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif block.mark == "edit":
            old, new = (
                "".join(line[1:] for line in block.text.splitlines(keepends=True) if line[0] in f" {sign}")
                for sign in "-+"
            )
            text = path.read_text()
            assert text.count(old) == 1, f"{block.where}: {block.argument} has these lines {text.count(old)} times"
            path.write_text(text.replace(old, new))
    for name, seed, molecules in (("mine.extxyz", 0, ("CH3OH",)), ("candidate-1.extxyz", 1, ("CH3OH", "C2H6"))):
        ase.io.write(folder / name, [as_atoms(structure) for structure in toy_structures(24, seed, molecules)])
    for structure in toy_structures(24, 2, ("H2O2", "SO2")):
        ase.io.write(folder / "candidate-2.db", as_atoms(structure), append=True)
    # The paper's extractor, for plans.
    (folder / "resources" / "checkpoints").mkdir()
    (folder / "resources" / "checkpoints" / "eq2_31M_ec4_allmd.pt").touch()
    make_the_demo_small(folder / "config")
    if not FULL:
        make_results(folder / "results", toy_structures)
    shutil.copy(folder / "config" / "demo.yaml", folder / "config" / "mine.yaml")
    return folder


def as_atoms(structure):
    return Atoms(structure.numbers, structure.positions)


def make_the_demo_small(config):
    """The demo in a minute or two: the same names, less of everything."""
    demo = yaml.safe_load((config / "demo.yaml").read_text())
    demo["tasks"], demo["inits"] = ["rmd17-mini-forces", "qm9-mini-u0"], ["ani1x-mini", "csi", "scratch"]
    demo["seeds"], demo["experiments"] = [0], ["csi"]
    demo["pretrain"] |= {"structures": 24, "epochs": 1}
    for role in ("upstream", "downstream"):
        demo["embedding"][role]["structures"] = 40
    (config / "demo.yaml").write_text(yaml.safe_dump(demo))


def make_results(results, toy_structures):
    """What the pipeline would have left, of toy molecules: commands that read results are tested, not the results."""
    stores = {}
    for seed, name in enumerate(("rmd17-mini", "ani1x-mini", "oc20-mini", "qm9-mini")):
        path = results / "lmdb" / name / "train.lmdb"
        path.parent.mkdir(parents=True)
        provenance = {"dataset": name, "split": "train", "licence": "CC0-1.0", "source": "made up"}
        write_structures(path, toy_structures(40, seed), provenance=provenance)
        stores[name] = StructureLMDB(path)
    spec = ExtractorSpec(implementation="composition")
    for name, store in stores.items():
        path = results / "embeddings" / "sevennet-0" / f"{name}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        sampling = Sampling(method="random", structures=40)
        embed(store, path, extractor=build_extractor(spec), name="sevennet-0", spec=spec, sampling=sampling)
    backbone = yaml.safe_load((ROOT / "tests" / "data" / "config" / "backbones" / "gemnet-oc-test.yaml").read_text())
    backbone, execution = BackboneSpec(**backbone), Execution(device="cpu")
    settings = TrainSettings(structures=8, epochs=1, batch_size=4, learning_rate=1e-3)
    folder = results / "pretrain" / "gemnet-oc-tiny" / "ani1x-mini" / "seed0"
    data = [stores["ani1x-mini"]]
    pretrain(data, data, folder, backbone=backbone, settings=settings, seed=0, execution=execution)
    task = Task(dataset="rmd17-mini", target="forces", unit="meV/angstrom", finetune=settings)
    splits = dict.fromkeys(("train", "val", "test"), stores["rmd17-mini"])
    names = {"task_name": "rmd17-mini-forces", "init": None}
    folder = results.parent / MODEL
    finetune(splits, folder, task=task, **names, backbone=backbone, seed=0, execution=execution)
    header = "upstream,downstream,distance,estimate,low,high"
    (results / "csi_matrix.csv").write_text(f"{header}\nani1x-mini,rmd17-mini,frechet,1.0,0.5,1.5\n")


def bash(tree, script):
    """Runs a script as a reader would, in the environment of the tests and with the package of the copy."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(tree / "src"),
        "ATOMCSI_CACHE": str(tree.parent / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tree,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=3600 if FULL else 600,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def for_real(block):
    return block.mark == "run" or (FULL and block.mark != "dry run")


@pytest.mark.parametrize("page", [page for page in pages() if any(block.is_run for block in blocks(page))])
def test_commands_of(page, tree):
    """They are run in their order. Those of Snakemake are left to the next test unless they run for real."""
    for block in blocks(page):
        if block.is_run and block.language == "python":
            (tree / "block.py").write_text(block.text)
            bash(tree, "python block.py")
        elif block.is_run:
            bash(tree, block.text if for_real(block) else f"snakemake() {{ :; }}\n{block.text}")


def test_snakemake_commands(tree):
    """What is not run for real is planned."""
    left = [block for block in BLOCKS if block.is_run and block.language == "sh" and not for_real(block)]
    recorder = "".join(f"{program}() {{ :; }}\n" for program in PROGRAMS if program != "snakemake")
    recorder += """snakemake() { printf '%s\\0' "$@"; printf '\\n'; }\n"""
    recorded = [(block, line) for block in left for line in bash(tree, recorder + block.text).splitlines()]
    arguments = [line.rstrip("\0").split("\0") for _, line in recorded]
    planned = subprocess.run(
        [sys.executable, Path(__file__).with_name("planning.py")],
        input=json.dumps(arguments),
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree / "src")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert planned.returncode == 0, planned.stderr
    for (block, _), words, (code, output) in zip(recorded, arguments, json.loads(planned.stdout), strict=True):
        assert code == 0, f"{block.where}: snakemake {' '.join(words)}\n{output[-3000:]}"


def test_every_command_is_found():
    """None hides in a block that is not marked as shell's, and none is left out without a reason."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in BLOCKS:
        for line in block.commands:
            program = line.split()[0]
            if block.language == "sh":
                known = (*PROGRAMS, *NOT_RUN) if block.mark == "not run" else PROGRAMS
                assert program in known, f"{block.where}: the tests do not know how to run '{line}'"
                assert program != "make" or line.split()[1] in targets, f"{block.where}: no such target: '{line}'"
            elif block.language in ("", "text", "console", "bash", "shell"):
                assert program not in PROGRAMS[:3], f"{block.where}: mark the block as sh: '{line}'"
        if block.mark in ("not run", "dry run"):
            assert block.argument, f"{block.where}: say why"
        if block.mark == "edit":
            assert block.language == "diff", block.where


def test_files_that_pages_name_are_there(tree):
    """Paths in the text; what the pipeline makes is no file of the repository."""
    pattern = re.compile(r"`((?:src|tests|config|docs|workflow|profiles|benchmarks)/[\w./-]+)`")
    for page in pages():
        for path in pattern.findall((ROOT / page).read_text()):
            assert (tree / path).exists(), f"{page}: {path}"


def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", ROOT / "docs", tmp_path]
    built = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr
    assert "learning_rate" in (tmp_path / "reference" / "config.html").read_text()
