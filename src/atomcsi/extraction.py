"""From structures to the features of their atoms, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atomcsi.extractors.base import Extractor
from atomcsi.progress import Progress
from atomcsi.structure import Structure


def extract(
    structures: Sequence[Structure], extractor: Extractor, *, max_atoms: int, progress: Progress | None = None
) -> list[np.ndarray]:
    """Computes the features of structures, similar sizes together.

    Args:
        structures: The structures, in Angstrom.
        extractor: What turns structures into features.
        max_atoms: Atoms that a batch holds at most, unless a single structure has more.
        progress: Where finished structures are counted.

    Returns:
        For each structure an array of shape (atoms, extractor.dim), float32, in the order of ``structures``.

    Raises:
        AtomcsiError: A structure holds what the extractor does not take; see :meth:`Extractor.features`.
    """
    features: list[np.ndarray] = [np.empty(0)] * len(structures)
    natoms = np.array([len(structure) for structure in structures], dtype=int)
    for batch in batches_by_atoms(natoms, max_atoms):
        for position, rows in zip(batch, extractor.features([structures[i] for i in batch]), strict=True):
            features[position] = rows
        if progress is not None:
            progress.advance(len(batch))
    return features


def batches_by_atoms(natoms: np.ndarray, max_atoms: int) -> list[list[int]]:
    """Cuts structures, sorted by size, into batches of at most ``max_atoms`` atoms, at least one structure each."""
    batches: list[list[int]] = []
    room = -1
    for position in np.argsort(natoms, kind="stable").tolist():
        size = int(natoms[position])
        if room < size:
            batches.append([])
            room = max_atoms
        batches[-1].append(position)
        room -= size
    return batches
