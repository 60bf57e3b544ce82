"""The energy distance (Szekely and Rizzo 2013), one of the paper's ablations."""

from __future__ import annotations

import numpy as np
from sklearn.metrics.pairwise import euclidean_distances

from atomcsi.distances.base import Distance
from atomcsi.distances.kernel import KernelPair
from atomcsi.embeddings import Embedding


class Energy(Distance):
    """2 E|x - y| - E|x - x'| - E|y - y'|: the MMD^2 of the kernel -|x - y| (Sejdinovic et al. 2013)."""

    title = "energy distance"
    unit = "feature units"

    def pair(self, upstream: Embedding, downstream: Embedding) -> KernelPair:
        """See :meth:`Distance.pair`."""
        return KernelPair(upstream, downstream, lambda x, y: _negative_distance, seed=self.seed)


def _negative_distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return -euclidean_distances(x, y)
