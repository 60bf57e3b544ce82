"""The distances' numbers, against closed forms and other libraries."""

import numpy as np
import pytest
from scipy.stats import norm

from atomcsi.distances.coverage import Coverage
from atomcsi.distances.elements import Elements
from atomcsi.distances.energy import Energy
from atomcsi.distances.frechet import Frechet
from atomcsi.distances.frechet_invariant import InvariantFrechet
from atomcsi.distances.kid import Kid
from atomcsi.distances.mmd import RbfMmd
from atomcsi.distances.sliced_wasserstein import SlicedWasserstein


@pytest.fixture
def pairs(embedding):
    """Returns a function that makes two sets of given rows, one atom per structure."""

    def make(x, y, **options):
        return tuple(embedding([row[None] for row in rows], name, **options) for name, rows in (("x", x), ("y", y)))

    return make


def measured(distance, pair):
    return distance().pair(*pair).value()


def test_energy_of_two_normals(pairs):
    """E|X - Y| of N(0, 1) and N(m, 1) is that of |N(m, 2)|, a folded normal; and 2 / sqrt(pi) within one."""
    generator, m, n = np.random.default_rng(0), 1.5, 3000
    folded = np.sqrt(2) * np.sqrt(2 / np.pi) * np.exp(-(m**2) / 4) + m * (1 - 2 * norm.cdf(-m / np.sqrt(2)))
    found = measured(Energy, pairs(generator.normal(size=(n, 1)), generator.normal(size=(n, 1)) + m)).value
    # Its standard error is 0.03.
    assert found == pytest.approx(2 * folded - 4 / np.sqrt(np.pi), abs=0.1)


def test_energy_equals_scipy(pairs):
    """scipy's is its square root, in one dimension."""
    from scipy.stats import energy_distance

    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(300, 1)), generator.gamma(2, size=(200, 1))
    found = measured(Energy, pairs(x, y)).value
    assert found == pytest.approx(energy_distance(x[:, 0].astype("f4"), y[:, 0].astype("f4")) ** 2, rel=1e-5)


def test_kid_equals_torchmetrics(pairs):
    """Its polynomial MMD, which takes sets of one size."""
    import torch
    from torchmetrics.image.kid import poly_mmd

    generator = np.random.default_rng(2)
    x, y = generator.normal(size=(200, 8)).astype("f4"), (generator.normal(size=(200, 8)) + 0.5).astype("f4")
    expected = float(poly_mmd(*(torch.as_tensor(rows, dtype=torch.float64) for rows in (x, y))))
    assert measured(Kid, pairs(x, y)).value == pytest.approx(expected, rel=1e-9)


def test_mmd_of_points(pairs):
    """All of one set at 0, all of the other at distance r: the median distance is that of the larger share of pairs."""
    x, y = np.zeros((50, 2)), np.tile([3.0, 4.0], (100, 1))
    found = measured(RbfMmd, pairs(x, y)).value
    # 5000 of 11 175 pairs have r = 5; the median is 0, and in its place stands 1.
    assert found == pytest.approx(2 - 2 * np.exp(-25 / 2), rel=1e-9)
    found = measured(RbfMmd, pairs(x[:10], y[:10], blocks=10)).value
    assert found == pytest.approx(2 - 2 * np.exp(-1 / 2), rel=1e-9)  # 100 of 190 pairs have r = 5


def test_mmd_with_repetitions(pairs, embedding):
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(40, 3)), generator.normal(size=(30, 3)) + 1
    times = generator.integers(1, 4, size=40)
    weighted = embedding([row[None] for row in x], "w", multiplicity=times)
    plain = pairs(np.repeat(x, times, axis=0), y)
    for distance in (Energy, SlicedWasserstein):
        repeated = distance().pair(weighted, plain[1]).value().value
        assert repeated == pytest.approx(measured(distance, plain).value, rel=1e-9)


def test_sliced_wasserstein_of_a_shift(pairs):
    """Along a direction u a shift is u.s, whose mean square over the sphere is |s|^2 / d."""
    rows = np.random.default_rng(4).normal(size=(100, 5))
    found = measured(SlicedWasserstein, pairs(rows, rows + np.array([3.0, 0, 0, 0, 0]))).value
    assert found == pytest.approx(9 / 5, rel=0.3)  # 100 directions


def test_coverage_of_a_line(pairs):
    """Points 0 ... 19 and 10 ... 29: balls reach to the fifth neighbour, at the ends to one side only."""
    here, there = np.arange(20.0)[:, None], np.arange(10.0, 30.0)[:, None]
    found = measured(Coverage, pairs(there, here))
    # Radii are 3, at the ends of a set 5, 4, 3: of 0 ... 19 the balls of 7 and more reach 10.
    assert found.terms["coverage"] == pytest.approx(13 / 20)
    assert found.value == pytest.approx(7 / 20)
    # 10 ... 19, and up to 24 within 5 of 19.
    assert found.terms["precision"] == pytest.approx(15 / 20)
    # 10 ... 19, and down to 5 within 5 of 10.
    assert found.terms["recall"] == pytest.approx(15 / 20)


def test_coverage_does_not_depend_on_the_ratio_of_sizes(embedding):
    """More rows of one set would cover more of the other by their number alone: 0.6 without as many of either."""
    generator = np.random.default_rng(7)
    rows = {n: [generator.normal(size=(1, 4)) for _ in range(n)] for n in (100, 800, 801)}
    few, many, mine = (embedding(each, str(n)) for n, each in rows.items())
    assert Coverage().pair(few, mine).value().value < Coverage().pair(many, mine).value().value + 0.1


def test_elements(embedding):
    """Half H, half C against all H: the Jensen-Shannon divergence in closed form."""
    a = embedding([np.zeros((2, 1))] * 20, "a", numbers=[1, 6] * 20)
    b = embedding([np.zeros((2, 1))] * 20, "b", numbers=[1] * 40)
    divergence = 0.5 * (0.5 * np.log2(0.5 / 0.75) + 0.5 * np.log2(0.5 / 0.25)) + 0.5 * np.log2(1 / 0.75)
    assert measured(Elements, (a, b)).value == pytest.approx(divergence, rel=1e-9)
    aggregated = type(a)(a.path, "mean"), type(b)(b.path, "mean")
    assert measured(Elements, aggregated).value == pytest.approx(divergence, rel=1e-9)


def test_invariant_features_come_first(embedding):
    generator = np.random.default_rng(5)
    rows = [generator.normal(size=(300, 6)) * np.arange(1, 7) for _ in range(2)]
    full = [embedding([row[None] for row in each], f"full{i}", invariant_dim=2) for i, each in enumerate(rows)]
    part = [embedding([row[None, :2] for row in each], f"part{i}") for i, each in enumerate(rows)]
    assert measured(InvariantFrechet, full).value == pytest.approx(measured(Frechet, part).value, rel=1e-9)


def test_elements_add_up_to_csi(embedding):
    generator = np.random.default_rng(6)
    numbers = np.tile([1, 1, 6, 8], 200)
    a = embedding([generator.normal(size=(4, 5)) for _ in range(200)], "a", numbers=numbers)
    # Only the oxygens differ, by far.
    structures = [generator.normal(size=(4, 5)) + np.array([[0], [0], [0], [4.0]]) for _ in range(200)]
    pair = Frechet().pair(a, embedding(structures, "b", numbers=numbers))
    elements = {row["symbol"]: row for row in pair.elements()}
    for side in ("upstream", "downstream"):
        assert sum(row[f"{side}_csi"] for row in elements.values()) == pytest.approx(pair.value().value, rel=1e-9)
        assert [elements[s][f"{side}_share"] for s in ("H", "C", "O")] == pytest.approx([0.5, 0.25, 0.25])
    assert elements["O"]["downstream_csi"] > 3 * elements["C"]["downstream_csi"]
    assert next(iter(elements)) == "O"
    assert Frechet().pair(*(type(a)(e.path, "mean") for e in (a, pair.downstream))).elements() == []
