import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from atomcsi.distances.frechet import frechet, transport
from atomcsi.moments import Moments


def gaussian(mean, covariance) -> Moments:
    """Moments with exactly this mean and covariance."""
    return Moments(11, np.asarray(mean, float), np.asarray(covariance, float) * 10)


def test_one_dimension():
    """Between N(m1, s1^2) and N(m2, s2^2) it is (m1 - m2)^2 + (s1 - s2)^2 (Dowson and Landau 1982)."""
    found = frechet(gaussian([1.0], [[4.0]]), gaussian([4.0], [[25.0]]))
    assert found.value == pytest.approx(9 + 9, rel=1e-14)
    assert (found.terms["mean_term"], found.terms["covariance_term"]) == pytest.approx((9, 9), rel=1e-14)


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


def test_equals_torchmetrics():
    """The distance that its image metric computes, on the same features."""
    from torchmetrics.image.fid import _compute_fid

    generator = np.random.default_rng(4)
    a, b = (Moments.of(generator.normal(size=(500, 24)) @ generator.normal(size=(24, 24))) for _ in range(2))
    tensors = [torch.as_tensor(x) for m in (a, b) for x in (m.mean, m.covariance)]
    assert frechet(a, b).value == pytest.approx(float(_compute_fid(*tensors)), rel=1e-6)


def test_few_rows():
    """Ten rows against many in 40 dimensions: covariances of ranks 9 and 40, against scipy's square root."""
    generator = np.random.default_rng(5)
    x, y = generator.normal(size=(10, 40)), generator.normal(size=(500, 40)) * np.linspace(0.5, 2, 40)
    a, b = Moments.of(x), Moments.of(y)
    root = sqrtm(a.covariance @ b.covariance).real
    plain = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * root.trace()
    assert frechet(a, b).value == pytest.approx(plain, rel=1e-6)
    assert frechet(b, a).value == pytest.approx(frechet(a, b).value, rel=1e-10)


def test_no_spread():
    """Points: the distance is that of the means, and of a point to a Gaussian its total variance more."""
    point, cloud = gaussian([1.0, 2.0], np.zeros((2, 2))), gaussian([1.0, 0.0], np.diag([1.0, 3.0]))
    assert frechet(point, point).value == 0
    assert frechet(point, cloud).value == pytest.approx(4 + 4, rel=1e-14)
    assert transport(cloud, point).tolist() == np.zeros((2, 2)).tolist()


@pytest.mark.parametrize("rows", [300, 8])
def test_transport_carries_one_gaussian_to_the_other(rows):
    """T S1 T = S2 wherever S1 has extent, and CSI is the mean of |x - T(x)|^2."""
    generator = np.random.default_rng(6)
    x, y = generator.normal(size=(300, 12)) + 1, generator.normal(size=(rows, 12)) @ generator.normal(size=(12, 12))
    a, b = Moments.of(x), Moments.of(y)
    plan = transport(a, b)
    np.testing.assert_allclose(plan, plan.T, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(plan @ a.covariance @ plan, b.covariance, rtol=0, atol=1e-7 * np.trace(b.covariance))
    cost = np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance)
    cost -= 2 * np.trace(plan @ a.covariance)
    assert cost == pytest.approx(frechet(a, b).value, rel=1e-9)


def shifted(rows, shift):
    return frechet(Moments.of(rows), Moments.of(rows + shift)).value


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), d=st.integers(1, 12), n=st.integers(2, 60), m=st.integers(2, 60))
def test_properties(seed, d, n, m):
    """Symmetric, not negative, zero on identical sets, blind to the order of rows, monotone under a growing shift."""
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(n, d)), generator.normal(size=(m, d)) * generator.uniform(0.1, 3, size=d)
    a, b = Moments.of(x), Moments.of(y)
    scale = np.trace(a.covariance) + np.trace(b.covariance) + 1
    found = frechet(a, b).value
    assert found >= 0
    assert found == pytest.approx(frechet(b, a).value, abs=1e-9 * scale)
    assert frechet(a, a).value <= 1e-9 * scale
    assert frechet(Moments.of(generator.permutation(x)), b).value == pytest.approx(found, abs=1e-9 * scale)
    parts = np.split(x, [n // 3, n // 2])
    merged = Moments.merged((Moments.of(part) for part in parts), d)
    assert frechet(merged, b).value == pytest.approx(found, abs=1e-9 * scale)
    distances = [shifted(x, shift) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert distances == pytest.approx([d * shift**2 for shift in (0.0, 0.5, 1.0, 2.0)], abs=1e-9 * scale)
