import numpy as np
import pytest

from atomcsi.moments import Moments


def test_equals_numpy():
    rows = np.random.default_rng(0).normal(size=(50, 4))
    moments = Moments.of(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(moments.covariance, np.cov(rows, rowvar=False), rtol=1e-12)


@pytest.mark.parametrize("cuts", [[1], [10, 20, 30], [0, 25, 25, 50]])
def test_merged_parts_equal_the_whole(cuts):
    rows = np.random.default_rng(1).normal(size=(50, 3)) + 5
    merged = sum((Moments.of(part) for part in np.split(rows, cuts)), start=Moments.zero(3))
    whole = Moments.of(rows)
    assert merged.count == 50
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-13)
    np.testing.assert_allclose(merged.scatter, whole.scatter, rtol=1e-12)


def test_weights_are_repetitions():
    rows = np.random.default_rng(2).normal(size=(5, 3))
    weights = np.array([1, 3, 0, 2, 1])
    weighted, repeated = Moments.of(rows, weights), Moments.of(np.repeat(rows, weights, axis=0))
    assert weighted.count == repeated.count == 7
    np.testing.assert_allclose(weighted.scatter, repeated.scatter, rtol=1e-13)


def test_a_large_mean_costs_no_precision():
    """Float32 features around 1e4 lose the variance in a one-pass sum of squares; float64 with shifts keeps it."""
    rows = (np.random.default_rng(3).normal(size=(1000, 2)) + 1e4).astype("f4")
    merged = sum((Moments.of(part) for part in np.array_split(rows, 10)), start=Moments.zero(2))
    np.testing.assert_allclose(merged.covariance, np.cov(rows.astype("f8"), rowvar=False), rtol=1e-9)


def test_single_row_and_single_column():
    assert Moments.of(np.ones((1, 3))).covariance.tolist() == np.zeros((3, 3)).tolist()
    np.testing.assert_allclose(Moments.of(np.array([[1.0], [3.0]])).covariance, [[2.0]])


def test_rows_are_taken_in_slices():
    """More rows than a slice holds, some without weight."""
    rows = np.random.default_rng(4).normal(size=(10_000, 2)) @ np.array([[1.0, 0.3], [0.0, 2.0]])
    weights = np.arange(10_000) % 3
    moments = Moments.of(rows, weights)
    assert moments.count == weights.sum()
    np.testing.assert_allclose(moments.covariance, np.cov(rows, rowvar=False, fweights=weights), rtol=1e-11)


def test_leading_features():
    rows = np.random.default_rng(5).normal(size=(30, 4))
    np.testing.assert_allclose(Moments.of(rows).leading(2).covariance, Moments.of(rows[:, :2]).covariance, rtol=1e-12)
