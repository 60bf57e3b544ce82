"""The kernel inception distance (Binkowski et al. 2018) on embeddings of atoms."""

from __future__ import annotations

from sklearn.metrics.pairwise import polynomial_kernel

from atomcsi.distances.base import Distance
from atomcsi.distances.kernel import KernelPair
from atomcsi.embeddings import Embedding


class Kid(Distance):
    """The unbiased MMD^2 with k(x, y) = (x.y / d + 1)^3; it may be negative for sets that are alike."""

    title = "KID (polynomial MMD²)"

    def pair(self, upstream: Embedding, downstream: Embedding) -> KernelPair:
        """See :meth:`Distance.pair`."""
        return KernelPair(upstream, downstream, lambda x, y: polynomial_kernel, seed=self.seed, unbiased=True)
