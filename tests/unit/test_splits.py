"""Splits: disjoint, complete, as published, and the same for ever."""

import hashlib

import numpy as np
import pytest

from atomcsi.catalogue import SPLITS, FoldSplit, RandomSplit
from atomcsi.convert import assign_splits
from atomcsi.errors import ConfigError

#: Structures in the tasks (MatBench's metadata).
MATBENCH = {"phonons": 1265, "jdft2d": 636, "dielectric": 4764, "mp_e_form": 132752}


def fold_split(fold: int, **changes) -> FoldSplit:
    return FoldSplit.model_validate({"kind": "folds", "fold": fold} | changes)


def fingerprint(masks: dict[str, np.ndarray]) -> str:
    """First digits of the SHA-256 of the indices of train, val and test as little-endian int64."""
    digest = hashlib.sha256()
    for part in SPLITS:
        digest.update(np.flatnonzero(masks[part]).astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def test_sizes_of_the_first_fold_of_the_phonons():
    """JMP: 910 train, 102 val, 253 test."""
    masks = assign_splits(fold_split(0), [""] * 1265)
    assert [int(masks[part].sum()) for part in SPLITS] == [910, 102, 253]


@pytest.mark.parametrize("count", MATBENCH.values(), ids=MATBENCH)
def test_matbench_s_folds(count):
    """MatBench: shuffled by numpy's RandomState(18012019), cut into five runs of which the first are longer by one."""
    order = np.arange(count)
    np.random.RandomState(18012019).shuffle(order)
    expected = np.array_split(order, 5)
    tests = []
    for fold in range(5):
        masks = assign_splits(fold_split(fold), [""] * count)
        assert np.sum(list(masks.values()), axis=0).tolist() == [1] * count
        np.testing.assert_array_equal(np.flatnonzero(masks["test"]), np.sort(expected[fold]))
        tests.append(masks["test"])
    assert np.sum(tests, axis=0).tolist() == [1] * count


def test_classes_keep_their_shares():
    metals = np.random.default_rng(0).random(10_000) < 0.4349  # as in mp_is_metal
    groups = [str(metal) for metal in metals]
    tests = []
    for fold in range(5):
        masks = assign_splits(fold_split(fold, stratified=True), groups)
        assert np.sum(list(masks.values()), axis=0).tolist() == [1] * 10_000
        assert abs(int(metals[masks["test"]].sum()) - metals.sum() / 5) <= 1
        tests.append(masks["test"])
    assert np.sum(tests, axis=0).tolist() == [1] * 10_000


@pytest.mark.parametrize(
    ("split", "groups", "expected"),
    [
        pytest.param(
            RandomSplit(kind="random", train=950, val=50, test="rest"), [""] * 100_000, "8097a066a3c07b7e", id="rmd17"
        ),
        pytest.param(
            RandomSplit(kind="random", train=5700, val=300, test="rest"), [""] * 85_109, "058a93de35507d98", id="md22"
        ),
        pytest.param(
            RandomSplit(kind="random", train=0.8, val="rest", test=0.1), [""] * 1300, "b56432a16d6f2612", id="spice"
        ),
        pytest.param(RandomSplit(kind="random", val=10_000, test=10_000), [""] * 130_831, "42ce6f03433c8143", id="qm9"),
        pytest.param(
            RandomSplit(kind="random", train=0.8, val="rest", test=0.1), [""] * 20_375, "90bfcd43f76a2b8a", id="qmof"
        ),
        pytest.param(
            RandomSplit(kind="random", by="group", val=400, test=400),
            [f"C{i % 97}H4" for i in range(5000)],
            "dfe8a2ca8ab4c958",
            id="ani1x",
        ),
        pytest.param(fold_split(0), [""] * 1265, "4779659e6aa20ccf", id="phonons"),
        pytest.param(
            fold_split(4, stratified=True), [str(i % 7 < 3) for i in range(5000)], "8eda24f01d6e23af", id="metals"
        ),
    ],
)
def test_splits_never_change(split, groups, expected):
    """Whoever changes these breaks every comparison with earlier results; they hold on every machine."""
    masks = assign_splits(split, groups)
    assert np.sum(list(masks.values()), axis=0).tolist() == [1] * len(groups)
    assert fingerprint(masks) == expected


def test_too_few():
    with pytest.raises(ConfigError, match=r"split: .*n_splits=5"):
        assign_splits(fold_split(0), ["", ""])
