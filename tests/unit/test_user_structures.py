"""Files that users bring, in every format that open_structures knows: intact, real, damaged and hostile."""

import gzip
import json
import lzma
import pickle
import sqlite3
import zlib

import ase.db
import ase.io
import lmdb
import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io.trajectory import Trajectory

from atomcsi.errors import InputError
from atomcsi.readers.user import UserReader, open_structures

WATER = """3
Properties=species:S:1:pos:R:3:forces:R:3 energy=-14.5 pbc="F F F"
O 0.0 0.0 0.1 0.0 0.0 -0.5
H 0.0 0.8 -0.5 0.0 0.1 0.25
H 0.0 -0.8 -0.5 0.0 -0.1 0.25
"""
SLAB = """2
Lattice="4 0 0 0 5 0 0 0 20" Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 energy=-100.5 pbc="T T F"
Cu 0.0 0.0 5.0 F 0 0.1 0.2 0.3
O 1.0 1.0 7.0 T 2 -0.1 0.0 0.5
"""


def refuses(path, *parts):
    """Checks that opening and reading ends in one InputError whose message holds all ``parts``."""
    with pytest.raises(InputError) as caught:
        list(open_structures(path))
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.mend
    assert "\n" not in str(caught.value)


def labelled(atoms: Atoms, seed: int) -> Atoms:
    """Gives made-up energy and forces to atoms."""
    forces = np.random.default_rng(seed).normal(size=(len(atoms), 3))
    atoms.calc = SinglePointCalculator(atoms, energy=-10.0 - seed, forces=forces)
    return atoms


@pytest.fixture
def images() -> list[Atoms]:
    """A molecule, and a slab with tags and a fixed layer: numbers and periodicity change."""
    slab = fcc111("Cu", (1, 1, 3), vacuum=5.0, periodic=True)
    slab.set_constraint(FixAtoms([0, 1]))
    slab.info.clear()  # extxyz cannot hold what ASE remembers of the surface
    return [labelled(molecule("CH3OH"), 0), labelled(slab, 1)]


def write_aselmdb(path, rows, *, deleted=()):
    """Writes rows in the layout of fairchem's old writer: plain lists."""
    with lmdb.open(str(path), subdir=False, map_size=1 << 24, lock=False) as file, file.begin(write=True) as put:
        for index, row in enumerate(rows, 1):
            if index not in deleted:
                put.put(str(index).encode(), row if isinstance(row, bytes) else zlib.compress(json.dumps(row).encode()))
        put.put(b"nextid", zlib.compress(str(len(rows) + 1).encode()))
        if deleted:
            put.put(b"deleted_ids", zlib.compress(json.dumps(list(deleted)).encode()))
    return path


def old_row(atoms: Atoms) -> dict:
    row = {name: getattr(atoms, name).tolist() for name in ("numbers", "positions", "pbc")}
    row |= {"cell": atoms.cell.tolist(), "energy": atoms.get_potential_energy(), "data": {"sid": "x"}}
    row["forces"] = atoms.get_forces(apply_constraint=False).tolist()
    if atoms.has("tags"):
        row["tags"] = atoms.get_tags().tolist()
    return row | ({"constraints": [c.todict() for c in atoms.constraints]} if atoms.constraints else {})


def write_extxyz(path, images):
    ase.io.write(path, images, format="extxyz")


def write_traj(path, images):
    with Trajectory(str(path), "w") as file:
        for atoms in images:
            file.write(atoms)


def write_db(path, images):
    with ase.db.connect(path) as file:
        for atoms in images:
            file.write(atoms, data={"array": np.ones(3)})


def write_new_aselmdb(path, images):
    backend = pytest.importorskip("ase_db_backends.aselmdb")
    with backend.LMDBDatabase(path) as file:
        for atoms in images:
            file.write(atoms)


def write_old_aselmdb(path, images):
    write_aselmdb(path, [old_row(atoms) for atoms in images])


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.extxyz", write_extxyz),
        ("a.traj", write_traj),
        ("a.db", write_db),
        ("new.aselmdb", write_new_aselmdb),
        ("old.aselmdb", write_old_aselmdb),
    ],
)
def test_what_ase_writes(tmp_path, images, name, write):
    write(tmp_path / name, images)
    reader = open_structures(tmp_path / name)
    for _ in range(2):  # a reader can be iterated again
        structures = list(reader)
    assert [s.source for s in structures] == [f"{name}/0", f"{name}/1"]
    assert [s.label for s in structures] == [s.group for s in structures] == ["CH4O", "Cu3"]
    for structure, atoms in zip(structures, images, strict=True):
        # extxyz has eight decimals.
        np.testing.assert_array_equal(structure.numbers, atoms.numbers)
        np.testing.assert_allclose(structure.positions, atoms.positions, atol=1e-8)
        np.testing.assert_allclose(structure.forces, atoms.calc.results["forces"], atol=1e-8)
        assert structure.energy == pytest.approx(atoms.calc.results["energy"], abs=1e-8)
        assert structure.pbc == tuple(atoms.pbc)
    molecule_, slab = structures
    assert molecule_.cell is molecule_.fixed is molecule_.tags is None
    np.testing.assert_allclose(slab.cell, images[1].cell.array, atol=1e-8)
    np.testing.assert_array_equal(slab.fixed, [True, True, False])
    if slab.tags is not None or not name.endswith("xyz"):
        np.testing.assert_array_equal(slab.tags, images[1].get_tags())


@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".xz", lzma.compress), (".gz", gzip.compress)])
def test_extxyz(tmp_path, suffix, compress):
    name = f"a.extxyz{suffix}"
    (tmp_path / name).write_bytes(compress((WATER + SLAB + "1\n\nHe 0 0 0\n\n").encode()))
    water, slab, helium = open_structures(tmp_path / name)
    assert [s.source for s in (water, slab, helium)] == [f"{name}/0", f"{name}/1", f"{name}/2"]
    assert (water.label, water.energy, water.cell, water.pbc) == ("H2O", -14.5, None, (False,) * 3)
    np.testing.assert_array_equal(water.forces[0], [0, 0, -0.5])
    np.testing.assert_array_equal(slab.cell, np.diag([4.0, 5.0, 20.0]))
    assert slab.pbc == (True, True, False)
    np.testing.assert_array_equal(slab.forces[0], [0.1, 0.2, 0.3])  # of the fixed atom
    np.testing.assert_array_equal(slab.fixed, [True, False])
    assert np.isnan(helium.energy)
    assert helium.forces is helium.fixed is helium.tags is None


def test_parts(tmp_path):
    (tmp_path / "val.extxyz").write_text(WATER)
    (structure,) = UserReader(tmp_path, part="val", file="{part}.extxyz")
    assert structure.source == "val/val.extxyz/0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.extxyz: holds no structures"),
        ("hello\n", "a.extxyz: frame 0: is no complete frame"),
        (WATER + WATER[:-30], "a.extxyz: frame 1: is no complete frame"),
        (WATER.replace("0.25", "abc"), "a.extxyz: frame 0: is no complete frame"),
        (WATER.replace("O 0.0", "Qq 0.0"), "a.extxyz: frame 0: is no complete frame: 'Qq' is no element"),
        (WATER.replace("O 0.0", "X 0.0"), "a.extxyz: structure 0: holds the atomic number 0, which is no element"),
        (WATER.replace("0.25", "nan"), "a.extxyz: structure 0: has forces that are not finite"),
    ],
)
def test_bad_extxyz(tmp_path, text, message):
    (tmp_path / "a.extxyz").write_text(text)
    refuses(tmp_path / "a.extxyz", message)


def test_lmdbs_are_told_apart_by_their_content(tmp_path, toy_lmdb, toy_structures):
    ours = list(open_structures(toy_lmdb(4, "ours").path))
    assert [s.source for s in ours] == [f"ours.lmdb/{i}" for i in range(4)]
    assert [s.energy for s in ours] == [s.energy for s in toy_structures(4)]

    torch = pytest.importorskip("torch")
    data = pytest.importorskip("torch_geometric.data").Data
    positions = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.74]])
    # As few attributes as a writer may have left.
    record = pickle.dumps(data(atomic_numbers=torch.tensor([1.0, 1.0]), pos=positions))
    path = tmp_path / "data.0000.lmdb"
    with lmdb.open(str(path), subdir=False, map_size=1 << 20, lock=False) as file, file.begin(write=True) as put:
        put.put(b"0", record)
        put.put(b"length", pickle.dumps(1))
    (hydrogen,) = open_structures(path)
    assert (hydrogen.source, hydrogen.label, hydrogen.forces) == ("data.0000.lmdb/0", "H2", None)
    assert np.isnan(hydrogen.energy)


def test_folders(tmp_path):
    for i in (10, 2):
        (tmp_path / f"{i}.xyz").write_text(WATER)
    (tmp_path / "README.txt").write_text("notes")
    (tmp_path / "below").mkdir()
    assert [s.source for s in open_structures(tmp_path)] == ["2.xyz/0", "10.xyz/0"]
    (tmp_path / "11.xyz").write_text("1")
    refuses(tmp_path, "11.xyz: frame 0: is no complete frame")
    ase.io.write(tmp_path / "POSCAR", fcc111("Cu", (1, 1, 3), vacuum=5.0, periodic=True), format="vasp")
    refuses(tmp_path, "holds files of several formats: .vasp, .xyz", "name one file")
    refuses(tmp_path / "below", "below: holds no file of a known format", ".aselmdb, .cif")


def test_what_is_not_there(tmp_path):
    refuses(tmp_path / "none.xyz", "none.xyz: is missing")
    (tmp_path / "a.npz").touch()
    refuses(tmp_path / "a.npz", "a.npz: has no ending that tells its format", "known: .aselmdb, .cif, .db")
    for name in ("a.db", "a.aselmdb", "a.lmdb", "a.traj", "a.cif", "a.xyz.xz", "POSCAR"):
        (tmp_path / name).touch()
        refuses(tmp_path / name, name)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "count", "label", "natoms"),
    [
        # Counts and formulae as ASE's own readers and the publishers give them.
        ("qm9/test_qm9.db", 19, "CH4", 5),
        ("qm9/qm9_reduced_100.xyz", 100, "CH4", 5),
        ("oc20/random1000142.traj", 59, "HIr24Si48", 73),
        ("oc20/random1000156.traj", 36, None, None),
        ("qmof/GUTYAW.CONTCAR.vasp", 1, "C4H8O12S4Sr2", 30),
        ("qmof/qmof-81035b4.cif", 1, "C24H16Cd2N18", 60),
    ],
)
def test_real_files(real, name, count, label, natoms):
    structures = list(open_structures(real / name))
    assert len(structures) == count
    if label:
        assert (structures[0].label, len(structures[0])) == (label, natoms)
    images = ase.io.read(real / name, ":")
    for structure, atoms in zip(structures, images, strict=True):
        np.testing.assert_array_equal(structure.numbers, atoms.numbers)
        np.testing.assert_allclose(structure.positions, atoms.positions)
        assert structure.pbc == tuple(atoms.pbc)
        if atoms.calc and "energy" in atoms.calc.results:
            assert structure.energy == atoms.get_potential_energy()
            np.testing.assert_array_equal(structure.forces, atoms.get_forces(apply_constraint=False))


def test_damaged_rows_are_named(tmp_path, images):
    good = old_row(images[0])
    for bad, message in (
        (b"no zlib", "row 2: is no row of ASE's database"),
        (good | {"numbers": [6, 8.5, 1, 1, 1, 1]}, "row 2: is no row of ASE's database: Cannot cast"),
        (good | {"positions": good["positions"][:-1]}, "structure 1: has positions of shape (5, 3) for 6 atoms"),
        ({name: good[name] for name in good if name != "numbers"}, "row 2"),
        (zlib.compress(json.dumps(good).encode())[:-10], "row 2: is no row of ASE's database: its compressed text"),
        (zlib.compress(b"[" * 100_000), "row 2: is no row of ASE's database"),
    ):
        path = tmp_path / "a.aselmdb"
        path.unlink(missing_ok=True)
        refuses(write_aselmdb(path, [good, bad]), "a.aselmdb: ", message)
    path.unlink()
    assert len(list(open_structures(write_aselmdb(path, [good, bad, good], deleted=[2])))) == 2

    write_db(tmp_path / "a.db", images)
    with sqlite3.connect(tmp_path / "a.db") as database:
        database.execute("UPDATE systems SET positions=x'00' WHERE id=2")
    refuses(tmp_path / "a.db", "a.db: row 2: is no row of ASE's database")
    with sqlite3.connect(tmp_path / "a.db") as database:
        database.execute("DROP TABLE systems")
        database.execute("CREATE VIEW systems AS SELECT 1")
    refuses(tmp_path / "a.db", "a.db: has no table 'systems'")


def test_a_row_that_unpacks_to_a_gigabyte_is_refused(tmp_path):
    packer = zlib.compressobj(9)
    bomb = b"".join([packer.compress(bytes(1 << 24)) for _ in range(64)]) + packer.flush()
    refuses(write_aselmdb(tmp_path / "a.aselmdb", [bomb]), "row 1: ", "far too long")
