"""Which atoms see each other."""

from __future__ import annotations

import numpy as np
from matscipy.neighbours import neighbour_list

from atomcsi.models.batch import periodic_cell
from atomcsi.structure import Structure

#: Distances in Angstrom that count as equal where neighbours are cut off: rounding must not choose between them.
_TIE = 0.01


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


def edges_within(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float, max_neighbors: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the directed edges of one structure, periodic images included.

    The vector along an edge is ``positions[target] - positions[source] + offset @ cell``.

    Args:
        positions: Cartesian positions in Angstrom, shape (atoms, 3).
        cell: Lattice vectors as rows in Angstrom, shape (3, 3), not singular.
        pbc: Periodicity along them, shape (3,).
        cutoff: Largest distance in Angstrom.
        max_neighbors: Edges that end at an atom at most, the shortest ones, but all that are as long as the last of
            these: the choice must not depend on the order of the atoms. All if None.

    Returns:
        Sources, shape (edges,); targets, shape (edges,), ascending; offsets in lattice vectors, shape (edges, 3),
        integers.
    """
    target, source, image, distance = neighbour_list(
        "ijSd", cutoff=cutoff, positions=np.asarray(positions, float), cell=np.asarray(cell, float), pbc=pbc
    )
    # matscipy shifts its second atom, here the source.
    edges = source.astype(np.int64), target.astype(np.int64), -image.astype(np.int64)
    if max_neighbors is None or not len(target) or np.bincount(target).max() <= max_neighbors:
        return edges
    near = _nearest(target, distance, max_neighbors)
    return edges[0][near], edges[1][near], edges[2][near]


def _nearest(target: np.ndarray, distance: np.ndarray, count: int) -> np.ndarray:
    """Which edges are among the ``count`` shortest ones of their target, shape (edges,), bool."""
    order = np.lexsort((distance, target))
    sizes = np.bincount(target)
    starts = np.cumsum(sizes) - sizes
    last = order[np.minimum(starts + count, starts + sizes)[target] - 1]
    return distance <= distance[last] + _TIE
