"""Distance of the element compositions alone: the baseline that a distance of embeddings has to beat."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import jensenshannon

from atomcsi.distances.base import Distance, Kept, Pair, Value
from atomcsi.embeddings import Embedding
from atomcsi.structure import MAX_ATOMIC_NUMBER


class Elements(Distance):
    """The Jensen-Shannon divergence (Lin 1991) of the shares of the elements in bits, from 0 to 1."""

    title = "element composition"
    unit = "bit"

    def pair(self, upstream: Embedding, downstream: Embedding) -> ElementsPair:
        """See :meth:`Distance.pair`."""
        return ElementsPair(upstream, downstream)


class ElementsPair(Pair):
    """The atoms of either embedding, counted by block and element."""

    def __init__(self, upstream: Embedding, downstream: Embedding) -> None:
        super().__init__(upstream, downstream)
        self._counts = [_counts(embedding) for embedding in (upstream, downstream)]

    def value(self, upstream: Kept = None, downstream: Kept = None) -> Value:
        """Returns the divergence."""
        p, q = (
            (counts if kept is None else counts[list(kept)]).sum(axis=0)
            for counts, kept in zip(self._counts, (upstream, downstream), strict=True)
        )
        return Value(float(jensenshannon(p, q, base=2) ** 2))


def _counts(embedding: Embedding) -> np.ndarray:
    """Atoms by block and atomic number, shape (blocks, 119), whatever a row of the embedding is."""
    atoms = embedding if embedding.flat else Embedding(embedding.path)
    flat = atoms.row_blocks * (MAX_ATOMIC_NUMBER + 1) + atoms.numbers
    counts = np.bincount(flat, atoms.row_weights, minlength=atoms.blocks * (MAX_ATOMIC_NUMBER + 1))
    return counts.reshape(atoms.blocks, -1)
