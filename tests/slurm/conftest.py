"""A real SLURM, and the pipeline on it through the profiles that users edit."""

import os
from pathlib import Path

import pytest
from cluster import Cluster, why_not, write_profile
from pipeline import Run


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    problem = "SLURM's daemons serve one test at a time" if "PYTEST_XDIST_WORKER" in os.environ else why_not()
    if problem:
        pytest.skip(f"NO TEST ON A REAL SLURM: {problem}")
    with Cluster(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture
def pipeline(cluster, tmp_path):
    """Returns a function that makes an empty run on the cluster; see write_profile for what rules ask for."""

    def make(profile: str = "slurm", **resources: dict[str, object]) -> Run:
        folder = write_profile(profile, tmp_path / "profile", **resources)
        return Run(tmp_path / "run", folder, [str(Path(__file__).with_name("fast_polling.py"))])

    return make
