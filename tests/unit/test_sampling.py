import itertools

import numpy as np
import pytest

from atomcsi.sampling import Sample, apportion, draw, into_blocks

# Three classes with 6, 3 and 1 members.
CLASSES = np.array([0, 0, 0, 1, 1, 0, 2, 1, 0, 0])


def drawn_per_class(sample, classes=CLASSES):
    return np.bincount(np.repeat(classes[sample.indices], sample.multiplicity), minlength=classes.max() + 1)


def test_balanced_repeats_small_classes():
    sample = draw("balanced", CLASSES, 9, seed=0)
    assert len(sample) == 9
    assert drawn_per_class(sample).tolist() == [3, 3, 3]
    assert sample.multiplicity[sample.indices == 6].tolist() == [3]


def test_balanced_reaches_n_with_at_most_one_more_per_class():
    counts = drawn_per_class(draw("balanced", CLASSES, 11, seed=0))
    assert sorted(counts.tolist()) == [3, 4, 4]


def test_balanced_with_more_classes_than_structures():
    classes = np.arange(50).repeat(2)
    sample = draw("balanced", classes, 20, seed=0)
    assert len(sample) == len(sample.indices) == 20
    assert drawn_per_class(sample, classes).max() == 1


def test_repetitions_are_even():
    sample = draw("balanced", np.zeros(4, int), 10, seed=0)
    assert sorted(sample.multiplicity.tolist()) == [2, 2, 3, 3]


def test_random_has_no_repetition_and_stops_at_the_population():
    sample = draw("random", CLASSES, 4, seed=0)
    assert len(sample) == len(sample.indices) == 4
    assert draw("random", CLASSES, 100, seed=0).indices.tolist() == list(range(10))


@pytest.mark.parametrize("method", ["balanced", "random", "stratified"])
def test_the_seed_decides(method):
    classes = np.arange(100) % 7
    first, again, other = (draw(method, classes, 30, seed) for seed in (1, 1, 2))
    assert first.indices.tolist() == again.indices.tolist()
    assert first.indices.tolist() != other.indices.tolist()


def test_stratified_keeps_the_shares_of_the_classes():
    sample = draw("stratified", CLASSES, 5, seed=0)
    assert drawn_per_class(sample).tolist() == [3, 2, 0]  # of 3, 1.5 and 0.5, the first largest remainder
    assert len(draw("stratified", CLASSES, 100, seed=0)) == 10


@pytest.mark.parametrize(
    ("shares", "total", "expected"),
    # The second is the textbook example of Hamilton's method with a rounding trap: 0.1 * 30 is above 3.
    [([0.5, 0.3, 0.2], 7, [4, 2, 1]), ([0.1, 0.9], 30, [3, 27]), ([1, 1, 1], 2, [1, 1, 0]), ([0, 5], 3, [0, 3])],
)
def test_apportion(shares, total, expected):
    assert apportion(shares, total).tolist() == expected


def test_blocks_of_structures():
    sample = draw("random", np.zeros(103, int), 103, seed=0)
    order, ptr = into_blocks(sample, np.zeros(103, int), 20, "structures", "random", seed=0)
    assert sorted(order.tolist()) == list(range(103))
    assert set(np.diff(ptr).tolist()) == {5, 6} and ptr[-1] == 103
    again, other = (into_blocks(sample, np.zeros(103, int), 20, "structures", "random", seed)[0] for seed in (0, 1))
    assert order.tolist() == again.tolist() != other.tolist()


def test_blocks_of_classes_keep_classes_together():
    classes = np.repeat(np.arange(40), np.arange(40) % 5 + 1)
    sample = draw("random", classes, len(classes), seed=0)
    order, ptr = into_blocks(sample, classes, 10, "classes", "random", seed=0)
    owners = [set(classes[sample.indices[order[start:stop]]]) for start, stop in itertools.pairwise(ptr)]
    assert sum(map(len, owners)) == 40
    assert np.diff(ptr).max() - np.diff(ptr).min() <= 2


@pytest.mark.parametrize(("units", "blocks"), [(1, 1), (7, 6), (19, 18)])
def test_few_units_make_few_blocks(units, blocks):
    """An even number, so that halves are halves."""
    sample = Sample(np.arange(units), np.ones(units, int))
    ptr = into_blocks(sample, np.arange(units), 20, "structures", "random", seed=0)[1]
    assert len(ptr) == blocks + 1


def test_a_heavy_unit_makes_few_blocks():
    """One class of 30 of 100 structures: three blocks would weigh as much, so there are two; also with one of half."""
    classes = np.array([0] * 30 + list(range(1, 71)))
    sample = draw("random", classes, 100, seed=0)
    assert len(into_blocks(sample, classes, 20, "classes", "random", seed=0)[1]) == 2 + 1
    repeated = Sample(np.arange(51), np.array([1] * 50 + [50]))
    assert len(into_blocks(repeated, np.zeros(51, int), 20, "structures", "balanced", seed=0)[1]) == 2 + 1


def test_blocks_weigh_the_same():
    multiplicity = np.array([1] * 60 + [5] * 8)
    order, ptr = into_blocks(Sample(np.arange(68), multiplicity), np.zeros(68, int), 10, "structures", "balanced", 0)
    weights = np.add.reduceat(multiplicity[order], ptr[:-1])
    assert weights.tolist() == [10] * 10


def test_blocks_of_a_sample_by_class_hold_every_class():
    classes = np.repeat([0, 1], [100, 20])
    order, ptr = into_blocks(draw("stratified", classes, 120, 0), classes, 20, "structures", "stratified", seed=0)
    assert [classes[order[start:stop]].sum() for start, stop in itertools.pairwise(ptr)] == [1] * 20
