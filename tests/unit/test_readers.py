"""Readers on the real samples, on small files in the official layouts, and on damaged ones."""

import bz2
import io
import lzma
import pickle
import tarfile
from itertools import pairwise

import h5py
import lmdb
import numpy as np
import pytest
from ase import units

from atomcsi.errors import ConfigError, InputError
from atomcsi.readers.ani1x import Ani1xReader
from atomcsi.readers.md22 import Md22Reader
from atomcsi.readers.oc20 import Oc20Reader
from atomcsi.readers.oc22 import Oc22Reader
from atomcsi.readers.qm9 import Qm9Reader
from atomcsi.readers.rmd17 import Rmd17Reader
from atomcsi.readers.spice import SpiceReader
from atomcsi.readers.transition1x import Transition1xReader
from atomcsi.readers.user import UserReader, open_structures

KCAL = units.kcal / units.mol
CH4 = np.array([6, 1, 1, 1, 1], dtype=np.uint8)


def refuses(reader, *parts):
    """Checks that reading ends in one InputError whose message holds all ``parts``."""
    with pytest.raises(InputError) as caught:
        list(reader)
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.mend


def random_frames(nframes=3, numbers=CH4, seed=0):
    """Numbers, positions, energies and forces of ``nframes`` frames."""
    generator = np.random.default_rng(seed)
    shape = (nframes, len(numbers), 3)
    return numbers, generator.normal(size=shape), generator.normal(size=nframes), generator.normal(size=shape)


def cut(path, keep=0.6):
    """Cuts the end off a file, as a broken download does."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


# --- HDF5: ANI-1x, Transition-1x, SPICE ---------------------------------------------------------------------

ANI1X = ("atomic_numbers", "coordinates", "wb97x_dz.energy", "wb97x_dz.forces")
TRANSITION1X = ("atomic_numbers", "positions", "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces")
SPICE = ("atomic_numbers", "conformations", "dft_total_energy", "dft_total_gradient")


def write_hdf5(path, groups, names):
    """Writes ``{group: (numbers, positions, energies, forces)}`` under the given names of the arrays."""
    with h5py.File(path, "w") as file:
        for group, arrays in groups.items():
            for name, array in zip(names, arrays, strict=True):
                file[f"{group}/{name}"] = array
    return path


@pytest.fixture
def ani1x(tmp_path):
    """CH4 with three conformers, of which one has no energy and one no forces, and water, which is too small."""
    numbers, positions, energies, forces = random_frames()
    energies[0] = forces[2, 1, 0] = np.nan
    water = random_frames(2, np.array([8, 1, 1]))
    groups = {"C1H4": (numbers, positions, energies, forces), "H2O1": water}
    write_hdf5(tmp_path / "ani.h5", groups, ANI1X)
    return tmp_path


def test_ani1x_leaves_out_missing_values_and_small_molecules(ani1x):
    reader = Ani1xReader(ani1x, file="ani.h5")
    (structure,) = reader
    _, positions, energies, forces = random_frames()
    assert (structure.source, structure.label, structure.group) == ("C1H4/1", "CH4", "C1H4")
    assert structure.energy == energies[1]
    np.testing.assert_array_equal(structure.positions, positions[1])
    np.testing.assert_array_equal(structure.forces, forces[1])
    assert {s.group for s in reader} == {"C1H4"}
    assert [s.source for s in Ani1xReader(ani1x, file="ani.h5", min_atoms=1)] == ["C1H4/1", "H2O1/0", "H2O1/1"]


@pytest.mark.real
def test_ani1x_real_excerpt(real):
    reader = Ani1xReader(real / "ani1x", file="ani1_n5.hdf5")
    structures = list(reader)
    assert [s.label for s in structures] == 2 * ["CH4N4O4"] + ["CH5N3O5"] + 3 * ["CH6N2O5"] + [
        "C2H10N4O3",
        "C2H10N6O",
    ]
    with h5py.File(real / "ani1x" / "ani1_n5.hdf5") as file:
        for structure in structures:
            group, row = structure.source.split("/")
            assert structure.energy == file[group]["wb97x_dz.energy"][int(row)]
            np.testing.assert_array_equal(structure.forces, file[group]["wb97x_dz.forces"][int(row)])
    # The triple-zeta energies lie below the double-zeta ones.
    tz = list(Ani1xReader(real / "ani1x", file="ani1_n5.hdf5", level="wb97x_tz"))
    assert all(b.energy < a.energy for a, b in zip(structures, tz, strict=True))


def test_transition1x_reads_the_frames_of_a_part(tmp_path):
    frames = random_frames()
    groups = {f"{part}/CH4/rxn000{i}": frames for part, i in [("data", 1), ("data", 2), ("train", 1), ("val", 2)]}
    groups["train/CH4/rxn0001/reactant"] = random_frames(1)
    write_hdf5(tmp_path / "t1x.h5", groups, TRANSITION1X)
    train = list(Transition1xReader(tmp_path, part="train", file="t1x.h5"))
    assert [s.source for s in train] == ["CH4/rxn0001/0", "CH4/rxn0001/1", "CH4/rxn0001/2"]
    assert {s.label for s in train} == {"CH4"}
    np.testing.assert_array_equal([s.energy for s in train], frames[2])
    assert len(list(Transition1xReader(tmp_path, file="t1x.h5"))) == 6
    refuses(Transition1xReader(tmp_path, part="dev", file="t1x.h5"), "no part 'dev'", "data, train, val")


def test_spice_negates_the_gradient_and_selects_subsets(tmp_path):
    frames = random_frames()
    # SMILES with a slash: HDF5 nests groups.
    path = write_hdf5(tmp_path / "spice.h5", {"C/C=C/C": frames, "ala": random_frames(seed=1)}, SPICE)
    with h5py.File(path, "a") as file:
        file["C/C=C/C/subset"] = ["SPICE Dipeptides Single Points Dataset v1.2"]
        file["ala/subset"] = ["SPICE Solvated Amino Acids Single Points Dataset v1.1"]
    assert len(list(SpiceReader(tmp_path, file="spice.h5"))) == 6
    structures = list(SpiceReader(tmp_path, file="spice.h5", subset="dipeptides"))
    assert [s.source for s in structures] == ["C/C=C/C/0", "C/C=C/C/1", "C/C=C/C/2"]
    np.testing.assert_array_equal([s.forces for s in structures], -frames[3])
    refuses(SpiceReader(tmp_path, file="spice.h5", subset="water"), "no subset 'water'", "Solvated Amino")


@pytest.mark.real
def test_spice_forces_are_minus_the_slope_of_the_energy(real):
    structures = list(SpiceReader(real / "spice", file="SPICE-1.1.4_n2.hdf5"))
    assert len(structures) == 55
    ion_pair = [s for s in structures if s.source.startswith("C#C.[Na+]/")]
    # The ion moves in steps of 0.1 Angstrom, so that the trapezoidal rule holds to some 1e-4 Hartree.
    for a, b in pairwise(ion_pair):
        step = (b.positions - a.positions).astype(float)
        assert np.linalg.norm(step) == pytest.approx(0.1 / units.Bohr, rel=1e-3)
        work = np.sum((a.forces + b.forces) / 2 * step)
        assert work == pytest.approx(a.energy - b.energy, abs=1e-4)
        assert abs(work) > 2e-4


READERS_OF_HDF5 = [
    pytest.param(Ani1xReader, ANI1X, "C1H4", id="ani1x"),
    pytest.param(Transition1xReader, TRANSITION1X, "data/C1H4", id="transition1x"),
    pytest.param(SpiceReader, SPICE, "C1H4", id="spice"),
]


@pytest.mark.parametrize(("reader", "names", "group"), READERS_OF_HDF5)
def test_damaged_hdf5(tmp_path, reader, names, group):
    refuses(reader(tmp_path, file="a.h5"), "a.h5: is missing", "download")

    path = write_hdf5(tmp_path / "a.h5", {group: random_frames(100)}, names)
    cut(path)
    refuses(reader(tmp_path, file="a.h5"), "a.h5: is damaged or cut short", "fetch the file again")

    intact = write_hdf5(path, {group: random_frames()}, names).read_bytes()
    path.write_bytes(intact[:100] + bytes(len(intact) - 100))
    refuses(reader(tmp_path, file="a.h5"), "a.h5: is damaged or cut short")

    for name in names:
        with h5py.File(write_hdf5(path, {group: random_frames()}, names), "a") as file:
            del file[group][name]
        refuses(reader(tmp_path, file="a.h5"), f"a.h5: C1H4: has no array '{name}'")

    numbers, positions, energies, forces = random_frames()
    write_hdf5(path, {group: (numbers, positions, energies, forces[:2])}, names)
    refuses(reader(tmp_path, file="a.h5"), "a.h5: C1H4: has arrays whose shapes disagree", f"{names[3]} (2, 5, 3)")

    write_hdf5(path, {group: (numbers + 118, positions, energies, forces)}, names)
    refuses(reader(tmp_path, file="a.h5"), "a.h5: C1H4: holds the atomic number 124, which is no element")


def test_a_shape_beyond_all_memory(tmp_path):
    shapes = [(5,), (1 << 40, 5, 3), (1 << 40,), (1 << 40, 5, 3)]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, shape in zip(ANI1X, shapes, strict=True):
            file.create_dataset(f"C1H4/{name}", shape, "f8", chunks=True)
    refuses(Ani1xReader(tmp_path, file="a.h5"), "a.h5: is damaged or cut short: Unable to allocate")


@pytest.mark.parametrize(("reader", "names", "group"), READERS_OF_HDF5[1:])
def test_nan_in_hdf5(tmp_path, reader, names, group):
    numbers, positions, energies, forces = random_frames()
    forces[0, 2, 1] = energies[1] = np.nan
    write_hdf5(tmp_path / "a.h5", {group: (numbers, positions, energies, forces)}, names)
    structures = iter(reader(tmp_path, file="a.h5"))
    assert next(structures).problem() == "has forces that are not finite (NaN or infinite)"
    refuses(structures, "a.h5: C1H4/1: has an energy that is not finite")


# --- npz: rMD17, MD22 ---------------------------------------------------------------------------------------

READERS_OF_NPZ = [pytest.param(Rmd17Reader, id="rmd17"), pytest.param(Md22Reader, id="md22")]


@pytest.mark.real
def test_rmd17_real_aspirin(real):
    structures = list(Rmd17Reader(real / "rmd17", file="rmd17_aspirin_train_01.npz"))
    assert len(structures) == 1000
    assert {len(s) for s in structures} == {21}
    assert structures[-1].source == "rmd17_aspirin_train_01/999"
    assert structures[-1].label == "C9H8O4"
    # JMP's statistics of its 950 training frames: mean -17617.379 eV (at 23.061 kcal/mol an eV), rms force 1.273.
    assert np.mean([s.energy for s in structures]) / 23.061 == pytest.approx(-17617.379, abs=0.03)
    forces = np.array([s.forces for s in structures]) * KCAL
    assert np.sqrt(np.mean(forces**2)) == pytest.approx(1.273, rel=0.02)


def test_md22_energies_have_two_axes(tmp_path):
    numbers, positions, energies, forces = random_frames()
    np.savez(tmp_path / "md22_x.npz", z=numbers, R=positions, E=energies[:, None], F=forces, name="x")
    structures = list(Md22Reader(tmp_path, file="md22_x.npz"))
    assert [s.source for s in structures] == ["md22_x/0", "md22_x/1", "md22_x/2"]
    np.testing.assert_array_equal([s.energy for s in structures], energies)
    np.testing.assert_array_equal([s.forces for s in structures], forces)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read_block_by_block(tmp_path, monkeypatch, save):
    monkeypatch.setattr("atomcsi.readers.rmd17._BLOCK", 4)
    numbers, positions, energies, forces = random_frames(10)
    arrays = (numbers, np.asfortranarray(positions), energies.astype(">f8"), forces.astype("f4"))
    save(tmp_path / "a.npz", **dict(zip(Rmd17Reader.NAMES, arrays, strict=True)))
    structures = list(Rmd17Reader(tmp_path, file="a.npz"))
    assert [s.source for s in structures] == [f"a/{i}" for i in range(10)]
    np.testing.assert_array_equal([s.positions for s in structures], positions)
    np.testing.assert_array_equal([s.energy for s in structures], energies)
    np.testing.assert_array_equal([s.forces for s in structures], forces.astype("f4"))


@pytest.mark.parametrize("reader", READERS_OF_NPZ)
def test_damaged_npz(tmp_path, reader):
    def write(*arrays):
        np.savez(tmp_path / "a.npz", **dict(zip(reader.NAMES, arrays, strict=False)))
        return reader(tmp_path, file="a.npz")

    refuses(reader(tmp_path, file="a.npz"), "a.npz: is missing")
    numbers, positions, energies, forces = random_frames()
    refuses(write(numbers, positions, energies), f"a.npz: has no array '{reader.NAMES[3]}'")
    refuses(write(numbers, positions, energies[:2], forces), "shapes disagree", f"{reader.NAMES[2]} (2,)")
    refuses(write(numbers, positions, energies, forces.astype(object)), "a.npz: is damaged", "no plain numbers")
    energies[2] = np.nan
    refuses(write(numbers, positions, energies, forces), "a.npz: a/2: has an energy that is not finite")
    cut(tmp_path / "a.npz")
    refuses(reader(tmp_path, file="a.npz"), "a.npz: is damaged or cut short")


# --- extended XYZ: OC20 -------------------------------------------------------------------------------------

SLAB = """2
Lattice="4 0 0 0 5 0 0 0 20" Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 energy=-100.5 pbc="T T F"
Cu 0.0 0.0 5.0 F 0 0.1 0.2 0.3
O 1.0 1.0 7.0 T 2 -0.1 0.0 0.5
"""


@pytest.fixture
def oc20(tmp_path):
    """Eleven files of one frame each, and the mapping of their systems."""
    folder = tmp_path / "s2ef_train_2M" / "s2ef_train_2M"
    folder.mkdir(parents=True)
    for i in range(11):
        (folder / f"{i}.extxyz.xz").write_bytes(lzma.compress(SLAB.encode()))
        (folder / f"{i}.txt.xz").write_bytes(lzma.compress(f"random{i},frame{i + 5},-98.25\n".encode()))
    mapping = {f"random{i}": {"bulk_id": i, "bulk_symbols": "Cu4", "class": 0} for i in range(11)}
    (tmp_path / "oc20_data_mapping.pkl").write_bytes(pickle.dumps(mapping))
    return Oc20Reader(tmp_path, part="s2ef_train_2M/s2ef_train_2M")


def test_oc20(oc20):
    structures = list(oc20)
    assert [s.source for s in structures] == [f"random{i}/frame{i + 5}" for i in range(11)]
    first = structures[0]
    assert first.energy == -100.5 + 98.25
    assert (first.label, first.pbc) == ("Cu4", (True, True, True))
    np.testing.assert_array_equal(first.forces, [[0.1, 0.2, 0.3], [-0.1, 0.0, 0.5]])
    np.testing.assert_array_equal(first.tags, [0, 2])
    np.testing.assert_array_equal(first.fixed, [True, False])
    total = next(iter(Oc20Reader(oc20.root, part=oc20.part, total_energy=True)))
    assert total.energy == -100.5


@pytest.mark.parametrize(
    ("frames", "listing", "message"),
    [
        (SLAB + SLAB, "random0,frame5,-98.25\n", "0.extxyz.xz: holds more frames than 0.txt.xz has lines"),
        (SLAB, 2 * "random0,frame5,-98.25\n", "0.extxyz.xz: holds fewer frames than 0.txt.xz has lines"),
        (SLAB, "random0,frame5\n", "0.txt.xz: line 1: reads 'random0,frame5' instead of"),
        (SLAB, "random0,frame5,x\n", "0.txt.xz: line 1: reads 'random0,frame5,x' instead of"),
        (SLAB, "random99,frame5,-98.25\n", "oc20_data_mapping.pkl: random99: has no entry"),
        (SLAB.replace("-100.5", "nan"), "random0,frame5,1\n", "0.extxyz.xz: random0/frame5: has an energy that is"),
        (SLAB.replace("tags", "tugs"), "random0,frame5,1\n", "0.extxyz.xz: random0/frame5: has no column 'tags'"),
        (SLAB.replace("forces", "f"), "random0,frame5,1\n", "0.extxyz.xz: random0/frame5: has no column 'forces'"),
    ],
)
def test_bad_oc20(oc20, frames, listing, message):
    folder = oc20.root / oc20.part
    (folder / "0.extxyz.xz").write_bytes(lzma.compress(frames.encode()))
    (folder / "0.txt.xz").write_bytes(lzma.compress(listing.encode()))
    refuses(oc20, message)


def test_oc20_without_a_mapping_is_labelled_by_formula(oc20):
    structures = list(Oc20Reader(oc20.root, part=oc20.part, mapping=None))
    assert {structure.label for structure in structures} == {"CuO"}


def test_oc20_with_files_missing_or_cut(oc20):
    refuses(Oc20Reader(oc20.root, part="s2ef_val_id/s2ef_val_id"), "s2ef_val_id: holds no *.extxyz.xz file")
    folder = oc20.root / oc20.part
    cut(folder / "0.extxyz.xz")
    refuses(oc20, "0.extxyz.xz: is damaged or cut short")
    (folder / "0.txt.xz").unlink()
    refuses(oc20, "0.txt.xz: is missing")
    oc20.mapping.write_bytes(pickle.dumps({"random0": {"bulk_id": 0}}))
    refuses(
        Oc20Reader(oc20.root, part=oc20.part), "oc20_data_mapping.pkl: does not map ids to entries with 'bulk_symbols'"
    )
    oc20.mapping.unlink()
    refuses(Oc20Reader(oc20.root, part=oc20.part), "oc20_data_mapping.pkl: is missing")


# --- LMDB: OC22 ---------------------------------------------------------------------------------------------


def write_lmdb(path, records, length=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), subdir=False, map_size=1 << 24, lock=False) as file, file.begin(write=True) as put:
        for index, record in enumerate(records):
            put.put(str(index).encode(), record)
        put.put(b"length", pickle.dumps(len(records) if length is None else length))


@pytest.fixture(scope="module")
def slab_data():
    """A Data object as OC22's, and how to change it."""
    torch = pytest.importorskip("torch")
    data = pytest.importorskip("torch_geometric.data")

    def make(**changes):
        attributes = {
            "y": -20.5,
            "pos": torch.tensor([[0.0, 0, 5], [1, 1, 7]]),
            "cell": torch.diag(torch.tensor([4.0, 5, 20]))[None],
            "atomic_numbers": torch.tensor([29.0, 8]),
            "natoms": 2,
            "force": torch.tensor([[0.5, 0, 0], [0, 0.25, 0]]),
            "fixed": torch.tensor([1.0, 0]),
            "tags": torch.tensor([0, 2]),
            "sid": 17,
            "fid": 3,
        } | changes
        return pickle.dumps(data.Data(**{k: v for k, v in attributes.items() if v is not None}), protocol=-1)

    return make


@pytest.fixture
def oc22(tmp_path):
    (tmp_path / "oc22_metadata.pkl").write_bytes(pickle.dumps({17: {"bulk_id": "mp-1", "bulk_symbols": "Cu2O2"}}))
    return Oc22Reader(tmp_path, part="train")


def test_oc22(oc22, slab_data):
    newer = slab_data(y=None, energy=-1.0, fid=4)
    for name, records in (("data.0010", [newer]), ("data.0002", [slab_data(fid=1), slab_data()])):
        write_lmdb(oc22.folder / f"{name}.lmdb", records)
    structures = list(oc22)
    assert [s.source for s in structures] == ["17/1", "17/3", "17/4"]
    assert [s.energy for s in structures] == [-20.5, -20.5, -1.0]
    first = structures[0]
    assert (first.label, first.pbc, first.problem()) == ("Cu2O2", (True, True, True), "")
    np.testing.assert_array_equal(first.numbers, [29, 8])
    np.testing.assert_array_equal(first.cell, np.diag([4.0, 5.0, 20.0]))
    np.testing.assert_array_equal(first.forces, [[0.5, 0, 0], [0, 0.25, 0]])
    np.testing.assert_array_equal(first.fixed, [True, False])
    np.testing.assert_array_equal(first.tags, [0, 2])


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "label", "source", "pbc"),
    [
        ("oc22/oc22_pickle16_train.pkl", None, "17914/24", True),
        ("ani1x/ani1x_pickle16_train.pkl", None, "0/17156", False),
        ("transition1x/trans1x_pickle16_train.pkl", None, "1670/419", False),
    ],
)
def test_oc22_reads_the_real_samples_of_its_layout(tmp_path, real, name, label, source, pbc):
    pytest.importorskip("torch_geometric")
    with (real / name).open("rb") as file:
        entries = pickle.load(file)  # the project's own reference data
    write_lmdb(tmp_path / "data.0000.lmdb", [pickle.dumps(entry, protocol=-1) for entry in entries])
    structures = list(Oc22Reader(tmp_path, folder="", metadata=None))
    assert len(structures) == 16
    assert structures[0].source == source
    for structure, entry in zip(structures, entries, strict=True):
        assert not structure.problem()
        assert structure.energy == entry.y
        assert structure.pbc == (pbc, pbc, pbc)
        np.testing.assert_array_equal(structure.forces, entry.force.numpy())
        np.testing.assert_array_equal(structure.numbers, entry.atomic_numbers.numpy())
    # A user's folder of the same kind.
    users = list(open_structures(tmp_path))
    assert [s.source for s in users] == [f"data.0000.lmdb/{i}" for i in range(16)]
    assert [s.energy for s in users] == [s.energy for s in structures]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sid": 18}, "oc22_metadata.pkl: 18: has no entry"),
        ({"y": float("nan")}, "data.0000.lmdb: 0: has an energy that is not finite"),
        ({"y": "high"}, "data.0000.lmdb: 0: has an attribute of the wrong kind"),
        ({"force": None}, "data.0000.lmdb: 0: has no attribute 'force'"),
        ({"sid": io.BytesIO()}, "data.0000.lmdb: 0: is no pickle that can be read safely: it asks for _io.BytesIO"),
    ],
)
def test_bad_oc22(oc22, slab_data, changes, message):
    write_lmdb(oc22.folder / "data.0000.lmdb", [slab_data(**changes)])
    refuses(oc22, message)


def test_oc22_with_files_missing_or_cut(oc22, slab_data):
    refuses(oc22, "s2ef-total/train: holds no *.lmdb file")
    path = oc22.folder / "data.0000.lmdb"
    write_lmdb(path, 100 * [slab_data()], length=101)
    refuses(oc22, "data.0000.lmdb: 100: is not there, but the file should have 101 records")
    cut(path)
    refuses(oc22, "data.0000.lmdb: is cut off")
    path.write_bytes(b"no database" * 1000)
    refuses(oc22, "data.0000.lmdb: is no readable LMDB")
    oc22.metadata.unlink()
    refuses(Oc22Reader(oc22.root, part=oc22.part), "oc22_metadata.pkl: is missing")


# --- QM9 ----------------------------------------------------------------------------------------------------

# The first molecule of QM9 with a Mulliken charge in its odd exponential notation.
METHANE = """5
gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\t\
-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469\t
C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689
H\t 0.002150416\t-0.0060313176\t 1.97612*^-3\t 0.133921
H\t 1.0117308433\t 1.4637511618\t 0.0002765748\t 1.33922*^-1
H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923
H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923
1341.307\t1341.3284\t1341.365\t1562.6731\t1562.7453\t3038.3205\t3151.6034\t3151.6788\t3151.7078
C\tC
InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4
"""
UNCHARACTERIZED = """================
Some of the molecules
================

       2   NH3
================
"""


@pytest.fixture
def qm9(tmp_path):
    """Methane, and the same as molecule 2, which is left out, and 3."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for index in (1, 2, 3):
            content = METHANE.replace("gdb 1", f"gdb {index}").encode()
            info = tarfile.TarInfo(f"dsgdb9nsd_{index:06d}.xyz")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
            (tmp_path / info.name).write_bytes(content)
    (tmp_path / "dsgdb9nsd.xyz.tar.bz2").write_bytes(bz2.compress(buffer.getvalue()))
    (tmp_path / "uncharacterized.txt").write_text(UNCHARACTERIZED)
    return tmp_path


@pytest.mark.parametrize("file", ["dsgdb9nsd.xyz.tar.bz2", ""])
def test_qm9(qm9, file):
    structures = list(Qm9Reader(qm9, file=file, properties=["U0", "gap", "r2", "Cv"]))
    assert [s.source for s in structures] == ["gdb/1", "gdb/3"]
    methane = structures[0]
    assert methane.properties == {"U0": -40.47893, "gap": 0.5048, "r2": 35.3641, "Cv": 6.469}
    assert methane.label == "CH4"
    np.testing.assert_array_equal(methane.positions[1], [0.002150416, -0.0060313176, 1.97612e-3])
    assert np.isnan(methane.energy)
    assert not methane.problem()
    assert len(list(Qm9Reader(qm9, file=file, properties=[], uncharacterized=None))) == 3


@pytest.mark.real
def test_qm9_agrees_with_the_real_sample(qm9, real):
    (methane, *_) = UserReader(real / "qm9", file="qm9_reduced_100.xyz")
    read = next(iter(Qm9Reader(qm9, properties=[])))
    np.testing.assert_allclose(read.positions, methane.positions, atol=1e-8)


def test_formats_name_the_properties_that_they_can_give():
    assert {"U0", "gap"} < Qm9Reader.properties
    assert UserReader.properties == frozenset()


def test_bad_qm9(qm9):
    with pytest.raises(ConfigError, match=r"unknown property of QM9 'U_0'; did you mean 'U0'\?"):
        Qm9Reader(qm9, properties=["U_0"])
    refuses(Qm9Reader(qm9, properties=[], file="b.tar.bz2"), "b.tar.bz2: is missing")
    refuses(Qm9Reader(qm9, properties=[], uncharacterized="u.txt"), "u.txt: is missing")
    for old, new in (("\t6.469", ""), ("H\t 1.01", "Qq\t 1.01"), ("0.1171", "a"), ("5\n", "9\n")):
        (qm9 / "dsgdb9nsd_000001.xyz").write_text(METHANE.replace(old, new, 1))
        refuses(Qm9Reader(qm9, properties=[], file=""), "dsgdb9nsd_000001.xyz: is no molecule in QM9's raw format")
    archive = qm9 / "dsgdb9nsd.xyz.tar.bz2"
    cut(archive)
    refuses(Qm9Reader(qm9, properties=[]), "dsgdb9nsd.xyz.tar.bz2: is damaged or cut short")
    archive.write_bytes(b"no archive")
    refuses(Qm9Reader(qm9, properties=[]), "dsgdb9nsd.xyz.tar.bz2: is damaged or cut short")
