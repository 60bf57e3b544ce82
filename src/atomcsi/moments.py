"""Mean and scatter of a stream of feature vectors, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Moments:
    """Count, mean and scatter matrix of weighted rows, merged without a second pass.

    The update is the pairwise one of Chan, Golub and LeVeque (1979), so that neither the number of rows nor a
    large mean costs precision.

    Attributes:
        count: Number of rows, repetitions counted.
        mean: Mean of the rows, shape (d,), float64.
        scatter: Sum of the outer products of the centred rows, shape (d, d), float64.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def zero(cls, dim: int) -> Moments:
        """Moments of no rows of length ``dim``."""
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    @classmethod
    def of(cls, rows: np.ndarray, weights: np.ndarray | None = None) -> Moments:
        """Moments of ``rows``, shape (rows, d), each counted ``weights`` times (integers, shape (rows,))."""
        rows = np.asarray(rows, dtype=np.float64)
        weights = np.ones(len(rows), dtype=np.int64) if weights is None else weights
        count = int(weights.sum())
        if count == 0:
            return cls.zero(rows.shape[1])
        mean = weights @ rows / count
        centred = rows - mean
        return cls(count, mean, centred.T @ (centred * weights[:, None]))

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets of rows together."""
        count = self.count + other.count
        if count == 0:
            return self
        shift = other.mean - self.mean
        share = other.count / count
        scatter = self.scatter + other.scatter + np.outer(shift, shift) * (self.count * share)
        return Moments(count, self.mean + shift * share, scatter)

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance matrix, shape (d, d); zero for a single row."""
        return self.scatter / max(self.count - 1, 1)
