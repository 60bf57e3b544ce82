import numpy as np
import pytest

from atomcsi.distances.base import Pair, Value
from atomcsi.distances.frechet import FrechetPair
from atomcsi.moments import Moments
from atomcsi.uncertainty import covariance, difference, estimate, probability_best


class Blocks:
    """An embedding in memory: structures of atoms that resemble each other, in blocks."""

    flat = True

    def __init__(self, structures, blocks=20):
        self.dim, self.blocks = structures.shape[-1], blocks
        self._parts = [Moments.of(part.reshape(-1, self.dim)) for part in np.array_split(structures, blocks)]
        self.moments = Moments.merged(self._parts, self.dim)

    def block_moments(self, block):
        return self._parts[block]


class MeanOfBlocks(Pair):
    """Mean of upstream's numbers minus mean of downstream's: its variance is known."""

    def __init__(self, upstream, downstream):
        super().__init__(*(Blocks(values[:, None, None], len(values)) for values in (upstream, downstream)))
        self.sides = upstream, downstream

    def value(self, upstream=None, downstream=None):
        a, b = (
            values if kept is None else values[kept]
            for values, kept in zip(self.sides, (upstream, downstream), strict=True)
        )
        return Value(float(a.mean() - b.mean()))


def drawn(generator, structures, atoms, deviations, shift=0.0, freedom=None):
    """Features half of whose variance is common to the atoms of a structure: normal, or Student's t if `freedom`."""
    d = len(deviations)
    common, own = generator.normal(size=(structures, 1, d)), generator.normal(size=(structures, atoms, d))
    if freedom:
        common = generator.standard_t(freedom, size=common.shape) / np.sqrt(freedom / (freedom - 2))
    return (common + own) * np.sqrt(0.5) * deviations + shift


@pytest.mark.slow
@pytest.mark.parametrize(
    ("structures", "d", "shift", "scale", "freedom"),
    [(200, 4, 0.3, 1.3, None), (300, 12, 0.2, 1.5, None), (400, 12, 0.4, 1.0, None), (300, 12, 0.2, 1.5, 6)],
)
def test_intervals_cover_the_truth(structures, d, shift, scale, freedom):
    """Sets of known distributions: |shift|^2 d + sum (s1 - s2)^2 (Dowson and Landau 1982) lies in 95 % of intervals."""
    generator = np.random.default_rng(0)
    deviations = np.arange(1, d + 1) ** -0.5
    truth = d * shift**2 + np.square(deviations * (scale - 1)).sum()
    estimates = []
    for _ in range(200):
        pair = FrechetPair(
            Blocks(drawn(generator, structures, 5, deviations, freedom=freedom)),
            Blocks(drawn(generator, structures // 2, 8, deviations * scale, shift, freedom)),
        )
        estimates.append(estimate(pair))
    covered = np.mean([low <= truth <= high for low, high in (each.interval() for each in estimates)])
    assert 0.90 <= covered <= 0.98
    corrected = np.array([each.corrected for each in estimates])
    # Three standard errors of a mean over 200.
    assert corrected.mean() == pytest.approx(truth, abs=3 * corrected.std() / np.sqrt(200))
    assert np.mean([each.standard_error for each in estimates]) == pytest.approx(corrected.std(), rel=0.15)
    assert np.mean([each.found.value for each in estimates]) - truth > 3 * corrected.std() / np.sqrt(200)


def test_alike_sets_have_a_distance_of_zero_in_the_interval():
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(50):
        pair = FrechetPair(*(Blocks(drawn(generator, 200, 5, np.ones(6))) for _ in range(2)))
        found = estimate(pair)
        assert found.found.value > 0
        hits += found.interval()[0] == 0
    assert hits >= 45


def test_the_jackknife_of_a_mean_is_its_standard_error():
    generator = np.random.default_rng(2)
    a, b = generator.normal(size=20), generator.normal(size=10) * 2
    found = estimate(MeanOfBlocks(a, b))
    assert found.variance == pytest.approx(a.var(ddof=1) / 20 + b.var(ddof=1) / 10, rel=1e-9)
    assert found.corrected == pytest.approx(a.mean() - b.mean(), rel=1e-9)  # a mean has no bias


def test_frechet_influences_equal_the_jackknife():
    """With many structures, leaving a block out is the derivative to first order in 1 / blocks."""
    generator = np.random.default_rng(3)
    pair = FrechetPair(
        Blocks(drawn(generator, 4000, 3, np.ones(5)), 40), Blocks(drawn(generator, 4000, 3, np.ones(5) * 2, 1.0), 40)
    )
    for found, expected in zip(pair.influences(), Pair.influences(pair), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.05 * np.abs(expected).max())
        assert found.sum() == pytest.approx(0, abs=1e-9)


def test_the_downstream_error_is_common():
    """Two upstreams without errors of their own: the difference of their distances has none either."""
    generator = np.random.default_rng(4)
    downstream = generator.normal(size=20)
    a, b = (estimate(MeanOfBlocks(np.full(20, mean), downstream)) for mean in (3.0, 5.0))
    matrix = covariance([a, b])
    assert matrix[0, 1] == pytest.approx(matrix[0, 0], rel=1e-9)
    assert difference(a, b) == pytest.approx((2, 2, 2), abs=1e-6)
    assert probability_best([a, b]).tolist() == [1, 0]


def test_probability_best_is_that_of_two_normals():
    """P(a < b) = Phi(gap / sqrt(va + vb)) for independent errors."""
    from scipy.stats import norm

    generator = np.random.default_rng(5)
    still = np.zeros(20)
    a, b = (estimate(MeanOfBlocks(generator.normal(size=20) + mean, still)) for mean in (3.0, 3.4))
    gap, error = b.corrected - a.corrected, np.sqrt(a.variance + b.variance)
    chance = probability_best([a, b], seed=1)[0]
    assert chance == pytest.approx(norm.cdf(gap / error), abs=0.006)  # four standard errors of 100 000 draws
    low, high = difference(a, b)[1:]
    assert low < gap < high


def test_too_few_blocks():
    found = estimate(MeanOfBlocks(np.arange(3.0), np.arange(20.0)))
    assert np.isnan([found.corrected, found.standard_error, *found.interval()]).all()
    assert np.isnan(probability_best([found, found])).all() and np.isnan(difference(found, found)).all()


def test_bias_falls_with_the_number_of_structures():
    """In proportion to 1/N: half the structures have twice the bias, a quarter four times. Here all of it is bias."""
    generator = np.random.default_rng(6)
    found = [
        estimate(FrechetPair(*(Blocks(drawn(generator, 200, 2, np.ones(8))) for _ in range(2)))).by_share
        for _ in range(30)
    ]
    whole, half, quarter = (np.mean([shares[share] for shares in found]) for share in (1.0, 0.5, 0.25))
    assert half / whole == pytest.approx(2, rel=0.1) and quarter / whole == pytest.approx(4, rel=0.1)


def test_ties_share():
    still = np.zeros(20)
    tied = [estimate(MeanOfBlocks(still + mean, still)) for mean in (1.0, 1.0, 2.0)]
    assert probability_best(tied).tolist() == [0.5, 0.5, 0]


@pytest.mark.slow
def test_probability_best_is_calibrated():
    """Of two upstreams that are equally far, each is the nearest with a probability that is uniformly distributed."""
    generator = np.random.default_rng(7)
    chances = []
    for _ in range(400):
        downstream = generator.normal(size=8)
        pairs = [MeanOfBlocks(generator.normal(size=8) + 5, downstream) for _ in range(2)]
        chances.append(probability_best([estimate(pair) for pair in pairs])[0])
    # Binomial: 0.05 has a standard error of 0.011, and 0.5 one of 0.025.
    assert np.mean(np.array(chances) > 0.95) == pytest.approx(0.05, abs=0.033)
    assert np.mean(np.array(chances) > 0.5) == pytest.approx(0.5, abs=0.075)


@pytest.mark.slow
def test_samples_too_small_for_the_law_widen_the_interval():
    """60 structures in 128 dimensions: the bias falls more slowly than with 1/N, and the interval says so."""
    generator = np.random.default_rng(8)
    deviations = np.arange(1, 129) ** -1.0
    truth, covered = np.square(deviations * 0.3).sum(), 0
    for _ in range(40):
        pair = FrechetPair(
            Blocks(drawn(generator, 60, 5, deviations)), Blocks(drawn(generator, 60, 5, deviations * 1.3))
        )
        found = estimate(pair)
        low, high = found.interval()
        covered += low <= truth <= high
    assert covered >= 36
