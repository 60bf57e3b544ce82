import functools
import operator
import os
import signal

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111

from atomcsi.config import ExtractorSpec
from atomcsi.errors import AtomcsiError
from atomcsi.extraction import build_extractor, extract, fill_batches, worker_pool
from atomcsi.extractors.base import Extractor
from atomcsi.extractors.composition import CompositionExtractor
from atomcsi.progress import Progress
from atomcsi.structure import Structure

SEVENNET = ExtractorSpec(implementation="sevennet")


class Limited(Extractor):
    """A GPU's memory that holds some atoms, not more."""

    dim = 1
    elements = frozenset(range(1, 119))

    def __init__(self, atoms: int):
        super().__init__()
        self.atoms, self.batches = atoms, []

    def _rows(self, structures):
        rows = np.concatenate([s.numbers for s in structures])[:, None]
        if len(rows) > self.atoms:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(len(structures))
        return rows


def periodic(atoms: Atoms) -> Structure:
    return Structure(
        numbers=atoms.numbers, positions=atoms.positions, source="x", label="x", cell=atoms.cell[:], pbc=(True,) * 3
    )


@pytest.mark.parametrize("max_atoms", [1, 20, 1000])
def test_features_come_in_the_order_of_the_structures(toy_structures, max_atoms):
    structures = toy_structures(10)
    progress = Progress("test", total=10, unit="structures")
    found = extract(structures, CompositionExtractor(), max_atoms=max_atoms, max_edges=1, progress=progress)
    assert [(rows.argmax(axis=1) + 1).tolist() for rows in found] == [s.numbers.tolist() for s in structures]
    assert progress.done == 10
    assert extract([], CompositionExtractor(), max_atoms=max_atoms, max_edges=1) == []


def test_batches():
    natoms = np.array([5, 30, 1, 9, 9, 2])
    nedges = np.array([20, 800, 0, 72, 10, 2])
    by_atoms = fill_batches(natoms, nedges, max_atoms=12, max_edges=1000)
    assert by_atoms == [[2, 5, 0], [4], [3], [1]]
    assert fill_batches(natoms, nedges, max_atoms=1000, max_edges=90) == [[2, 5, 0, 4], [3], [1]]
    for batches in (by_atoms, fill_batches(natoms, nedges, max_atoms=20, max_edges=30)):
        assert sorted(functools.reduce(operator.iadd, batches)) == list(range(6))


def test_edges():
    """The 12 + 6 neighbours of an fcc atom within 1.2 times the lattice constant, at most as many as are kept."""
    copper = periodic(bulk("Cu", "fcc", 3.6) * (2, 1, 1))
    extractor = CompositionExtractor()
    assert extractor.count_edges(copper) == 0
    extractor.cutoff = 1.2 * 3.6
    assert extractor.count_edges(copper) == 2 * 18
    extractor.max_neighbors = 10
    assert extractor.count_edges(copper) == 2 * 10


def test_a_batch_that_does_not_fit_is_halved(toy_structures, caplog):
    structures = toy_structures(8)  # of 4 to 8 atoms
    extractor = Limited(atoms=20)
    found = extract(structures, extractor, max_atoms=1000, max_edges=1)
    assert [rows[:, 0].tolist() for rows in found] == [s.numbers.tolist() for s in structures]
    assert extractor.batches == [4, 2, 2]
    assert "a batch of 8 structures does not fit into the GPU's memory, halved; lower max_atoms" in caplog.text


def test_a_structure_that_does_not_fit(toy_structures):
    with pytest.raises(AtomcsiError, match="'toy/1' with 8 atoms does not fit into the GPU's memory"):
        extract(toy_structures(3), Limited(atoms=7), max_atoms=1000, max_edges=1)


@pytest.fixture(scope="module")
def pool():
    with worker_pool(SEVENNET, 2) as pool:
        yield pool


class TestProcesses:
    def test_one_process_needs_no_pool(self):
        with worker_pool(SEVENNET, 1) as pool:
            assert pool is None

    @pytest.mark.slow
    def test_features_do_not_depend_on_batches_and_processes(self, pool, toy_structures):
        slab = fcc111("Cu", (2, 2, 3), vacuum=6.0)
        structures = [*toy_structures(9), periodic(slab), periodic(bulk("NaCl", "rocksalt", 5.64))]
        extractor = build_extractor(SEVENNET)
        alone = [extractor.features([structure])[0] for structure in structures]
        progress = Progress("test", total=11, unit="structures")
        for max_atoms, max_edges in ((16, 10_000), (1000, 200), (1000, 10_000)):
            budget = {"max_atoms": max_atoms, "max_edges": max_edges}
            found = extract(structures, extractor, pool=pool, progress=progress, **budget)
            for rows, same, single in zip(found, extract(structures, extractor, **budget), alone, strict=True):
                assert np.array_equal(rows, same)
                np.testing.assert_allclose(rows, single, rtol=0, atol=1e-5 * np.abs(single).max())
        assert progress.done == 33

    @pytest.mark.slow
    def test_errors_cross_processes(self, pool, toy_structures):
        unknown = toy_structures(5)
        unknown[3].numbers = np.full(len(unknown[3]), 118)
        with pytest.raises(AtomcsiError, match=r"^SevenNetExtractor does not know Og, held by 'toy/3'$"):
            extract(unknown, CompositionExtractor(), max_atoms=1, max_edges=1, pool=pool)
        assert len(extract(toy_structures(2), CompositionExtractor(), max_atoms=1, max_edges=1, pool=pool)) == 2

    @pytest.mark.slow
    def test_a_killed_process(self, toy_structures):
        with worker_pool(ExtractorSpec(implementation="composition"), 2) as pool:
            os.kill(pool.submit(os.getpid).result(), signal.SIGKILL)
            with pytest.raises(AtomcsiError, match=r"a process was killed.*lower max_atoms and max_edges"):
                extract(toy_structures(3), CompositionExtractor(), max_atoms=1, max_edges=1, pool=pool)


def test_features_that_are_not_finite_name_their_structure(toy_structures):
    class Broken(CompositionExtractor):
        def _rows(self, structures):
            rows = super()._rows(structures)
            rows[-1, 3] = np.nan
            return rows

    with pytest.raises(AtomcsiError, match="no finite features for 'toy/0'"):
        extract(toy_structures(1), Broken(), max_atoms=100, max_edges=100)
