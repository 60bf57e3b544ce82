"""Elements as features: what a distance sees that knows nothing of geometry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atomcsi.extractors.base import Extractor
from atomcsi.structure import MAX_ATOMIC_NUMBER, Structure


class CompositionExtractor(Extractor):
    """One feature per element: 1 for the atom's own, 0 for the others."""

    dim = MAX_ATOMIC_NUMBER
    elements = frozenset(range(1, MAX_ATOMIC_NUMBER + 1))

    def _rows(self, structures: Sequence[Structure]) -> np.ndarray:
        numbers = np.concatenate([structure.numbers for structure in structures])
        return np.eye(self.dim, dtype=np.float32)[numbers - 1]
