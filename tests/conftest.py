"""Fixtures that all tests share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule

from atomcsi.structure import Structure, hill_formula
from atomcsi.structure_lmdb import StructureLMDB, write_structures

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """On shared cores two processes with one thread each beat two threads."""
    torch.set_num_threads(1)


@pytest.fixture
def repository() -> Path:
    return ROOT


@pytest.fixture
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
