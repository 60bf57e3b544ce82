"""Maximum mean discrepancy with a Gaussian kernel (Gretton et al. 2012), one of the paper's ablations."""

from __future__ import annotations

from functools import partial

import numpy as np
from sklearn.metrics.pairwise import euclidean_distances, rbf_kernel

from atomcsi.distances.base import Distance
from atomcsi.distances.kernel import Kernel, KernelPair
from atomcsi.embeddings import Embedding

#: Rows of either set from which the median distance is taken.
_MEDIAN_ROWS = 1000


class RbfMmd(Distance):
    """MMD^2 with k(x, y) = exp(-|x - y|^2 / (2 s^2)), s the median distance between rows of both sets together."""

    title = "MMD² (RBF)"

    def pair(self, upstream: Embedding, downstream: Embedding) -> KernelPair:
        """See :meth:`Distance.pair`."""
        return KernelPair(upstream, downstream, _median_rbf, seed=self.seed)


def _median_rbf(x: np.ndarray, y: np.ndarray) -> Kernel:
    # Rows come in the file's order, which is random between blocks: evenly spaced ones are from all of them.
    both = np.concatenate([rows[:: -(-len(rows) // _MEDIAN_ROWS)] for rows in (x, y)])
    squares = euclidean_distances(both, squared=True)[np.triu_indices(len(both), 1)]
    return partial(rbf_kernel, gamma=1 / (2 * (np.median(squares) or 1.0)))
