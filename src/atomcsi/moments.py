"""Mean and scatter of a stream of feature vectors, in float64."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

#: Rows that are turned into float64 at a time: 100 MB at 3200 features.
_SLICE = 4096


@dataclass(frozen=True)
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
        """Moments of ``rows``, shape (rows, d), each counted ``weights`` times (integers, shape (rows,)).

        Memory beyond the rows is that of a few d x d matrices, however many rows there are.
        """
        weights = np.ones(len(rows), dtype=np.int64) if weights is None else weights
        found = cls.zero(rows.shape[1])
        for start in range(0, len(rows), _SLICE):
            found += cls._of_slice(rows[start : start + _SLICE], weights[start : start + _SLICE])
        return found

    @classmethod
    def _of_slice(cls, rows: np.ndarray, weights: np.ndarray) -> Moments:
        rows = np.asarray(rows, dtype=np.float64)
        count = int(weights.sum())
        if count == 0:
            return cls.zero(rows.shape[1])
        mean = weights @ rows / count
        # One factor for both sides: a product of a matrix with its own transpose takes half the time.
        centred = (rows - mean) * np.sqrt(weights)[:, None]
        return cls(count, mean, centred.T @ centred)

    @classmethod
    def merged(cls, parts: Iterable[Moments], dim: int) -> Moments:
        """Moments of all the parts' rows together; each part is held only while it is added."""
        found = cls.zero(dim)
        for part in parts:
            found += part
        return found

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets of rows together."""
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        count = self.count + other.count
        shift = other.mean - self.mean
        share = other.count / count
        scatter = np.outer(shift * (self.count * share), shift)
        scatter += self.scatter
        scatter += other.scatter
        return Moments(count, self.mean + shift * share, scatter)

    @property
    def dim(self) -> int:
        """Number of features, d."""
        return len(self.mean)

    @property
    def freedom(self) -> int:
        """What the scatter is divided by for an unbiased covariance: one less than the number of rows."""
        return max(self.count - 1, 1)

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance matrix, shape (d, d); zero for a single row."""
        return self.scatter / self.freedom

    def leading(self, dim: int) -> Moments:
        """Moments of the first ``dim`` features alone."""
        return Moments(self.count, self.mean[:dim], self.scatter[:dim, :dim])
