"""The pipeline on a real SLURM, and what clusters do to jobs."""


def test_all(run):
    found = run("all")
    assert found.returncode == 0, found.stderr[-5000:]
