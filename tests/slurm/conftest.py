"""A real SLURM, and the pipeline on it through the profile that users edit."""

import os
from pathlib import Path

import pytest
import yaml
from cluster import Cluster, why_not
from pipeline import ROOT, Run


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    problem = "SLURM's daemons serve one test at a time" if "PYTEST_XDIST_WORKER" in os.environ else why_not()
    if problem:
        pytest.skip(f"NO TEST ON A REAL SLURM: {problem}")
    with Cluster(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture(scope="session")
def profile(tmp_path_factory) -> Path:
    """profiles/slurm with the facts of this site: one processor a job, no accounts, jobs of seconds."""
    content = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
    del content["default-resources"]["slurm_account"]
    content["slurm-no-account"] = True
    content["cores"] = 1
    content["slurm-init-seconds-before-status-checks"] = 1
    folder = tmp_path_factory.mktemp("profile")
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture
def run(cluster, profile, tmp_path) -> Run:
    """The pipeline in an empty folder, on the cluster."""
    return Run(tmp_path / "run", profile, [str(Path(__file__).with_name("fast_polling.py"))])
