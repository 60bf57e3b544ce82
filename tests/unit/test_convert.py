import numpy as np
import pytest
from ase import Atoms, units
from ase.io import write

from atomcsi.catalogue import Conversion, RandomSplit
from atomcsi.convert import assign_splits, convert
from atomcsi.errors import ConfigError, InputError
from atomcsi.structure_lmdb import StructureLMDB


def random_split(**sizes) -> RandomSplit:
    return RandomSplit(kind="random", **sizes)


def test_the_published_rmd17_split():
    """JMP and the paper: RandomState(42).shuffle of 0 ... N-1, then 950 / 50 / rest."""
    masks = assign_splits(random_split(train=950, val=50, test="rest"), [""] * 2000)
    order = np.arange(2000)
    np.random.RandomState(42).shuffle(order)
    assert set(np.flatnonzero(masks["train"])) == set(order[:950])
    assert set(np.flatnonzero(masks["val"])) == set(order[950:1000])
    assert set(np.flatnonzero(masks["test"])) == set(order[1000:])


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"train": "rest", "val": 10, "test": 20}, (70, 10, 20)),
        ({"train": 0.8, "val": "rest", "test": 0.1}, (80, 10, 10)),
        ({"train": "rest", "val": 10, "test": 0}, (90, 10, 0)),
    ],
)
def test_splits_are_disjoint_and_complete(sizes, expected):
    masks = assign_splits(random_split(**sizes), [""] * 100)
    assert tuple(masks[part].sum() for part in ("train", "val", "test")) == expected
    assert np.sum(list(masks.values()), axis=0).tolist() == [1] * 100


def test_groups_stay_together():
    groups = [f"group{i % 13}" for i in range(200)]
    masks = assign_splits(random_split(by="group", val=20, test=30), groups)
    members = {part: {groups[i] for i in np.flatnonzero(mask)} for part, mask in masks.items()}
    assert not members["train"] & members["val"] and not members["val"] & members["test"]
    # Whole groups of 15 or 16 until the number is reached.
    assert 20 <= masks["val"].sum() <= 32 and 30 <= masks["test"].sum() <= 32


def test_too_few_structures():
    with pytest.raises(ConfigError, match="leaves nothing of 10 structures"):
        assign_splits(random_split(train="rest", val=5, test=5), [""] * 10)
    with pytest.raises(ConfigError, match="by group leaves nothing for train"):
        assign_splits(random_split(by="group", val=1, test=1), ["a", "b"] * 5)


def conversion(**changes) -> Conversion:
    values = {
        "licence": "CC0-1.0",
        "source": "a test",
        "reader": {"format": "user", "file": "own.xyz"},
        "units": {"energy": "kcal/mol", "length": "bohr"},
        "split": {"kind": "random", "train": "rest", "val": 1},
    }
    return Conversion.model_validate(values | changes)


@pytest.fixture
def own_data(tmp_path):
    def make(atoms: list[Atoms]):
        write(tmp_path / "own.xyz", atoms, format="extxyz")
        return tmp_path

    return make


def water(**arrays) -> Atoms:
    atoms = Atoms("OH2", positions=[[0, 0, 0], [0, 0, 1.8], [1.7, 0, -0.5]])
    atoms.info["energy"] = -100.0
    atoms.arrays["forces"] = np.full((3, 3), 2.0)
    for name, value in arrays.items():
        atoms.arrays[name] = value
    return atoms


def test_units_become_ev_and_angstrom(own_data, tmp_path):
    convert(conversion(), "own", "train", own_data([water(), water()]), tmp_path / "train.lmdb")
    structure = StructureLMDB(tmp_path / "train.lmdb")[0]
    kcal = 4184 / 96485.33212  # J per kcal over C per mol: eV, CODATA 2018
    bohr = 0.529177210903
    assert structure.energy == pytest.approx(-100 * kcal, rel=1e-8)
    np.testing.assert_allclose(structure.positions[1], [0, 0, 1.8 * bohr], rtol=1e-6)
    np.testing.assert_allclose(structure.forces, 2 * kcal / bohr, rtol=1e-6)
    assert units.Bohr == pytest.approx(bohr, rel=1e-8)


def test_splits_share_nothing(own_data, tmp_path):
    raw = own_data([water() for _ in range(10)])
    split = {"kind": "random", "train": "rest", "val": 3, "test": 2}
    sources = []
    for part in ("train", "val", "test"):
        convert(conversion(split=split), "own", part, raw, tmp_path / f"{part}.lmdb")
        sources += [structure.source for structure in StructureLMDB(tmp_path / f"{part}.lmdb")]
    assert len(sources) == len(set(sources)) == 10


@pytest.mark.parametrize(
    ("atoms", "problem"),
    [
        (water(forces=np.full((3, 3), np.nan)), "forces that are not finite"),
        (water(positions=np.full((3, 3), np.inf)), "positions that are not finite"),
        (Atoms("X", positions=[[0, 0, 0]]), "atomic number 0, which is no element|unknown element"),
    ],
)
def test_bad_structures_are_named(own_data, tmp_path, atoms, problem):
    with pytest.raises(InputError, match=problem):
        convert(conversion(), "own", "train", own_data([water(), atoms, water()]), tmp_path / "train.lmdb")
    assert not (tmp_path / "train.lmdb").exists()
