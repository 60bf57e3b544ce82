"""The sliced Wasserstein distance (Bonneel et al. 2015), by POT."""

from __future__ import annotations

import numpy as np
import ot

from atomcsi.distances.base import Distance, Kept, Pair, Value
from atomcsi.distances.kernel import ROWS, sample_rows
from atomcsi.embeddings import Embedding

_PROJECTIONS = 100


class SlicedWasserstein(Distance):
    """Mean square of the 2-Wasserstein distances along 100 random directions; squared, for the error bar's sake."""

    title = "sliced Wasserstein distance²"
    unit = "squared feature units"

    def pair(self, upstream: Embedding, downstream: Embedding) -> SlicedWassersteinPair:
        """See :meth:`Distance.pair`."""
        return SlicedWassersteinPair(upstream, downstream, seed=self.seed)


class SlicedWassersteinPair(Pair):
    """A sample of rows of either embedding, projected.

    Args:
        upstream: Embedding of the upstream dataset.
        downstream: Embedding of the downstream dataset.
        seed: Seed of rows and directions.
    """

    def __init__(self, upstream: Embedding, downstream: Embedding, *, seed: int) -> None:
        super().__init__(upstream, downstream)
        directions = ot.sliced.get_random_projections(upstream.dim, _PROJECTIONS, seed=seed)
        self._sides = []
        for embedding in (upstream, downstream):
            rows, weights, blocks = sample_rows(embedding, ROWS, seed)
            self._sides.append((rows @ directions, weights.astype(float), blocks))

    def value(self, upstream: Kept = None, downstream: Kept = None) -> Value:
        """Returns the squared distance."""
        (x, a), (y, b) = (
            (rows, weights) if kept is None else (rows[mask := np.isin(blocks, kept)], weights[mask])
            for (rows, weights, blocks), kept in zip(self._sides, (upstream, downstream), strict=True)
        )
        return Value(float(ot.wasserstein_1d(x, y, a / a.sum(), b / b.sum(), p=2).mean()))
