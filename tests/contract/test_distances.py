"""What every distance of the registry must do."""

import numpy as np
import pytest

from atomcsi.registry import DISTANCES, load
from atomcsi.uncertainty import estimate


@pytest.fixture(params=sorted(DISTANCES))
def distance(request):
    return load(DISTANCES, request.param)()


@pytest.fixture
def sets(embedding):
    """Three sets of 120 structures: one, one that is like it, and one that is farther, with another element."""
    generator = np.random.default_rng(0)
    shifts, made = {"here": 0.0, "near": 0.2, "far": 2.0}, {}
    for name, shift in shifts.items():
        structures = [generator.normal(size=(4, 6)) + shift for _ in range(120)]
        # The element says how far the set is, for the distance that sees nothing else.
        numbers = np.where(generator.random(480) < shift / 2, 8, 6)
        made[name] = embedding(structures, name, numbers=numbers)
    return made


def test_order_symmetry_and_identity(distance, sets):
    here, near, far = (distance.pair(sets[name], sets["here"]).value().value for name in ("here", "near", "far"))
    assert here < near < far
    # KID leaves a row's kernel with itself out, so that its zero is one of expectation.
    assert abs(here) <= 0.01 * far
    back = distance.pair(sets["here"], sets["far"]).value().value
    assert back == pytest.approx(far, rel=1e-6 if distance.symmetric else 0.1)


def test_the_seed_decides(distance, sets):
    first, again = (distance.pair(sets["near"], sets["here"]).value() for _ in range(2))
    assert first == again


def test_all_blocks_are_the_whole(distance, sets):
    pair = distance.pair(sets["near"], sets["here"])
    blocks = list(range(20))
    assert pair.value(blocks, blocks).value == pytest.approx(pair.value().value, rel=1e-9)
    assert pair.value(blocks[:10], blocks[10:]).value != pair.value().value


def test_error_bars(distance, sets):
    near, far = (estimate(distance.pair(sets[name], sets["here"])) for name in ("near", "far"))
    assert near.known and [len(far.upstream), len(far.downstream)] == [20, 20]
    assert near.interval()[1] < far.interval()[0]


def test_intervals_of_alike_sets_hold_zero(distance, embedding):
    """Of 20 pairs of samples of one distribution, chance leaves at most 4 out of their 95 % intervals (p < 0.003)."""
    generator, missed = np.random.default_rng(2), 0
    for _ in range(20):
        pair = []
        for name in "ab":
            structures = [generator.normal(size=(3, 4)) for _ in range(80)]
            pair.append(embedding(structures, name, numbers=generator.choice([1, 6, 8], size=240)))
        missed += estimate(distance.pair(*pair)).interval()[0] > 0
    # What is not extrapolated keeps the distance that small samples have.
    assert missed <= 4 or not distance.pair(*pair).bias_falls_with_size


def test_features_of_different_sizes(distance, embedding):
    a, b = (embedding([np.zeros((2, d))] * 20, f"d{d}") for d in (2, 3))
    with pytest.raises(ValueError, match="dimension 2 and 3 cannot be compared"):
        distance.pair(a, b)


def test_one_feature_and_few_structures(distance, embedding):
    generator = np.random.default_rng(1)
    a, b = (embedding([generator.normal(size=(1, 1)) for _ in range(6)], name, blocks=6) for name in "ab")
    assert np.isfinite(distance.pair(a, b).value().value)
    constant = embedding([np.ones((2, 3))] * 20, "c")
    assert distance.pair(constant, constant).value().value == pytest.approx(0, abs=1e-12)
