"""The Fréchet distance between two Gaussians: the Chemical Similarity Index of arXiv 2502.11085."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from atomcsi.moments import Moments


@dataclass(frozen=True)
class Distance:
    """A distance and the two terms it is the sum of.

    Attributes:
        value: The distance; for CSI in squared feature units.
        mean_term: Squared distance of the means.
        covariance_term: What the covariances add.
    """

    value: float
    mean_term: float
    covariance_term: float


def frechet(a: Moments, b: Moments) -> Distance:
    """Returns |m1 - m2|^2 + Tr S1 + Tr S2 - 2 Tr (S1 S2)^(1/2) (Dowson and Landau 1982; paper, section 1).

    With S = L L^T the eigenvalues of S1 S2 are the squared singular values of L1^T L2, so the last trace is their
    sum: no square root of a non-symmetric matrix, and covariances of any rank.

    Raises:
        ValueError: The feature dimensions differ.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of dimension {len(a.mean)} and {len(b.mean)} cannot be compared")
    mean_term = float(np.square(a.mean - b.mean).sum())
    cross = linalg.svdvals(_factor(a.covariance).T @ _factor(b.covariance)).sum()
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    covariance_term = max(float(traces - 2 * cross), 0.0)
    return Distance(mean_term + covariance_term, mean_term, covariance_term)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """Returns L with L L^T = covariance; rounding makes eigenvalues of a singular one slightly negative."""
    eigenvalues, vectors = linalg.eigh(covariance)
    return vectors * np.sqrt(np.clip(eigenvalues, 0.0, None))
