"""The Fréchet distance of the rotation-invariant features alone."""

from __future__ import annotations

from atomcsi.distances.frechet import Frechet, FrechetPair
from atomcsi.embeddings import Embedding


class InvariantFrechet(Frechet):
    """CSI of the coefficients of degree 0 (l = 0), which come first in equivariant embeddings.

    The other coefficients turn with the structure: CSI of all of them also tells how the structures of two sets are
    oriented. For invariant extractors this is CSI.
    """

    title = "CSI (l = 0)"

    def pair(self, upstream: Embedding, downstream: Embedding) -> FrechetPair:
        """See :meth:`Distance.pair`."""
        return FrechetPair(upstream, downstream, device=self.device, dim=upstream.provenance["invariant_dim"])
