import numpy as np
import pytest
from scipy.linalg import sqrtm

from atomcsi.distances.frechet import frechet
from atomcsi.moments import Moments


def gaussian(mean, covariance) -> Moments:
    """Moments with exactly this mean and covariance."""
    return Moments(11, np.asarray(mean, float), np.asarray(covariance, float) * 10)


def test_one_dimension():
    """Between N(m1, s1^2) and N(m2, s2^2) it is (m1 - m2)^2 + (s1 - s2)^2 (Dowson and Landau 1982)."""
    found = frechet(gaussian([1.0], [[4.0]]), gaussian([4.0], [[25.0]]))
    assert found.value == pytest.approx(9 + 9, rel=1e-14)
    assert (found.mean_term, found.covariance_term) == pytest.approx((9, 9), rel=1e-14)


def test_commuting_covariances():
    """With a common eigenbasis it is the sum of the one-dimensional distances."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    a, b = np.array([1.0, 4.0, 9.0]), np.array([16.0, 1.0, 0.25])
    found = frechet(gaussian(np.zeros(3), basis * a @ basis.T), gaussian(np.zeros(3), basis * b @ basis.T))
    assert found.value == pytest.approx(((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-12)


def test_general_covariances_equal_scipys_square_root():
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(300, 20)), generator.normal(size=(200, 20)) @ generator.normal(size=(20, 20)) + 0.3
    a, b = Moments.of(x), Moments.of(y)
    root = sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False)).real
    plain = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * root.trace()
    assert frechet(a, b).value == pytest.approx(plain, rel=1e-9)


def test_samples_of_known_gaussians_approach_the_closed_form():
    """Distance of N(0, I) and N(shift, 4 I) in d dimensions: |shift|^2 + d (1 - 2)^2."""
    generator = np.random.default_rng(2)
    d, n = 4, 200_000
    shift = np.array([1.0, -1.0, 0.5, 0.0])
    found = frechet(Moments.of(generator.normal(size=(n, d))), Moments.of(2 * generator.normal(size=(n, d)) + shift))
    # The standard error of the mean term alone is 2 |shift| sqrt(5 / n) = 0.015.
    assert found.value == pytest.approx(2.25 + d, abs=0.06)


def test_identical_symmetric_and_shift():
    rows = np.random.default_rng(3).normal(size=(100, 8)) * 3
    a, b = Moments.of(rows), Moments.of(rows + 0.5)
    scale = np.trace(a.covariance)
    assert frechet(a, a).value <= 1e-12 * scale
    assert frechet(a, b).value == pytest.approx(8 * 0.25, rel=1e-9)
    assert frechet(a, b).value == pytest.approx(frechet(b, a).value, rel=1e-12)


def test_rank_deficient_covariances():
    """Two rows in five dimensions: covariances of rank one along u and v, whose cross term is |u.v| s1 s2."""
    u, v = np.array([1.0, 0, 0, 0, 0]), np.array([0.6, 0.8, 0, 0, 0])
    a, b = Moments.of(np.array([-u, u])), Moments.of(np.array([-2 * v, 2 * v]))
    assert frechet(a, b).value == pytest.approx(2 + 8 - 2 * np.sqrt(2 * 8) * 0.6, rel=1e-7)


def test_different_dimensions():
    with pytest.raises(ValueError, match="dimension 3 and 2"):
        frechet(Moments.zero(3), Moments.zero(2))
