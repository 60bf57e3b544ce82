"""Damaged files of structures: a clear error or what was written, whatever the damage, and never a dead process."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import lmdb
import numpy as np
import pytest

from atomcsi.errors import InputError
from atomcsi.inspection import describe, verify
from atomcsi.lmdb_file import LmdbFile
from atomcsi.structure_lmdb import StructureLMDB, write_structures

#: Cases of random damage; set it higher for a longer search, such as 2000.
CASES = int(os.environ.get("ATOMCSI_FUZZ_CASES", "200"))
_PAGE = 4096


def damaged(content: bytes, seed: int) -> bytes:
    """Cuts the file off or flips one to eight bits: in every second case in the pages of LMDB's tree, which are few."""
    generator = np.random.default_rng(seed)
    if seed % 4 == 0:
        return content[: generator.integers(len(content))]
    array = np.frombuffer(content, "u1").copy()
    places = np.arange(len(array))
    if seed % 2:
        kinds = array[10::_PAGE]  # branch, leaf and meta pages
        places = places.reshape(-1, _PAGE)[(kinds & 0b1011 != 0) & (np.arange(len(kinds)) == array[0::_PAGE])].ravel()
    for place in generator.choice(places, generator.integers(1, 9)):
        array[place] ^= 1 << generator.integers(8)
    return array.tobytes()


def outcome(original, path, seed):
    """What reading a damaged copy ends in: "error", or "read" if all structures are those of the original."""
    path = path.with_name(f"{seed}.lmdb")
    path.write_bytes(damaged(original.read_bytes(), seed))
    try:
        describe(path)
        verify(path)
        store, expected = StructureLMDB(path), StructureLMDB(original)
        everything = np.arange(len(expected))
        found, right = store.read_batch(everything), expected.read_batch(everything)
        np.testing.assert_array_equal(found.positions, right.positions)
        np.testing.assert_array_equal(found.energy, right.energy)
        assert (found.sources, found.labels) == (right.sources, right.labels)
        assert store[7].source == expected[7].source
        return "read"
    except InputError as error:
        assert str(path) in str(error) and error.mend
        return "error"
    finally:
        path.unlink()


def test_random_damage(tmp_path, toy_structures, ledger):
    """A crash of a worker, as a page number that is followed to nowhere brings about, breaks the pool."""
    path = tmp_path / "x.lmdb"
    write_structures(path, toy_structures(600), provenance={"dataset": "x", "split": "train"})
    # Forked, for a process that starts afresh does not find this module.
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        outcomes = list(pool.map(outcome, [path] * CASES, [path] * CASES, range(CASES), timeout=900, chunksize=20))
    assert set(outcomes) == {"error", "read"}  # flips in bytes that LMDB does not use change nothing
    assert outcomes.count("error") > 0.6 * CASES
    ledger.add("flipped bits and cuts in an LMDB", "named by its checksum, or not in use", injected=CASES)


@pytest.fixture
def store(tmp_path, toy_structures):
    path = tmp_path / "x.lmdb"
    write_structures(path, toy_structures(600), provenance={"dataset": "x", "split": "train"})
    return StructureLMDB(path)


def test_a_flipped_bit_names_its_structure(store):
    content = bytearray(store.path.read_bytes())
    at = content.index(b"toy/300")
    content[at] ^= 1
    store.path.write_bytes(content)
    message = r"x\.lmdb: structure 300: is damaged: its checksum is wrong \(delete it and run again\)"
    with pytest.raises(InputError, match=message):
        StructureLMDB(store.path)[300]
    with pytest.raises(InputError, match=message):
        StructureLMDB(store.path).read_batch([1, 300])
    with pytest.raises(InputError, match=message):
        verify(store.path)
    assert StructureLMDB(store.path)[299].source == "toy/299"


def test_a_page_that_refers_to_itself(tmp_path, toy_structures):
    """A circle in the tree ends in an error, not in a loop."""
    path = tmp_path / "deep.lmdb"
    with lmdb.open(str(path), subdir=False, map_size=1 << 24, lock=False) as file, file.begin(write=True) as put:
        for number in range(2000):
            put.put(number.to_bytes(8, "big"), bytes(50))
    found = LmdbFile(path, mend="")
    content = bytearray(path.read_bytes())
    assert [key for key, _, _ in found.items()] == [number.to_bytes(8, "big") for number in range(2000)]
    start = next(page for page in range(0, len(content), _PAGE) if content[page + 10] == 1 and page > _PAGE)
    node = start + int.from_bytes(content[start + 16 : start + 18], "little")
    content[node : node + 4] = (start // _PAGE).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(InputError, match="occurs twice"):
        list(LmdbFile(path, mend="").items())


def test_the_library_reads_the_same(store):
    """LMDB itself finds the same keys and values where ours looks for them."""
    found = LmdbFile(store.path, mend="")
    with lmdb.open(str(store.path), subdir=False, readonly=True, lock=False) as file, file.begin() as transaction:
        expected = list(transaction.cursor())
    assert [(key, bytes(found.content[start:stop])) for key, start, stop in found.items()] == expected
