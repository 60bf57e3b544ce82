"""The experiments of the repository as rules."""

import re
import subprocess
import sys
from collections import Counter

from pipeline import ROOT

from atomcsi.project import load_project


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
