import multiprocessing
import operator
import struct
import zlib

import lmdb
import numpy as np
import pytest
import xxhash

from atomcsi.errors import InputError
from atomcsi.structure import Structure
from atomcsi.structure_batch import StructureBatch, batches_of
from atomcsi.structure_lmdb import StructureLMDB, write_batches, write_structures


def slab(**changes) -> Structure:
    values = {
        "numbers": np.array([29, 29, 8, 1]),
        "positions": np.arange(12.0).reshape(4, 3),
        "source": "random7/frame3é",
        "label": "Cu2",
        "energy": -17617.379355234374,
        "forces": -np.arange(12.0).reshape(4, 3),
        "properties": {"gap": 1.25},
        "cell": np.diag([5.0, 6.0, 20.0]),
        "pbc": (True, True, False),
        "tags": np.array([0, 1, 2, 2]),
        "fixed": np.array([True, False, False, False]),
    }
    return Structure(**{**values, **changes})


def bare() -> Structure:
    return Structure(numbers=np.array([1]), positions=np.zeros((1, 3)), source="", label="H", properties={"gap": 0.0})


def test_round_trip(tmp_path):
    path = tmp_path / "x.lmdb"
    write_structures(path, [slab(), bare()], property_names=["gap"], provenance={"dataset": "x"})
    store = StructureLMDB(path)
    assert (len(store), store.natoms.tolist(), store.classes.tolist()) == (2, [4, 1], [0, 1])
    for wrote, read in zip([slab(), bare()], store, strict=True):
        np.testing.assert_array_equal(read.numbers, wrote.numbers)
        np.testing.assert_array_equal(read.positions, wrote.positions)
        for name in ("forces", "cell", "tags", "fixed"):
            np.testing.assert_array_equal(getattr(read, name), getattr(wrote, name))
        assert (read.source, read.label, read.pbc) == (wrote.source, wrote.label, wrote.pbc)
        assert read.properties == wrote.properties
        assert np.array_equal(read.energy, wrote.energy, equal_nan=True)  # all digits of a float64


def test_record_is_readable_without_our_code(tmp_path):
    """The layout that the modules document, decoded by struct, NumPy and LMDB alone."""
    path = tmp_path / "x.lmdb"
    write_structures(path, [slab() for _ in range(300)], property_names=["gap"], provenance={})
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment, environment.begin() as txn:
        block = txn.get((299 // 256).to_bytes(8, "big"))
        natoms = np.frombuffer(zlib.decompress(txn.get(b"natoms")), "<i4")
    start, size, checksum = struct.unpack_from("<III", block, 12 * (299 % 256))
    record = block[start : start + size]
    assert xxhash.xxh3_64_intdigest(record, 299) % 2**32 == checksum
    natoms_of_record, flags, name_length, energy = struct.unpack_from("<IHHd", record)
    assert (natoms_of_record, natoms[299], flags, energy) == (4, 4, 0b1111011, slab().energy)
    gap, *floats = struct.unpack_from("<d9f12f12f", record, 16)
    assert gap == 1.25
    np.testing.assert_array_equal(np.reshape(floats[:9], (3, 3)), slab().cell)
    np.testing.assert_array_equal(np.reshape(floats[9:21], (4, 3)), slab().positions)
    np.testing.assert_array_equal(np.reshape(floats[21:], (4, 3)), slab().forces)
    at = 16 + 8 + 4 * 33
    assert list(record[at : at + 8]) == [29 + 128, 29, 8, 1, 0, 1, 2, 2]
    assert record[at + 8 : at + 8 + name_length].decode() == slab().source


def test_a_batch_is_what_single_reads_give(tmp_path):
    """Mixed: with and without forces, cell, tags, fixed; across blocks, in any order and repeated."""
    kinds = [slab(), bare(), slab(tags=None, pbc=(True, False, True), group="b"), slab(fixed=None, forces=None)]
    path = tmp_path / "x.lmdb"
    write_structures(path, [kinds[i % 4] for i in range(1000)], property_names=["gap"], provenance={})
    store = StructureLMDB(path)
    indices = np.random.default_rng(0).integers(0, 1000, 200)
    batch, singles = store.read_batch(indices), [store[i] for i in indices.tolist()]
    expected = StructureBatch.of(singles, ["gap"])
    for name in StructureBatch.__slots__:
        found, wanted = getattr(batch, name), getattr(expected, name)
        if isinstance(wanted, np.ndarray):
            np.testing.assert_array_equal(found, wanted, err_msg=name)
        else:
            assert found == wanted, name
    assert singles[0].group == kinds[indices[0] % 4].group
    assert store.read_batch([]).natoms.tolist() == []
    for outside in (-1, 1000):
        with pytest.raises(IndexError):
            store.read_batch([0, outside])


def test_a_file_does_not_depend_on_how_it_was_batched(tmp_path, toy_structures):
    structures = toy_structures(700)
    for name, size in (("a", 700), ("b", 256), ("c", 33)):
        write_batches(tmp_path / name, batches_of(structures, size), provenance={})
    blocks = [StructureLMDB(tmp_path / name).metadata["fingerprint"] for name in "abc"]
    assert len(set(blocks)) == 1


def test_linear_reference_and_spread(tmp_path):
    """Energies that are linear in the composition are explained exactly; what is added is the spread."""
    generator = np.random.default_rng(0)
    noise = generator.normal(size=200)
    noise -= noise.mean()
    structures = []
    for i in range(200):
        numbers = np.sort(generator.choice([1, 6, 8], generator.integers(2, 9)))
        energy = (numbers == 1).sum() * -13.6 + (numbers == 6).sum() * -1036.0 + (numbers == 8).sum() * -2041.0
        positions = generator.normal(size=(len(numbers), 3))
        structures.append(slab(numbers=numbers, positions=positions, forces=2 * np.ones_like(positions),
                               energy=energy + 0.1 * noise[i], tags=None, fixed=None))  # fmt: skip
    metadata = write_structures(tmp_path / "x.lmdb", structures, property_names=["gap"], provenance={})
    reference = {int(z): e for z, e in metadata["linear_reference"].items()}
    assert reference == pytest.approx({1: -13.6, 6: -1036.0, 8: -2041.0}, abs=0.05)
    assert metadata["energy_std"] == pytest.approx(0.1 * noise.std(), rel=0.05)
    assert metadata["force_rms"] == pytest.approx(2.0)


def test_one_composition_keeps_its_spread(tmp_path):
    """All frames of one molecule at -17 617 eV: the reference is their mean, and 0.1 eV of spread survives."""
    noise = np.random.default_rng(0).normal(size=100) * 0.1
    structures = [slab(energy=-17617.0 + e) for e in noise]
    metadata = write_structures(tmp_path / "x.lmdb", structures, property_names=["gap"], provenance={})
    assert metadata["energy_std"] == pytest.approx(noise.std(), rel=1e-4)


def test_same_structures_same_fingerprint(tmp_path, toy_structures):
    first, again, other = (
        write_structures(tmp_path / f"{name}.lmdb", toy_structures(5, seed), provenance={})["fingerprint"]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again != other


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_open_file_can_be_handed_to_workers(toy_lmdb, method):
    store = toy_lmdb(4)
    assert store[0].source == "toy/0"
    with multiprocessing.get_context(method).Pool(2) as pool:
        read = pool.starmap(operator.getitem, [(store, i) for i in range(4)])
    assert [structure.source for structure in read] == [f"toy/{i}" for i in range(4)]


def test_two_views_of_one_file(toy_lmdb, tmp_path):
    assert toy_lmdb(3)[1].source == StructureLMDB(tmp_path / "toy.lmdb")[1].source


def test_an_error_leaves_nothing(tmp_path, toy_structures):
    def broken():
        yield from toy_structures(3)
        raise InputError("raw.h5", "is cut off")

    with pytest.raises(InputError, match="cut off"):
        write_structures(tmp_path / "x.lmdb", broken(), provenance={})
    with pytest.raises(InputError, match="would hold no structures"):
        write_structures(tmp_path / "x.lmdb", [], provenance={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.1, 0.05])
def test_a_file_that_is_cut_off(toy_lmdb, tmp_path, keep):
    """Mapped pages behind the end of a file would kill the process."""
    content = toy_lmdb(1000).path.read_bytes()
    path = tmp_path / "cut.lmdb"
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(InputError, match=r"cut\.lmdb: is cut off: .* \(delete it and run again\)"):
        StructureLMDB(path)


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_file_without_its_first_pages(toy_lmdb, tmp_path, size):
    path = tmp_path / "cut.lmdb"
    path.write_bytes(toy_lmdb(10).path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"is cut off|is no readable LMDB"):
        StructureLMDB(path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, ""),
        ({"energy": np.nan}, ""),
        ({"properties": {"gap": np.nan}}, "the property 'gap' that is not finite"),
        ({"properties": {"gap": 1.0, "mu": -np.inf}}, "the property 'mu' that is not finite"),
        ({"tags": np.array([0, 1, 2, 256])}, "tags outside 0 to 255"),
        ({"tags": np.array([0, 1, 2, -1])}, "tags outside 0 to 255"),
    ],
)
def test_what_cannot_be_stored_is_a_problem(changes, problem):
    found = slab(**changes).problem()
    assert problem in found and bool(problem) == bool(found)


def test_files_that_are_not_ours(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        StructureLMDB(tmp_path / "none.lmdb")
    (tmp_path / "text.lmdb").write_text("no database")
    with pytest.raises(InputError, match="no readable LMDB"):
        StructureLMDB(tmp_path / "text.lmdb")
    with (
        lmdb.open(str(tmp_path / "other.lmdb"), subdir=False, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(b"length", b"3")
    with pytest.raises(InputError, match="holds no 'atomcsi"):
        StructureLMDB(tmp_path / "other.lmdb")
