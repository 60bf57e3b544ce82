"""What the distances between means in a kernel's feature space share (Gretton et al. 2012)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from atomcsi.distances.base import Kept, Pair, Value
from atomcsi.embeddings import Embedding

#: Rows of each set that are compared with each other; their squares are what time and memory go into.
ROWS = 3000
#: From rows of one set (n, d) and of another (m, d) to their kernel matrix (n, m).
Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def sample_rows(embedding: Embedding, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws rows; returns their features (rows, d) in float64, how often each counts, and the block of each."""
    drawn = embedding.sample(rows, seed)
    return embedding.rows(drawn).astype(np.float64), embedding.row_weights[drawn], embedding.row_blocks[drawn]


class KernelPair(Pair):
    """The maximum mean discrepancy MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y), from sums of k over blocks.

    Args:
        upstream: Embedding of the upstream dataset.
        downstream: Embedding of the downstream dataset.
        kernel: Makes the kernel from the rows of both sets.
        seed: Seed of the draw of rows.
        unbiased: Leave each row's k with itself out, as KID does; the value can then be negative.
    """

    def __init__(
        self,
        upstream: Embedding,
        downstream: Embedding,
        kernel: Callable[[np.ndarray, np.ndarray], Kernel],
        *,
        seed: int,
        unbiased: bool = False,
    ) -> None:
        super().__init__(upstream, downstream)
        self._unbiased = unbiased
        x, x_weights, x_blocks = sample_rows(upstream, ROWS, seed)
        y, y_weights, y_blocks = sample_rows(downstream, ROWS, seed)
        k = kernel(x, y)
        a = _by_block(x_weights, x_blocks, upstream.blocks)
        b = _by_block(y_weights, y_blocks, downstream.blocks)
        kxx, kyy = k(x, x), k(y, y)
        self._cross = a.T @ k(x, y) @ b
        self._within = (a.T @ kxx @ a, b.T @ kyy @ b)
        self._weights = (a.sum(axis=0), b.sum(axis=0))
        self._itself = (np.square(a).T @ np.diag(kxx), np.square(b).T @ np.diag(kyy))
        self._squares = (np.square(a).sum(axis=0), np.square(b).sum(axis=0))

    def value(self, upstream: Kept = None, downstream: Kept = None) -> Value:
        """Returns the discrepancy."""
        kept = [
            np.arange(len(weights)) if blocks is None else np.asarray(blocks)
            for weights, blocks in zip(self._weights, (upstream, downstream), strict=True)
        ]
        totals = [weights[blocks].sum() for weights, blocks in zip(self._weights, kept, strict=True)]
        value = -2 * self._cross[np.ix_(*kept)].sum() / (totals[0] * totals[1])
        for side, blocks in enumerate(kept):
            within, pairs = self._within[side][np.ix_(blocks, blocks)].sum(), totals[side] ** 2
            if self._unbiased:
                within -= self._itself[side][blocks].sum()
                pairs -= self._squares[side][blocks].sum()
            value += within / pairs
        return Value(float(value))


def _by_block(weights: np.ndarray, blocks: np.ndarray, count: int) -> np.ndarray:
    """Weights of the rows in the column of each one's block, shape (rows, blocks)."""
    return np.where(blocks[:, None] == np.arange(count), weights[:, None], 0).astype(float)
