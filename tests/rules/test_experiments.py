"""The experiments of the repository as rules."""

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
