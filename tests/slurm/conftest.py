"""A real SLURM, and the pipeline on it through the profiles that users edit."""

import os
from pathlib import Path

import pytest
import yaml
from cluster import Cluster, why_not
from pipeline import ROOT, Run

#: Facts of this site: a processor for each job, no accounts, jobs of seconds.
SITE = {
    "cores": 1,
    "slurm-no-account": True,
    "slurm-status-command": "squeue",
    "slurm-init-seconds-before-status-checks": 1,
}


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    problem = "SLURM's daemons serve one test at a time" if "PYTEST_XDIST_WORKER" in os.environ else why_not()
    if problem:
        pytest.skip(f"NO TEST ON A REAL SLURM: {problem}")
    with Cluster(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture
def pipeline(cluster, tmp_path):
    """Returns a function that makes an empty run on the cluster, by a profile with the facts of this site.

    What single rules ask for can be replaced, as users do.
    """

    def make(profile: str = "slurm", **resources: dict[str, object]) -> Run:
        content = yaml.safe_load((ROOT / "profiles" / profile / "config.yaml").read_text())
        del content["default-resources"]["slurm_account"]
        for rule, changed in resources.items():
            content["set-resources"][rule] |= changed
        folder = tmp_path / "profile"
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(content | SITE))
        return Run(tmp_path / "run", folder, [str(Path(__file__).with_name("fast_polling.py"))])

    return make
