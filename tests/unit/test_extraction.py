import functools
import operator

import numpy as np
import pytest

from atomcsi.extraction import batches_by_atoms, extract
from atomcsi.extractors.composition import CompositionExtractor
from atomcsi.progress import Progress


@pytest.mark.parametrize("max_atoms", [1, 20, 1000])
def test_features_come_in_the_order_of_the_structures(toy_structures, max_atoms):
    structures = toy_structures(10)
    progress = Progress("test", total=10, unit="structures")
    found = extract(structures, CompositionExtractor(), max_atoms=max_atoms, progress=progress)
    assert [(rows.argmax(axis=1) + 1).tolist() for rows in found] == [s.numbers.tolist() for s in structures]
    assert progress.done == 10
    assert extract([], CompositionExtractor(), max_atoms=max_atoms) == []


def test_batches_by_atoms():
    natoms = np.array([5, 30, 1, 9, 9, 2])
    batches = batches_by_atoms(natoms, 12)
    assert sorted(functools.reduce(operator.iadd, batches, [])) == list(range(6))
    assert all(natoms[batch].sum() <= 12 or len(batch) == 1 for batch in batches)
    assert len(batches) == 4
