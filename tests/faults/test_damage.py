"""Files that were damaged on disk: found by their checksums and named, or read as they were written."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import h5py
import numpy as np
import pytest
import torch

from atomcsi.embeddings import Embedding
from atomcsi.errors import InputError
from atomcsi.inspection import verify
from atomcsi.structure_lmdb import StructureLMDB
from atomcsi.training.checkpoints import read_checkpoint

#: Cases of random damage; set it higher for a longer search, such as 2000.
CASES = int(os.environ.get("ATOMCSI_FUZZ_CASES", "200"))


def content(path):
    """Everything that is read of an embedding file."""
    found = Embedding(path)
    moments = [found.moments, *map(found.block_moments, range(found.blocks))]
    arrays = [found.ptr, found.multiplicity, found.numbers, found.row_blocks, found.rows(np.arange(found.ptr[-1]))]
    return [*arrays, *(array for m in moments for array in (np.array(m.count), m.mean, m.scatter))], (
        found.provenance, list(found.classes),
    )  # fmt: skip


def outcome(path, seed):
    """What reading a damaged copy ends in: "error", or "read" if all is as in the original."""
    generator = np.random.default_rng(seed)
    damaged = path.with_name(f"{seed}.h5")
    array = np.frombuffer(path.read_bytes(), "u1").copy()
    if seed % 4 == 0:
        array = array[: generator.integers(len(array))]
    else:
        for place in generator.choice(len(array), generator.integers(1, 9)):
            array[place] ^= 1 << generator.integers(8)
    damaged.write_bytes(array.tobytes())
    try:
        (arrays, facts), (right, known) = content(damaged), content(path)
        assert facts == known
        for found, expected in zip(arrays, right, strict=True):
            np.testing.assert_array_equal(found, expected)
        return "read"
    except InputError as error:
        assert str(damaged) in str(error) and error.mend
        return "error"
    finally:
        damaged.unlink()


@pytest.fixture
def embedded(embedding):
    generator = np.random.default_rng(0)
    return embedding([generator.normal(size=(5, 16)) for _ in range(40)])


def test_random_damage_of_an_embedding(embedded, ledger):
    """A process that dies breaks the pool."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        outcomes = list(pool.map(outcome, [embedded.path] * CASES, range(CASES), timeout=900, chunksize=20))
    assert set(outcomes) == {"error", "read"}  # some bytes are padding
    assert outcomes.count("error") > 0.6 * CASES
    ledger.add("flipped bits and cuts in an embedding file", "named by its checksum, or not in use", injected=CASES)


def test_a_damaged_chunk_is_named(embedded, ledger):
    with h5py.File(embedded.path) as file:
        chunk = file["blocks/scatter"].id.get_chunk_info(3)
    data = bytearray(embedded.path.read_bytes())
    data[chunk.byte_offset + chunk.size // 2] ^= 1
    embedded.path.write_bytes(data)
    with pytest.raises(InputError, match=r"toy\.h5: is damaged: a checksum is wrong \(delete it and run again\)"):
        Embedding(embedded.path).block_moments(3)
    Embedding(embedded.path).block_moments(4)
    ledger.add("damaged HDF5 chunk", "named by its checksum")


def test_a_damaged_page_is_named(toy_lmdb, ledger):
    store = toy_lmdb(80)
    data = bytearray(store.path.read_bytes())
    data[data.index(b"toy/30")] ^= 1
    store.path.write_bytes(data)
    with pytest.raises(InputError, match=r"toy\.lmdb: structure 30: is damaged: its checksum is wrong"):
        verify(store.path)
    assert StructureLMDB(store.path)[29].source == "toy/29"
    ledger.add("damaged LMDB page", "named by its checksum")


def test_a_damaged_checkpoint_is_named(tmp_path, ledger):
    path = tmp_path / "last.ckpt"
    torch.save({"weights": torch.zeros(4096)}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"last\.ckpt: is no .* checkpoint: the checksum of .* is wrong \(delete"):
        read_checkpoint(path)
    ledger.add("damaged checkpoint", "named by its checksum; the one before it is taken")
