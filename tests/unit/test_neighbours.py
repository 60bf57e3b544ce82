import numpy as np
import pytest
from ase.build import bulk
from ase.neighborlist import primitive_neighbor_list

from atomcsi.models.batch import periodic_cell
from atomcsi.models.neighbours import edges_within, neighbours
from atomcsi.structure import Structure


def rounded(pairs):
    """Pairs in an order that does not depend on who found them."""
    rows = np.column_stack(pairs).round(6) + 0.0
    return rows[np.lexsort(rows.T)]


def random_structure(seed):
    """A random cell, periodic along some of its directions, with atoms outside of it."""
    generator = np.random.default_rng(seed)
    pbc = generator.random(3) < 0.5
    cell = np.diag(generator.uniform(3, 9, size=3)) + generator.normal(scale=0.8, size=(3, 3))
    cell[~pbc] = 0.0  # as sources leave them
    positions = generator.normal(scale=5.0, size=(int(generator.integers(1, 25)), 3))
    numbers = np.ones(len(positions), dtype=int)
    return Structure(numbers=numbers, positions=positions, source="x", label="x", cell=cell, pbc=tuple(map(bool, pbc)))


@pytest.mark.parametrize("seed", range(30))
def test_equals_ase(seed):
    structure = random_structure(seed)
    cell = periodic_cell(structure, 5.0)
    expected = primitive_neighbor_list("ijD", structure.pbc, cell, structure.positions, 5.0)
    np.testing.assert_allclose(rounded(neighbours(structure, 5.0)), rounded(expected), atol=2e-6)


def test_isolated_atoms_have_none():
    structure = Structure(numbers=np.array([1]), positions=np.zeros((1, 3)), source="x", label="x")
    assert [part.shape for part in neighbours(structure, 5.0)] == [(0,), (0,), (0, 3)]


@pytest.mark.parametrize("seed", range(10))
def test_edges_equal_pairs(seed):
    structure = random_structure(seed)
    cell = periodic_cell(structure, 5.0)
    source, target, offset = edges_within(structure.positions, cell, np.array(structure.pbc), 5.0)
    assert (np.diff(target) >= 0).all()
    vectors = structure.positions[target] - structure.positions[source] + offset @ cell
    np.testing.assert_allclose(rounded((source, target, vectors)), rounded(neighbours(structure, 5.0)), atol=2e-6)


def test_as_many_neighbours_as_asked_for():
    """A row of atoms: the nearest of each, with both of two that are equally near."""
    positions = np.array([[0.0, 0, 0], [1, 0, 0], [2.5, 0, 0], [4, 0, 0]])
    source, target, _ = edges_within(positions, np.eye(3) * 20, np.zeros(3, bool), 10.0, max_neighbors=1)
    assert set(zip(source.tolist(), target.tolist(), strict=True)) == {(1, 0), (0, 1), (1, 2), (3, 2), (2, 3)}


def test_ties_are_kept_together():
    """The 12 nearest neighbours of an fcc crystal, of which no 4 are nearer than the others."""
    crystal = bulk("Cu")
    for limit, expected in ((4, 12), (12, 12), (13, 18), (None, 18)):  # 6 second neighbours at 3.61 Angstrom
        assert len(edges_within(crystal.positions, crystal.cell[:], crystal.pbc, 4.0, limit)[0]) == expected


def test_no_edges():
    found = edges_within(np.zeros((1, 3)), np.eye(3) * 9, np.zeros(3, bool), 5.0, max_neighbors=3)
    assert [part.shape for part in found] == [(0,), (0,), (0, 3)]
