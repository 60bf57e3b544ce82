"""Precision, recall and coverage of one set by another (Kynkaanniemi et al. 2019; Naeem et al. 2020)."""

from __future__ import annotations

import numpy as np
from sklearn.metrics.pairwise import euclidean_distances

from atomcsi.distances.base import Distance, Kept, Pair, Value
from atomcsi.distances.kernel import sample_rows
from atomcsi.embeddings import Embedding

#: Neighbours that make a row's ball; Naeem et al. find 5 to be enough.
_NEIGHBORS = 5
_ROWS = 1500


class Coverage(Distance):
    """The share of the downstream rows that upstream does not cover, from 0 to 1."""

    title = "1 − coverage"
    symmetric = False

    def pair(self, upstream: Embedding, downstream: Embedding) -> CoveragePair:
        """See :meth:`Distance.pair`."""
        return CoveragePair(upstream, downstream, seed=self.seed)


class CoveragePair(Pair):
    """Distances among and between samples of rows of either embedding.

    Around every row is a ball that reaches to its 5th nearest neighbour in its own set. As many rows of either set are
    taken: the more there are of one, the more of the other it covers.

    Args:
        upstream: Embedding of the upstream dataset.
        downstream: Embedding of the downstream dataset.
        seed: Seed of the draw of rows.
    """

    bias_falls_with_size = False

    def __init__(self, upstream: Embedding, downstream: Embedding, *, seed: int) -> None:
        super().__init__(upstream, downstream)
        rows = min(_ROWS, len(upstream.row_weights), len(downstream.row_weights))
        x, self._x_weights, self._x_blocks = sample_rows(upstream, rows, seed)
        y, self._y_weights, self._y_blocks = sample_rows(downstream, rows, seed)
        self._xx, self._yy, self._xy = euclidean_distances(x), euclidean_distances(y), euclidean_distances(x, y)

    def value(self, upstream: Kept = None, downstream: Kept = None) -> Value:
        """Returns 1 - coverage, the share of downstream balls that hold an upstream row.

        Its terms are ``coverage``; ``precision``, the share of upstream rows in some downstream ball; and ``recall``,
        the share of downstream rows in some upstream ball.
        """
        x, y = _chosen(self._x_blocks, upstream), _chosen(self._y_blocks, downstream)
        between = self._xy[np.ix_(x, y)]
        in_downstream = between <= _radii(self._yy[np.ix_(y, y)])
        in_upstream = between <= _radii(self._xx[np.ix_(x, x)])[:, None]
        terms = {
            "coverage": np.average(in_downstream.any(axis=0), weights=self._y_weights[y]),
            "precision": np.average(in_downstream.any(axis=1), weights=self._x_weights[x]),
            "recall": np.average(in_upstream.any(axis=0), weights=self._y_weights[y]),
        }
        return Value(float(1 - terms["coverage"]), {name: float(term) for name, term in terms.items()})


def _chosen(blocks: np.ndarray, kept: Kept) -> np.ndarray:
    return np.arange(len(blocks)) if kept is None else np.flatnonzero(np.isin(blocks, kept))


def _radii(distances: np.ndarray) -> np.ndarray:
    """Distance of each row to its 5th nearest neighbour, or to the farthest where there are fewer."""
    # Every row is nearest to itself.
    nearest = min(_NEIGHBORS, len(distances) - 1)
    return np.partition(distances, nearest, axis=1)[:, nearest]
