"""Fixtures that all tests share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from ledger import Ledger

from atomcsi.embeddings import Embedding, EmbeddingWriter
from atomcsi.hdf5_file import add_checked, new_hdf5
from atomcsi.structure import Structure, hill_formula
from atomcsi.structure_lmdb import StructureLMDB, write_structures

ROOT = Path(__file__).parent.parent


def pytest_addoption(parser):
    parser.addoption("--record", action="store_true", help="write what was survived into docs/reliability.md")


def pytest_make_parametrize_id(val, argname):
    """Names bytes by their argument: an id made of a content may hold the time, which each worker reads anew."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def ledger(request):
    """Takes down the faults that the tests injected, for docs/reliability.md."""
    kept = Ledger()
    yield kept
    if request.config.getoption("record"):
        kept.write()


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """On shared cores two processes with one thread each beat two threads."""
    torch.set_num_threads(1)


@pytest.fixture
def repository() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def toy_structures():
    """Returns a function that makes n small molecules with smooth made-up labels, the same for the same seed."""

    def make(n: int, seed: int = 0, names: tuple[str, ...] = ("CH3OH", "C2H6", "CH3CHO", "H2O2")) -> list[Structure]:
        generator = np.random.default_rng(seed)
        structures = []
        for i in range(n):
            atoms = molecule(names[i % len(names)])
            shift = generator.normal(scale=0.1, size=atoms.positions.shape)
            structures.append(
                Structure(
                    numbers=atoms.numbers,
                    positions=atoms.positions + shift,
                    source=f"toy/{i}",
                    label=hill_formula(atoms.numbers),
                    # Springs to the equilibrium positions, on top of atomic energies.
                    energy=float(-13.6 * atoms.numbers.sum() + 5 * np.square(shift).sum()),
                    forces=-10 * shift,
                )
            )
        return structures

    return make


@pytest.fixture
def toy_lmdb(tmp_path, toy_structures):
    """Returns a function that writes toy structures to an LMDB file and opens it."""

    def make(n: int, name: str = "toy", seed: int = 0) -> StructureLMDB:
        path = tmp_path / f"{name}.lmdb"
        write_structures(path, toy_structures(n, seed), provenance={"dataset": name, "split": "train"})
        return StructureLMDB(path)

    return make


@pytest.fixture
def embedding(tmp_path):
    """Returns a function that writes features to an embedding file and opens it.

    They are given as one array (atoms of it, d) per structure; the structures are dealt into blocks in their order.
    """

    def make(structures, name="toy", *, blocks=20, multiplicity=None, numbers=None, aggregation="flat", **provenance):
        path = tmp_path / f"{name}.h5"
        count = len(structures)
        multiplicity = np.ones(count, int) if multiplicity is None else np.asarray(multiplicity)
        ptr = np.concatenate([[0], np.cumsum([len(rows) for rows in structures])])
        block_ptr = np.linspace(0, count, blocks + 1).astype(int)
        rows = np.concatenate(structures).astype("f4")
        with new_hdf5(path, rows.nbytes) as file:
            writer = EmbeddingWriter(file, ptr=ptr, block_ptr=block_ptr, multiplicity=multiplicity, dim=rows.shape[1])
            # In odd pieces, as chunks of an embedding come.
            for piece in np.array_split(rows, 7):
                writer.append(piece)
            add_checked(file, "numbers", np.ones(len(rows), "u1") if numbers is None else np.asarray(numbers, "u1"))
            add_checked(file, "class", [str(i % 3) for i in range(count)])
            known = {"dataset": name, "extractor": "toy", "implementation": "toy@1", "options": {}, "checkpoint": None}
            known |= {
                "drawn": int(multiplicity.sum()),
                "distinct": count,
                "structures": count,
                "seconds": 1.0,
                "sampling": {"method": "random", "resample": "structures"},
            }
            writer.finish({**known, "invariant_dim": rows.shape[1], **provenance})
        return Embedding(path, aggregation)

    return make
