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
    assert here == pytest.approx(0, abs=0.01 * far) if distance.title.startswith("KID") else here >= 0
    assert abs(here) <= 0.01 * far
    back = distance.pair(sets["here"], sets["far"]).value().value
    assert back == pytest.approx(far, rel=0.1 if distance.title == "1 − coverage" else 1e-6)


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
    for found in (near, far):
        low, high = found.interval()
        assert found.known and 0 <= low <= max(found.corrected, 0) <= high
        assert [len(found.upstream), len(found.downstream)] == [20, 20]
    assert near.interval()[1] < far.interval()[0]


def test_features_of_different_sizes(distance, embedding):
    a, b = (embedding([np.zeros((2, d))] * 20, f"d{d}") for d in (2, 3))
    with pytest.raises(ValueError, match="dimension 2 and 3 cannot be compared"):
        distance.pair(a, b)


def test_one_feature_and_few_structures(distance, embedding):
    generator = np.random.default_rng(1)
    a, b = (embedding([generator.normal(size=(1, 1)) for _ in range(6)], name, blocks=6) for name in "ab")
    assert np.isfinite(distance.pair(a, b).value().value)
