"""Experiments as rules: what all of them would run at demo scale, and a small one that does."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
from pipeline import ROOT, Run

from atomcsi.project import load_project

EXPERIMENT = """
title: A small experiment of the tests
question: Do twice as many epochs help?
source: not in the paper
plot: budget
tasks: [rmd17-aspirin-forces]
inits: [ani1x, scratch]
budgets: [{}, {structures: 1000000}]
"""


def test_all_experiments_at_demo_scale_share_their_pretrainings(tmp_path):
    """One dry run of every figure: what several of them, or the report, name is trained once."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", tmp_path]
    command += ["--workflow-profile", "none", "--profile", ROOT / "profiles" / "local", "paper", "--dry-run"]
    command += ["--config", "experiments=all", "--configfile", ROOT / "config" / "demo.yaml"]
    found = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr[-3000:]
    made = Counter(re.findall(r"results/\S+/model\.json(?=, )", "\n".join(re.findall(r"output: .*", found.stdout))))
    trained = {path for path in made if path.startswith("results/pretrain/")}
    project = load_project(path=ROOT / "config" / "demo.yaml", root=ROOT)
    asked = [
        f"results/pretrain/{cell.backbone}/{cell.start.name}/seed{cell.seed}/model.json"
        for experiment in project.experiments.values()
        for cell in {(cell.backbone, cell.start.name, cell.seed): cell for cell in project.cells(experiment)}.values()
        if cell.start.name in project.pretrainings
    ]
    assert trained >= set(asked) and len(set(asked)) < len(asked)
    assert set(made.values()) == {1}
    # The report's own: every upstream, which experiments name too.
    assert len(trained - set(asked)) == 0
    figures = re.findall(r"results/figures/([a-z0-9-]+)\.json", found.stdout)
    assert set(figures) == set(project.experiments)


def test_an_experiment_runs_from_its_target_into_the_report(tmp_path):
    run = Run(tmp_path)
    experiments = tmp_path / "config" / "experiments"
    experiments.mkdir()
    (experiments / "more.yaml").write_text(EXPERIMENT)
    (experiments / "other.yaml").write_text(EXPERIMENT.replace("A small", "Another <small>"))
    run.edit("small.yaml", "seeds: [0]", "seeds: [0]\nexperiments: [more]\nstand_ins:\n  ani1x: ani1x-mini\n")
    run.edit("small.yaml", "stand_ins:\n", "stand_ins:\n  rmd17-aspirin-forces: rmd17-mini-forces\n")
    found = run("results/report.html", "--config", "inits=[ani1x-mini,scratch]", "tasks=[rmd17-mini-forces]")
    assert found.returncode == 0, found.stderr[-5000:]
    figures = tmp_path / "results" / "figures"
    table = pd.read_csv(figures / "more.csv").set_index("start")
    # The run's 24 x 4 stands for 2M x 5.
    assert table["budget"].to_dict() == {"ani1x-mini, 24 × 4": 96, "ani1x-mini, 12 × 4": 48, "scratch": 0}
    metrics = json.loads(metrics_of(tmp_path, "ani1x-mini-n12").read_text())
    assert table.loc["ani1x-mini, 12 × 4", "mean"] == metrics["mae"]
    card = json.loads((tmp_path / "results/pretrain/gemnet-oc-test/ani1x-mini-n12/seed0/model.json").read_text())
    assert (card["budget"], table.loc["ani1x-mini, 12 × 4", "seconds"]) == (48, card["seconds"])
    assert (figures / "more.png").stat().st_size > 10_000 and not (figures / "other.json").exists()
    page = (tmp_path / "results" / "report.html").read_text()
    assert "A small experiment of the tests" in page and "with one seed only" in page
    assert "Another &lt;small&gt; experiment" in page and "results/figures/other.svg" in page


def metrics_of(folder: Path, init: str) -> Path:
    return folder / f"results/finetune/gemnet-oc-test/{init}__rmd17-mini-forces/seed0/metrics.json"
