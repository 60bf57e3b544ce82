"""The experiments of the repository as rules."""

import json
import re
import subprocess
import sys

from pipeline import ROOT

from atomcsi.project import load_project


def test_all_experiments_at_demo_scale_share_their_pretrainings(tmp_path):
    """One dry run of every figure: what several of them, or the report, name is trained once."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", tmp_path]
    command += ["--workflow-profile", "none", "--profile", ROOT / "profiles" / "local", "paper", "--dry-run"]
    command += ["--config", "experiments=all", "--configfile", ROOT / "config" / "demo.yaml"]
    found = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr[-3000:]
    project = load_project(path=ROOT / "config" / "demo.yaml", root=ROOT)
    drawn = re.findall(r"Job \d+: Draw the experiment (\S+)", found.stdout)
    assert sorted(drawn) == sorted(project.experiments)
    trained = re.findall(r"Job \d+: Pretrain (\S+) on (\S+), seed (\d+)", found.stdout)
    asked = {
        name: {
            (cell.backbone, cell.start.name, str(cell.seed))
            for cell in project.cells(experiment)
            if cell.start.name in project.pretrainings
        }
        for name, experiment in project.experiments.items()
    }
    assert len(set(trained)) == len(trained)
    # The run's own pretrainings, which the report shows, are all among those of experiments.
    assert set(trained) == set().union(*asked.values())
    assert ("gemnet-oc-tiny", "ani1x-mini", "0") in asked["main"] & asked["budget"] & asked["misaligned"]
    assert len(trained) < sum(map(len, asked.values()))


def models_that_judge_or_embed(project, experiment) -> set[str]:
    """What an experiment needs beside what it finetunes, by the dataset of the pretraining."""
    mixes = [cell.start.mix for cell in project.cells(experiment)]
    judges = {mix.judge for mix in mixes if mix is not None and mix.kind == "ranked"}
    extractors = {comparison.extractor for comparison in experiment.comparisons} - {None}
    checkpoints = [str(project.extractors[name].options.get("checkpoint")) for name in extractors]
    return judges | {path.split("/")[3] for path in checkpoints if path.startswith("results/pretrain/")}


def test_every_figure_from_its_target_needs_no_more_than_its_own(tmp_path):
    """A dry run of each: its finetunings and pretrainings, and beyond them one model that judges or embeds at most."""
    project = load_project(path=ROOT / "config" / "demo.yaml", root=ROOT)
    options = ["--snakefile", ROOT / "Snakefile", "--directory", tmp_path, "--workflow-profile", "none"]
    options += ["--profile", ROOT / "profiles" / "local", "--configfile", ROOT / "config" / "demo.yaml"]
    plans = [[f"results/figures/{name}.svg", *map(str, options)] for name in project.experiments]
    planning = [sys.executable, ROOT / "tests" / "docs" / "planning.py"]
    found = subprocess.run(planning, input=json.dumps(plans), cwd=ROOT, capture_output=True, text=True, timeout=600)
    for (name, experiment), (code, said) in zip(project.experiments.items(), json.loads(found.stdout), strict=True):
        assert code == 0, f"{name}: {said[-3000:]}"
        jobs = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", said, re.MULTILINE)}
        cells = project.cells(experiment)
        trained = {
            (cell.backbone, cell.start.name, cell.seed) for cell in cells if cell.start.name in project.pretrainings
        }
        assert jobs["experiment"] == 1 and jobs.get("finetune", 0) == len(cells), name
        extra = len(models_that_judge_or_embed(project, experiment))
        assert len(trained) <= jobs.get("pretrain", 0) <= len(trained) + extra, name
        measured = {(found.comparison, found.aggregation, found.distance, found.downstream)
                    for found in project.measurements(experiment)}  # fmt: skip
        assert jobs.get("csi", 0) == (len(measured) if experiment.measures else 0), name
