import numpy as np
import pytest
from ase.neighborlist import primitive_neighbor_list

from atomcsi.extractors.neighbours import neighbours
from atomcsi.models.batch import periodic_cell
from atomcsi.structure import Structure


def rounded(pairs):
    """Pairs in an order that does not depend on who found them."""
    rows = np.column_stack(pairs).round(6) + 0.0
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize("seed", range(30))
def test_equals_ase(seed):
    """Random cells, periodic along some of their directions, with atoms outside of them."""
    generator = np.random.default_rng(seed)
    pbc = generator.random(3) < 0.5
    cell = np.diag(generator.uniform(3, 9, size=3)) + generator.normal(scale=0.8, size=(3, 3))
    cell[~pbc] = 0.0  # as sources leave them
    positions = generator.normal(scale=5.0, size=(int(generator.integers(1, 25)), 3))
    numbers = np.ones(len(positions), dtype=int)
    structure = Structure(
        numbers=numbers, positions=positions, source="x", label="x", cell=cell, pbc=tuple(map(bool, pbc))
    )
    expected = primitive_neighbor_list("ijD", pbc, periodic_cell(structure, 5.0), positions, 5.0)
    np.testing.assert_allclose(rounded(neighbours(structure, 5.0)), rounded(expected), atol=2e-6)


def test_isolated_atoms_have_none():
    structure = Structure(numbers=np.array([1]), positions=np.zeros((1, 3)), source="x", label="x")
    assert [part.shape for part in neighbours(structure, 5.0)] == [(0,), (0,), (0, 3)]
