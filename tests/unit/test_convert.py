import subprocess
import sys
import time

import h5py
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
    convert(conversion(), "own", own_data([water(), water()]), tmp_path)
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
    written = convert(conversion(split=split), "own", raw, tmp_path)
    assert {part: metadata["structures"] for part, metadata in written.items()} == {"train": 5, "val": 3, "test": 2}
    sources = [s.source for part in written for s in StructureLMDB(tmp_path / f"{part}.lmdb")]
    assert len(sources) == len(set(sources)) == 10
    assert not (tmp_path / "parts").exists()


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
        convert(conversion(), "own", own_data([water(), atoms, water()]), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture
def ani1x(tmp_path):
    """A file in ANI-1x's layout: 40 formulae of 5 to 9 atoms, 30 conformers each; one too small to be read."""
    generator = np.random.default_rng(0)
    raw = tmp_path / "raw"
    raw.mkdir()
    with h5py.File(raw / "ani1x-release.h5", "w") as file:
        for number in range(40):
            natoms = 3 if number == 0 else 5 + number % 5
            group = file.create_group(f"M{number:02d}")
            group["atomic_numbers"] = generator.choice([1, 6, 7, 8], natoms).astype("u1")
            group["coordinates"] = generator.normal(size=(30, natoms, 3)).astype("f4")
            group["wb97x_dz.energy"] = -40.0 * natoms + generator.normal(size=30)
            group["wb97x_dz.forces"] = generator.normal(size=(30, natoms, 3)).astype("f4")
    return raw


def by_formula(**changes) -> Conversion:
    split = {"kind": "random", "by": "group", "train": "rest", "val": 100}
    return conversion(reader={"format": "ani1x"}, units={"energy": "hartree"}, split=split, **changes)


def test_worker_processes_write_the_same_bytes(ani1x, tmp_path):
    for threads in (1, 3):
        convert(by_formula(), "ani", ani1x, tmp_path / str(threads), threads=threads)
    for name in ("train.lmdb", "val.lmdb"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()
    train, val = (StructureLMDB(tmp_path / "1" / name) for name in ("train.lmdb", "val.lmdb"))
    assert len(train) + len(val) == 39 * 30
    assert not set(train.metadata["groups"]) & set(val.metadata["groups"])


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3])
def test_kill_9_and_run_again(ani1x, tmp_path, delay):
    """Whenever it is killed, with its workers at work, a second run ends in the bytes of an uninterrupted one."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    convert(by_formula(), "ani", ani1x, whole)
    arguments = ["--name", "ani", "--dataset", by_formula().model_dump_json(), "--raw", ani1x, "--out", out]
    command = [sys.executable, "-m", "atomcsi.cli", "convert", *map(str, arguments), "--threads", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while process.poll() is None and not list(out.rglob("0*.lmdb")):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.wait()
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert delay or "resumes at" in found.stderr
    for name in ("train.lmdb", "val.lmdb"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_parts_of_other_raw_files_are_not_taken(ani1x, tmp_path):
    """What an interrupted run left is used only if the raw files are still the same."""
    convert(by_formula(), "ani", ani1x, tmp_path / "a")
    with h5py.File(ani1x / "ani1x-release.h5", "r+") as file:
        file["M05/wb97x_dz.energy"][:] += 1.0
    changed = convert(by_formula(), "ani", ani1x, tmp_path / "b")["train"]["fingerprint"]
    parts = tmp_path / "a" / "parts" / "0"
    parts.mkdir(parents=True)
    (parts / "0000000.lmdb").touch()
    assert convert(by_formula(), "ani", ani1x, tmp_path / "a")["train"]["fingerprint"] == changed


def test_an_error_in_a_worker_names_the_record(ani1x, tmp_path):
    with h5py.File(ani1x / "ani1x-release.h5", "r+") as file:
        file["M07/coordinates"][3, 2, 1] = np.inf
    with pytest.raises(InputError, match=r"M07/3: has positions that are not finite"):
        convert(by_formula(), "ani", ani1x, tmp_path / "out", threads=2)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_published_linear_reference(ani1x, tmp_path):
    reference = np.full(100, 5e8)
    reference[[1, 6, 7, 8]] = -14.0, -1040.0, -1490.0, -2043.0
    np.savez(ani1x / "reference.npz", coeff=reference)
    dataset = by_formula(linear_reference={"file": "reference.npz", "largest": 1e4})
    train = convert(dataset, "ani", ani1x, tmp_path)["train"]
    assert train["linear_reference"] == {"1": -14.0, "6": -1040.0, "7": -1490.0, "8": -2043.0}
    assert train["provenance"]["linear_reference"] == "reference.npz"
    with pytest.raises(InputError, match=r"reference\.npz: has no credible energy for [CNO], which M\d\d/0 holds"):
        convert(by_formula(linear_reference={"file": "reference.npz"}), "ani", ani1x, tmp_path / "refused")
