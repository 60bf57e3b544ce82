"""Whether training waits for its data: ours against PyTorch Geometric's loader on pickled ``Data`` in LMDB.

Ours hands over batches with the graphs of the model; those of PyTorch Geometric's loader have none yet, and the field's
models find them in the step.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import yaml
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from torch.utils.data import Dataset
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from atomcsi.config import BackboneSpec
from atomcsi.models.potential import Potential, build_backbone
from atomcsi.structure import Structure
from atomcsi.structure_lmdb import StructureLMDB, write_structures
from atomcsi.training.data import LabelledStructures
from atomcsi.training.loading import Batches, loader, unpacked
from atomcsi.training.settings import TrainSettings
from benchmarks.bench_lmdb import Pickles, write_pickles
from benchmarks.harness import Record, in_turn

_BACKBONE = Path("config/backbones/gemnet-oc-tiny.yaml")
_STRUCTURES, _BATCH = 1024, 8
#: Steps that are timed, and steps before, in which workers start.
_STEPS, _WARM_UP = 16, 4
_REPEATS = 3


def run() -> Iterator[Record]:
    """Yields the share of a step that it waits, and the speed of loading alone, for molecules and slabs."""
    torch.set_num_threads(1)
    for what, atoms in (("butane", molecule("trans-butane")), ("slabs of 31 atoms", _slab())):
        with tempfile.TemporaryDirectory() as folder:
            yield from _compare(what, _rattled(atoms), Path(folder))


def _compare(what: str, structures: list[Structure], folder: Path) -> Iterator[Record]:
    write_structures(folder / "ours.lmdb", structures, provenance={})
    write_pickles(folder / "theirs.lmdb", structures)
    potential = Potential(build_backbone(BackboneSpec(**yaml.safe_load(_BACKBONE.read_text())).model_dump()))
    labelled = LabelledStructures(StructureLMDB(folder / "ours.lmdb"), target="forces")
    settings = TrainSettings(structures=_STRUCTURES, epochs=1, batch_size=_BATCH, learning_rate=1e-3)
    collate = potential.backbone.collate()

    def ours(workers: int) -> Iterable[object]:
        batches = Batches(labelled.natoms, settings, seed=0)
        return map(unpacked, loader(labelled, batches, collate=collate, workers=workers))

    def theirs(workers: int) -> Iterable[object]:
        generator = torch.Generator().manual_seed(0)
        data = _PickledData(folder / "theirs.lmdb")
        return DataLoader(data, batch_size=_BATCH, shuffle=True, num_workers=workers, generator=generator)

    # The same batch in all steps, whatever is loaded: both loaders feed the same work.
    atoms = next(iter(ours(0))).atoms

    def step() -> None:
        prediction = potential(atoms)
        (prediction.energy.sum() + prediction.forces.square().sum()).backward()

    for workers in (0, 1):
        shares = [[_waiting(load(workers), step) for load in (ours, theirs)] for _ in range(_REPEATS)]
        share, baseline = (statistics.median(values) for values in zip(*shares, strict=True))
        name = f"loading: waiting, {what}, {workers} workers"
        yield Record(name=f"{name}, share of step", ours=100 * share, unit="%", target=10.0)
        yield Record(
            name=f"{name}, against a PyG loader",
            ours=100 * share,
            baseline=100 * baseline,
            unit="%",
            ratio=baseline / share,
        )
    times = in_turn(lambda: _drain(ours(0)), lambda: _drain(theirs(0)))
    yield Record.faster(f"loading: {_STRUCTURES} structures without a model, {what}", *times, target=None)


def _waiting(batches: Iterable[object], step: Callable[[], None]) -> float:
    """Share of the time of steps that they wait for their batch."""
    stream, waited, started = iter(batches), 0.0, 0.0
    for number in range(_WARM_UP + _STEPS):
        if number == _WARM_UP:
            waited, started = 0.0, time.perf_counter()
        before = time.perf_counter()
        next(stream)
        waited += time.perf_counter() - before
        step()
    return waited / (time.perf_counter() - started)


def _drain(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


class _PickledData(Dataset[Data]):
    """A plain data set: one pickled ``Data`` a structure."""

    def __init__(self, path: Path) -> None:
        self._pickles = Pickles(path)

    def __len__(self) -> int:
        return _STRUCTURES

    def __getitem__(self, index: int) -> Data:
        return self._pickles.all(np.array([index]))[0]


def _rattled(atoms: Atoms) -> list[Structure]:
    generator = np.random.default_rng(0)
    return [
        Structure(
            numbers=atoms.numbers,
            positions=atoms.positions + generator.normal(scale=0.1, size=atoms.positions.shape),
            source=f"rattled/{index}",
            label="rattled",
            energy=generator.normal(),
            forces=generator.normal(size=atoms.positions.shape),
            cell=atoms.cell.array if atoms.pbc.any() else None,
            pbc=tuple(map(bool, atoms.pbc)),
            fixed=np.zeros(len(atoms), bool),
        )
        for index in range(_STRUCTURES)
    ]


def _slab() -> Atoms:
    slab = fcc111("Cu", size=(3, 3, 3), vacuum=10.0, periodic=True)
    add_adsorbate(slab, molecule("NH3"), 2.0)
    return slab
