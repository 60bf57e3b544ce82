import numpy as np
import pytest

from atomcsi.sampling import draw

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


@pytest.mark.parametrize("method", ["balanced", "random"])
def test_the_seed_decides(method):
    classes = np.arange(100) % 7
    first, again, other = (draw(method, classes, 30, seed) for seed in (1, 1, 2))
    assert first.indices.tolist() == again.indices.tolist()
    assert first.indices.tolist() != other.indices.tolist()
