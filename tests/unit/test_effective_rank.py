import numpy as np
import pytest

from atomcsi.effective_rank import effective_rank, effective_ranks
from atomcsi.moments import Moments


def of(rows):
    return effective_rank(Moments.of(np.asarray(rows, float)))


def test_independent_and_equal_features():
    """d uncorrelated features have rank d, copies of one feature have rank 1, whatever their scales."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    assert of(corners * [1, 10, 100]) == pytest.approx(3, rel=1e-12)
    assert of(corners[:, :1] * [1.0, 10.0, -3.0]) == pytest.approx(1, rel=1e-6)


def test_correlated_pair():
    """Eigenvalues 1 + r and 1 - r, as shares of 2."""
    r, corners = 0.6, np.array([[x, y] for x in (-1, 1) for y in (-1, 1)])
    p = np.array([(1 + r) / 2, (1 - r) / 2])
    rows = corners @ np.linalg.cholesky([[1, r], [r, 1]]).T
    assert of(rows) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-9)


def test_features_that_do_not_vary():
    assert of([[1, 5], [2, 5], [4, 5]]) == pytest.approx(1)
    assert of([[1, 5], [1, 5]]) == 0


def test_atoms_vary_more_than_their_means(embedding):
    """Atoms that differ within a structure in all directions, structures that differ from each other in one."""
    generator = np.random.default_rng(0)
    structures = [generator.normal(size=(1, 1)) * 0.5 + generator.normal(size=(50, 6)) for _ in range(300)]
    table = effective_ranks(embedding(structures).path, sizes=(100, 1000), aggregations=("flat", "mean"), repeats=3)
    assert table["structures"].tolist() == [100] * 6
    ranks = table.groupby("aggregation")["effective_rank"]
    assert ranks.min()["flat"] > 5 and ranks.max()["mean"] < 2.5
    assert ranks.nunique().tolist() == [3, 3]
    again = effective_ranks(embedding(structures).path, sizes=(100, 1000), aggregations=("flat", "mean"), repeats=3)
    assert again.equals(table)


def test_a_small_file_gives_its_own_size(embedding):
    file = embedding([np.random.default_rng(1).normal(size=(3, 2)) for _ in range(20)])
    assert set(effective_ranks(file.path, repeats=1)["structures"]) == {20}
