"""Clocks that disagree, as those of the nodes of a cluster may."""

import os
import time

import numpy as np
import pytest
from pipeline import Run

from atomcsi.embeddings import Embedding

DAY = 24 * 3600


def shifted(path, seconds):
    moment = time.time() + seconds
    os.utime(path, (moment, moment))


@pytest.mark.slow
def test_clock_skew(tmp_path, ledger):
    """What a node wrote whose clock is a day ahead is taken by its content, or done again."""
    run = Run(tmp_path / "run")
    target = "results/embeddings/composition/rmd17-mini.h5"
    assert run(target).returncode == 0
    output, lmdb = run.folder / target, run.folder / "results" / "lmdb" / "rmd17-mini" / "train.lmdb"
    whole = Embedding(output).moments

    shifted(output, DAY)
    assert "Nothing to be done" in run(target).stderr
    shifted(lmdb, 2 * DAY)
    assert run(target).returncode == 0
    np.testing.assert_array_equal(Embedding(output).moments.scatter, whole.scatter)
    ledger.add("clock a day ahead", "taken by its content; same numbers", injected=2)
