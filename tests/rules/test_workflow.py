"""The pipeline as a user runs it, on a small config, in a folder of its own."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pipeline import Run

TASKS = ("rmd17-mini-forces", "qm9-mini-u0")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("finished"))
    found = run("all")
    assert found.returncode == 0, found.stderr[-5000:]
    run.output = found.stdout + found.stderr
    return run


def test_everything_is_made(finished):
    results = finished.folder / "results"
    matrix = pd.read_csv(results / "csi_matrix.csv")
    assert set(zip(matrix["upstream"], matrix["downstream"], strict=True)) == {
        (upstream, downstream) for upstream in ("ani1x-mini", "oc22-mini") for downstream in ("rmd17-mini", "qm9-mini")
    }
    # Molecules are nearer to molecules than to oxide slabs, even by composition alone.
    for downstream in ("rmd17-mini", "qm9-mini"):
        assert json.loads((results / "selection" / f"{downstream}.json").read_text())["selected"] == "ani1x-mini"
    finetuning = pd.read_csv(results / "finetuning.csv")
    assert sorted(zip(finetuning["task"], finetuning["init"], strict=True)) == [
        (task, init) for task in sorted(TASKS) for init in ("ani1x-mini", "balanced", "scratch")
    ]
    assert (finetuning["mae"] > 0).all() and (finetuning["structures"] == 20).all()
    page = (results / "report.html").read_text()
    assert all(task in page for task in TASKS) and "stand-in" in page
    assert {path.suffix for path in (results / "figures").iterdir()} == {".svg", ".csv"}


def test_progress_says_stage_how_far_and_time_left(finished):
    assert "pretrain ani1x-mini seed 0: done, 96 structures in" in finished.output
    assert "embed rmd17-mini: done, 60 structures in" in finished.output
    log = finished.folder / "results" / "logs" / "pretrain" / "gemnet-oc-test" / "ani1x-mini" / "seed0.log"
    assert "pretrain ani1x-mini seed 0: done" in log.read_text()


def test_costs_are_estimated_before_the_first_job(finished):
    """Once: the processes of jobs say nothing of it."""
    assert finished.output.count("Estimated cost (demo scale)") == 1
    assert finished.output.index("Estimated cost") < finished.output.index("Fetch the raw files")


def test_a_dry_run_says_what_its_jobs_cost(finished):
    found = finished("all", "--forceall", "--dry-run", "--quiet", "rules")
    lines = found.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Estimated cost"))
    rows = {}
    for line in lines[start + 2 :]:
        name, jobs, *numbers = line.split()
        rows[name] = [int(jobs), *numbers]
        if name == "total":
            break
    planned = int(next(line for line in lines if line.startswith("total ")).split()[1])
    # All jobs of Snakemake's own table but `all`, which does nothing.
    assert rows["total"][0] == planned - 1 == sum(row[0] for name, row in rows.items() if name != "total")
    # Two pretrainings of 4 x 24 structures, and three finetunings of each of two tasks.
    assert (rows["pretrain"][:2], rows["finetune"][0]) == ([2, "192"], 6)
    assert "rates by 8 trainings in results/, on a core: gemnet-oc-test" in found.stdout


def test_nothing_reruns(finished):
    assert "Nothing to be done" in finished("all").stderr


def test_one_table_needs_no_training(finished):
    planned = finished.planned("--forceall", "results/csi_matrix.csv")
    assert planned == {
        "fetch": 4, "convert": 2, "convert_without_test": 2, "embed": 4, "csi": 2, "csi_matrix": 1,
    }  # fmt: skip


def test_a_changed_seed_reruns_trainings_only(finished):
    planned = finished.planned("all", "--config", "seeds=[1]")
    assert {rule for rule in planned if planned[rule]} == {
        "pretrain", "finetune", "pretraining_table", "finetuning_table", "figure", "html_report", "all",
    }  # fmt: skip
    assert (planned["pretrain"], planned["finetune"]) == (2, 6)


def test_another_backbone_reruns_trainings_only(finished):
    """One line of the config."""
    planned = finished.planned("all", "--config", "backbone=schnet-test")
    assert {rule for rule in planned if planned[rule]} == {
        "pretrain", "finetune", "pretraining_table", "finetuning_table", "figure", "html_report", "all",
    }  # fmt: skip
    assert (planned["pretrain"], planned["finetune"]) == (2, 6)


def test_a_changed_entry_reruns_what_depends_on_it(finished):
    """Another split of one downstream dataset: its conversion, embedding, distances, mix and finetunings."""
    config = finished.folder / "config" / "datasets.yaml"
    before = config.read_text()
    try:
        head, tail = before.split("\nqm9-mini:")
        config.write_text(head + "\nqm9-mini:" + tail.replace("seed: 42", "seed: 43"))
        planned = finished.planned("all")
    finally:
        config.write_text(before)
    assert "fetch" not in planned and "pretrain" not in planned
    assert (planned["convert"], planned["embed"], planned["csi"], planned["mix"], planned["finetune"]) == (
        1,
        1,
        1,
        1,
        3,
    )


def test_a_title_reruns_the_report_only(finished):
    planned = finished.planned("all", "--config", "title=another")
    assert planned == {"html_report": 1, "all": 1}


def test_an_upstream_that_only_csi_asks_for_is_trained(finished):
    """The choice is ani1x-mini for both tasks."""
    planned = finished.planned("results/finetuning.csv", "--config", "inits=[csi]", "--forcerun", "pretrain")
    assert planned == {"pretrain": 1, "finetune": 2, "finetuning_table": 1}


def test_a_mix_has_its_share_of_each_dataset(finished):
    card = finished.results()["results/pretrain/gemnet-oc-test/balanced/seed0/model.json"]
    assert [(record["dataset"], record["structures"]) for record in card["datasets"]] == [
        ("ani1x-mini", 12),
        ("oc22-mini", 12),
    ]


def test_a_mix_by_csi_is_another_one_for_every_dataset(finished):
    planned = finished.planned("results/finetuning.csv", "--config", "inits=[nearest]", "--forcerun", "mix")
    assert planned == {"mix": 2, "pretrain": 2, "finetune": 2, "finetuning_table": 1}


def test_a_part_by_difficulty_is_scored_once(finished):
    """Its judge is a pretraining that the run has; what the judge says serves every part, and every seed."""
    mixes = {part: {"kind": "ranked", "dataset": "ani1x-mini", "judge": "ani1x-mini", "part": part}
             for part in ("easy", "hard")}  # fmt: skip
    trained = finished.folder / "results" / "pretrain" / "gemnet-oc-test" / "hard"
    targets = [f"results/pretrain/gemnet-oc-test/{part}/seed{seed}/model.json" for part in mixes for seed in (0, 1)]
    changes = ["--config", f"mixes={json.dumps(mixes)}"]
    assert finished.planned(*targets, *changes) == {"score": 1, "pretrain": 4}
    assert finished.planned(*targets, *changes, "--forcerun", "convert_without_test")["pretrain"] == 5
    found = finished(targets[2], *changes)
    assert found.returncode == 0, found.stderr[-3000:]
    assert "score ani1x-mini by ani1x-mini: done" in found.stderr
    (record,) = json.loads((trained / "seed0" / "model.json").read_text())["datasets"]
    assert (record["structures"], record["chosen"]["part"], record["chosen"]["judge"]["seed"]) == (24, "hard", 0)
    # What the tests around this one expect.
    shutil.rmtree(trained)
    shutil.rmtree(finished.folder / "results" / "difficulty")


def test_a_distance_that_knows_no_elements(finished):
    """Neither which elements matter nor mixes are known for it; the report does without."""
    changes = ["--config", "distance=energy", "also_measure=[coverage]", "inits=[scratch]"]
    planned = finished.planned("results/figures/csi-sample-size.svg", *changes)
    assert {"csi", "csi_matrix", "select", "csi_figure"} <= planned.keys()
    found = finished("results/figures/csi-sample-size.svg", "results/figures/csi-matrix.svg", *changes)
    assert found.returncode == 0, found.stderr[-3000:]
    assert "energy distance" in (finished.folder / "results" / "figures" / "csi-matrix.svg").read_text()
    # What the tests around this one expect.
    for name in ("energy", "coverage"):
        shutil.rmtree(finished.folder / "results" / "csi" / "composition" / "flat" / name)
    assert finished("all").returncode == 0


def test_an_experiment_takes_what_the_run_trained_into_the_report(finished):
    shown = ["--config", "experiments=[first]"]
    assert finished.planned("results/report.html", *shown) == {"experiment": 1, "html_report": 1}
    # Another budget of one of its starts is one pretraining more.
    planned = finished.planned("results/figures/second.svg", *shown)
    assert planned == {"pretrain": 1, "finetune": 1, "experiment": 1}
    found = finished("results/report.html", *shown)
    assert found.returncode == 0, found.stderr[-3000:]
    figures = finished.folder / "results" / "figures"
    table = pd.read_csv(figures / "first.csv").set_index("start")
    runs = pd.read_csv(finished.folder / "results" / "finetuning.csv").query("task == 'rmd17-mini-forces'")
    assert table["mean"].to_dict() == runs.set_index("init")["mae"].to_dict()
    assert table["budget"].to_dict() == {"ani1x-mini": 96, "balanced": 96, "scratch": 0}
    page = (finished.folder / "results" / "report.html").read_text()
    record = json.loads((figures / "first.json").read_text())
    assert "A dataset against a mix, of the tests" in page and record["findings"][0] in page
    assert "Half as many &lt;structures&gt;" in page and "results/figures/second.svg</code>" in page
    # What the tests around this one expect.
    for path in figures.glob("first.*"):
        path.unlink()
    assert finished("all").returncode == 0


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("small.yaml", "seeds:", "sedes:", "sedes: unknown key; did you mean 'seeds'?"),
        ("datasets.yaml", "energy: hartree", "energy: hartre", "did you mean 'hartree'?"),
        ("datasets.yaml", "path: resources/demo/ani1x", "path: resources/demo/ani2x", "no such file: resources/demo"),
    ],
)  # fmt: skip
def test_a_config_mistake_stops_before_any_job(tmp_path, file, old, new, message):
    run = Run(tmp_path)
    run.edit(file, old, new)
    found = run("all")
    assert found.returncode != 0
    assert message in found.stdout + found.stderr
    assert not (tmp_path / "results").exists()


def test_a_wrong_hash_stops_the_job(tmp_path):
    run = Run(tmp_path)
    text = (tmp_path / "config" / "datasets.yaml").read_text()
    head, digest = text.split("hash: sha256:", 1)
    (tmp_path / "config" / "datasets.yaml").write_text(f"{head}hash: sha256:{'0' * 64}{digest[64:]}")
    found = run("resources/raw/ani1x-mini/manifest.json")
    assert found.returncode != 0
    assert "has the sha256" in found.stderr and "correct the hash in the catalogue" in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "resources" / "raw" / "ani1x-mini" / "ani1x-mini.h5").exists()


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def nan_forces(path: Path) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    arrays["forces"][5, 2, 1] = np.nan
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("dataset", "file", "damage", "message"),
    [
        ("ani1x-mini", "ani1x-mini.h5", truncated, "ani1x-mini.h5: "),
        ("rmd17-mini", "rmd17/npz_data/rmd17_aspirin.npz", nan_forces, "has forces that are not finite"),
        ("qm9-mini", "dsgdb9nsd.xyz.tar.bz2", truncated, "dsgdb9nsd.xyz.tar.bz2"),
        ("ani1x-mini", "own.xyz", lambda path: path.write_text(""), "own.xyz: holds no structures"),
        (
            "ani1x-mini",
            "own.xyz",
            lambda path: path.write_text("1\n\nQq 0 0 0\n"),
            "frame 0: is no complete frame: 'Qq' is no element",
        ),
    ],
    ids=["truncated HDF5", "NaN forces", "truncated archive", "empty extxyz", "unknown element"],
)
def test_bad_files_end_in_one_message(tmp_path, dataset, file, damage, message):
    run = Run(tmp_path)
    if file == "own.xyz":
        run.edit("datasets.yaml", "{format: ani1x, file: ani1x-mini.h5}", "{format: user, file: own.xyz}")
    assert run(f"resources/raw/{dataset}/manifest.json").returncode == 0
    damage(tmp_path / "resources" / "raw" / dataset / file)
    found = run(f"results/lmdb/{dataset}/train.lmdb")
    assert found.returncode != 0
    errors = [line for line in found.stderr.splitlines() if "  error: " in line]
    assert len(errors) == 1 and message in errors[0], found.stderr[-3000:]
    assert "Traceback" not in found.stderr
    assert list((tmp_path / "results").rglob("*lmdb*")) == []


def wait_and_kill(run: Run, target: str, sign: str) -> None:
    """Starts the run and kills all its processes with SIGKILL as soon as a file matches ``sign``."""
    process = subprocess.Popen(
        run.command(target), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not list(run.folder.glob(sign)):
        assert process.poll() is None and time.monotonic() < deadline, f"ended before {sign} appeared"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(
    ("target", "sign", "resumed"),
    [
        ("results/csi_matrix.csv", "results/embeddings/*/*.parts/000001.h5", "embed "),
        ("results/pretraining.csv", "results/pretrain/*/ani1x-mini/**/last.ckpt", "pretrain ani1x-mini seed 0"),
        ("results/finetuning.csv", "results/finetune/**/checkpoints/last.ckpt", "finetune "),
    ],
    ids=["embed", "pretrain", "finetune"],
)
def test_kill_9_and_resume(finished, tmp_path, target, sign, resumed):
    run = Run(tmp_path)
    wait_and_kill(run, target, sign)
    assert run("--unlock").returncode == 0
    found = run("all")
    assert found.returncode == 0, found.stderr[-5000:]
    assert any(resumed in line and "resumes at" in line for line in found.stderr.splitlines())
    resumed_results, whole = run.results(), finished.results()
    records, expected = (sorted(name for name in each if name.endswith(".json")) for each in (resumed_results, whole))
    assert records == expected
    for name in (target, *records):
        assert resumed_results[name] == whole[name], name
