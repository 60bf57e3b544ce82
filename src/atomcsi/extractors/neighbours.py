"""Which atoms see each other."""

from __future__ import annotations

import numpy as np
from matscipy.neighbours import neighbour_list

from atomcsi.models.batch import periodic_cell
from atomcsi.structure import Structure


def neighbours(structure: Structure, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds all pairs of atoms within a cutoff, periodic images included, each pair in both directions.

    Args:
        structure: The structure, in Angstrom.
        cutoff: Largest distance in Angstrom.

    Returns:
        First atoms, shape (pairs,), ascending; second atoms, shape (pairs,); vectors from first to second in
        Angstrom, shape (pairs, 3).
    """
    # Cells of sources may be singular along directions that are not periodic.
    cell = periodic_cell(structure, vacuum=cutoff)
    return neighbour_list("ijD", cutoff=cutoff, positions=structure.positions, cell=cell, pbc=structure.pbc)
