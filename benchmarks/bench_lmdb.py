"""Files of structures against the field's: a pickled ``Data`` of PyTorch Geometric a structure, by decimal keys."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from torch_geometric.data import Batch, Data

from atomcsi.export import pyg_data
from atomcsi.structure import Structure
from atomcsi.structure_batch import StructureBatch
from atomcsi.structure_lmdb import StructureLMDB, write_structures
from benchmarks.harness import Record, in_turn

_STRUCTURES = 16_384
#: How many of them are read.
_READ = 4096
_BATCH = 32
#: Structures that are asked for at once where arrays are wanted.
_CHUNK = 512


def run() -> Iterator[Record]:
    """Yields reading, writing and size for molecules of 20 and 80 atoms and slabs of 80."""
    torch.set_num_threads(1)
    for what, structures in (
        ("20 atoms", _molecules(20)),
        ("80 atoms", _molecules(80)),
        ("slabs of 80 atoms", _slabs()),
    ):
        with tempfile.TemporaryDirectory() as folder:
            yield from _compare(what, structures, Path(folder))


def _compare(what: str, structures: list[Structure], folder: Path) -> Iterator[Record]:
    ours, theirs = folder / "ours.lmdb", folder / "theirs.lmdb"
    times = in_turn(
        lambda: write_structures(ours, structures, provenance={}), lambda: write_pickles(theirs, structures)
    )
    yield Record.faster(f"lmdb: write, {what}", *times, target=20.0)
    sizes = ours.stat().st_size, theirs.stat().st_size
    yield Record(
        name=f"lmdb: size, {what}",
        ours=sizes[0] / len(structures),
        baseline=sizes[1] / len(structures),
        unit="bytes",
        ratio=sizes[1] / sizes[0],
        target=4.0,
    )
    store, pickles = StructureLMDB(ours), Pickles(theirs)
    order = np.random.default_rng(1).permutation(len(structures))[:_READ]
    chunks = np.array_split(order, len(order) // _CHUNK)
    batches = np.array_split(order, len(order) // _BATCH)
    for name, read, baseline, target in (
        ("arrays", lambda: _each(store.read_batch, chunks), lambda: _each(pickles.all, chunks), 100.0),
        ("arrays, one at a time", lambda: _each(store.__getitem__, order), lambda: _each(pickles.all, chunks), None),
        (
            "Data",
            lambda: _each(lambda chunk: pyg_data(store.read_batch(chunk)), chunks),
            lambda: _each(pickles.all, chunks),
            15.0,
        ),
        (
            f"batches of {_BATCH}",
            lambda: _each(lambda batch: tensors(store.read_batch(batch)), batches),
            lambda: _each(lambda batch: Batch.from_data_list(pickles.all(batch)), batches),
            15.0,
        ),
    ):
        times = in_turn(read, baseline)
        yield Record(
            name=f"lmdb: random reads as {name}, {what}",
            ours=1e6 * times[0] / len(order),
            baseline=1e6 * times[1] / len(order),
            unit="us",
            ratio=times[1] / times[0],
            target=target,
        )


def _each(read: Callable[[Any], object], keys: Iterable[Any]) -> None:
    """Reads and drops, as a training does."""
    for key in keys:
        read(key)


def tensors(batch: StructureBatch) -> dict[str, torch.Tensor]:
    """A batch as PyTorch Geometric's ``Batch`` holds it."""
    arrays = {
        "pos": batch.positions,
        "atomic_numbers": batch.numbers,
        "force": batch.forces,
        "y": batch.energy,
        "natoms": batch.natoms,
        "cell": batch.cell,
        "tags": batch.tags,
        "fixed": batch.fixed,
        "batch": batch.index,
        "ptr": np.concatenate([[0], np.cumsum(batch.natoms)]),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class Pickles:
    """Reads the field's files as fairchem's loader does."""

    def __init__(self, path: Path) -> None:
        self._environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)

    def all(self, indices: np.ndarray) -> list[Data]:
        """The structures with these positions."""
        found = []
        for index in indices.tolist():
            with self._environment.begin() as transaction:
                found.append(pickle.loads(transaction.get(str(index).encode())))
        return found


def write_pickles(path: Path, structures: list[Structure]) -> None:
    """Writes the field's files as fairchem's and JMP's preprocessing do."""
    path.unlink(missing_ok=True)
    environment = lmdb.open(str(path), subdir=False, map_size=1 << 40, meminit=False, map_async=True, lock=False)
    with environment.begin(write=True) as transaction:
        for index, structure in enumerate(structures):
            transaction.put(str(index).encode(), pickle.dumps(_data(structure, index), protocol=-1))
    environment.close()


def _data(structure: Structure, index: int) -> Data:
    """What fairchem's and JMP's preprocessing write."""
    natoms = len(structure)
    attributes = {
        "pos": torch.tensor(structure.positions, dtype=torch.float32),
        "atomic_numbers": torch.tensor(structure.numbers, dtype=torch.float32),
        "force": torch.tensor(structure.forces, dtype=torch.float32),
        "natoms": natoms,
        "y": structure.energy,
        "sid": index,
        "fid": index,
        "tags": torch.full((natoms,), 2) if structure.tags is None else torch.tensor(structure.tags),
    }
    if structure.cell is not None:
        attributes["cell"] = torch.tensor(structure.cell, dtype=torch.float32)[None]
        attributes["fixed"] = torch.tensor(structure.fixed, dtype=torch.float32)
    return Data(**attributes)


def _molecules(natoms: int) -> list[Structure]:
    generator = np.random.default_rng(0)
    numbers = generator.choice([1, 6, 7, 8], natoms)
    return [
        Structure(
            numbers=numbers,
            positions=generator.normal(size=(natoms, 3)),
            source=f"molecule/{i}",
            label="molecule",
            energy=-17617.0 + generator.normal(),
            forces=generator.normal(size=(natoms, 3)),
        )
        for i in range(_STRUCTURES)
    ]


def _slabs() -> list[Structure]:
    generator = np.random.default_rng(0)
    atoms: Atoms = fcc111("Cu", size=(4, 4, 4), vacuum=10.0)
    for x in range(4):
        add_adsorbate(atoms, molecule("NH3"), 2.0, (4.0 * (x % 2), 4.0 * (x // 2)))
    layers = atoms.get_tags()  # ASE counts from the top; 0 is the adsorbate
    return [
        Structure(
            numbers=atoms.numbers,
            positions=atoms.positions + generator.normal(scale=0.1, size=atoms.positions.shape),
            source=f"random{i * 101}/frame{i % 200}",
            label="Cu",
            energy=generator.normal(),
            forces=generator.normal(size=atoms.positions.shape),
            cell=atoms.cell.array,
            pbc=(True, True, True),
            tags=np.select([layers == 0, layers <= 2], [2, 1], 0),
            fixed=layers > 2,
        )
        for i in range(_STRUCTURES)
    ]
