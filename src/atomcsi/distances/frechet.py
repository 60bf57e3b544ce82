"""The Fréchet distance between two Gaussians: the Chemical Similarity Index (CSI) of arXiv 2502.11085."""

from __future__ import annotations

from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from atomcsi.distances.base import Distance, Kept, Pair, Value
from atomcsi.embeddings import Embedding
from atomcsi.moments import Moments

#: Floating-point operations spent on telling which elements make a CSI; beyond that, a sample of the atoms does.
_ELEMENT_FLOPS = 2e11
#: What a covariance term must exceed, in units of the traces.
_ROUNDING = 1e-12
#: Megabytes of rows that are held to tell which elements make a CSI.
_ELEMENT_MEGABYTES = 200
#: Beyond this many features, a Fréchet distance takes seconds rather than milliseconds.
_LARGE = 1024


class Frechet(Distance):
    """CSI: the squared 2-Wasserstein distance of the Gaussians with the moments of either set's features."""

    title = "CSI"
    unit = "squared feature units"

    def pair(self, upstream: Embedding, downstream: Embedding) -> FrechetPair:
        """See :meth:`Distance.pair`."""
        return FrechetPair(upstream, downstream, device=self.device)


class FrechetPair(Pair):
    """Two embeddings seen through their moments; rows are only read to tell which elements matter.

    Args:
        upstream: Embedding of the upstream dataset.
        downstream: Embedding of the downstream dataset.
        device: Where it computes.
        dim: Use the first ``dim`` features only; all by default.
    """

    def __init__(
        self, upstream: Embedding, downstream: Embedding, *, device: str = "cpu", dim: int | None = None
    ) -> None:
        super().__init__(upstream, downstream)
        self.device, self.dim = device, upstream.dim if dim is None else dim
        self.splits = 3 if self.dim > _LARGE else Pair.splits

    def value(self, upstream: Kept = None, downstream: Kept = None) -> Value:
        """Returns CSI with its ``mean_term`` and ``covariance_term``."""
        return frechet(
            self._moments(self.upstream, upstream), self._moments(self.downstream, downstream), device=self.device
        )

    def influences(self) -> tuple[np.ndarray, np.ndarray]:
        """Directional derivatives of CSI towards each block's moments (infinitesimal jackknife, Jaeckel 1972).

        CSI's derivative by the covariance of one set is I - T, with T the map of :func:`transport` to the other.
        """
        there, back = self._transports
        return (
            self._influence(self.upstream, self.downstream, there),
            self._influence(self.downstream, self.upstream, back),
        )

    @cached_property
    def _transports(self) -> tuple[np.ndarray, np.ndarray]:
        """The maps from upstream to downstream, and back."""
        a, b = self._moments(self.upstream, None), self._moments(self.downstream, None)
        return transport(a, b, device=self.device), transport(b, a, device=self.device)

    def _influence(self, this: Embedding, other: Embedding, plan: np.ndarray) -> np.ndarray:
        a, b = self._moments(this, None), self._moments(other, None)
        slope = np.eye(self.dim) - plan
        found = np.empty(this.blocks)
        for block in range(this.blocks):
            part = self._moments(this, [block])
            shift = part.mean - a.mean
            spread = (slope * part.scatter).sum() / part.count + shift @ slope @ shift
            change = 2 * (a.mean - b.mean) @ shift + spread - (slope * a.scatter).sum() / a.count
            found[block] = part.count / a.count * change
        return found

    def elements(self) -> list[dict[str, Any]]:
        """CSI per element: what carrying the atoms of each element over to the other set costs.

        The Gaussian optimal transport (:func:`transport`) carries an atom with features x to T(x) = m2 + T (x - m1);
        the mean of ``|x - T(x)|^2`` over all atoms of a set is CSI. Summed over elements it is CSI again, for either
        set.

        Returns:
            For each element its ``symbol``, and for ``upstream`` and ``downstream`` its share of the atoms
            (``upstream_share``) and its part of CSI (``upstream_csi``); the largest part first. Nothing where rows
            are not atoms, or CSI is zero.
        """
        if not self.upstream.flat:
            return []
        csi = self.value().value
        if csi == 0:
            return []
        there, back = self._transports
        shares = {side: _shares(getattr(self, side)) for side in ("upstream", "downstream")}
        parts = {
            "upstream": self._transport_costs(self.upstream, self.downstream, there, csi),
            "downstream": self._transport_costs(self.downstream, self.upstream, back, csi),
        }
        rows = [
            {"symbol": chemical_symbols[z]}
            | {f"{side}_share": shares[side].get(z, 0.0) for side in shares}
            | {f"{side}_csi": parts[side].get(z, 0.0) for side in parts}
            for z in sorted(shares["upstream"].keys() | shares["downstream"].keys())
        ]
        return sorted(rows, key=lambda row: -max(row["upstream_csi"], row["downstream_csi"]))

    def _transport_costs(self, this: Embedding, other: Embedding, plan: np.ndarray, csi: float) -> dict[int, float]:
        a, b = self._moments(this, None), self._moments(other, None)
        limits = _ELEMENT_FLOPS / (2 * self.dim**2), _ELEMENT_MEGABYTES * 1e6 / (4 * this.dim)
        drawn = this.sample(int(min(limits)) + 1, seed=0)
        rows, weights = this.rows(drawn)[:, : self.dim], this.row_weights[drawn]
        costs = np.empty(len(rows))
        for start in range(0, len(rows), 4096):
            centred = rows[start : start + 4096] - a.mean
            costs[start : start + 4096] = np.square(centred - centred @ plan + (a.mean - b.mean)).sum(axis=1)
        # Where b spreads in directions in which a has no extent, an atom of a goes to many places at once.
        costs += max(np.trace(b.covariance) - (plan @ plan * a.covariance).sum(), 0.0)
        totals = np.bincount(this.numbers[drawn], costs * weights)
        return {int(z): float(csi * totals[z] / totals.sum()) for z in np.flatnonzero(totals)}

    def _moments(self, embedding: Embedding, kept: Kept) -> Moments:
        if kept is None:
            return embedding.moments.leading(self.dim)
        return Moments.merged((embedding.block_moments(block).leading(self.dim) for block in kept), self.dim)


def _shares(embedding: Embedding) -> dict[int, float]:
    counts = np.bincount(embedding.numbers, embedding.row_weights)
    return {int(z): float(counts[z] / counts.sum()) for z in np.flatnonzero(counts)}


def frechet(a: Moments, b: Moments, *, device: str = "cpu") -> Value:
    """Returns ``|m1 - m2|^2 + Tr S1 + Tr S2 - 2 Tr (S1 S2)^(1/2)`` (Dowson and Landau 1982; paper, section 1).

    With S1 = L L^T, the eigenvalues of S1 S2 are those of the symmetric matrix L^T S2 L, so the last trace is the sum
    of their square roots: no square root of a non-symmetric matrix, and covariances of any rank. Directions in which
    both sets hardly vary (1e-8 of the largest variance) are lost to rounding, as in any way of computing it.

    Args:
        a: Moments of one set.
        b: Moments of the other.
        device: ``cpu``, or a GPU in PyTorch's terms.

    Returns:
        The distance in squared feature units; its terms ``mean_term``, the squared distance of the means, and
        ``covariance_term``, what the covariances add.

    Raises:
        ValueError: The feature dimensions differ.
    """
    if a.dim != b.dim:
        raise ValueError(f"features of dimension {a.dim} and {b.dim} cannot be compared")
    mean_term = float(np.square(a.mean - b.mean).sum())
    # The set of fewer rows has the lower rank as a rule, and then its factor has fewer columns.
    few, many = sorted((a, b), key=lambda moments: moments.count)
    traces = np.trace(a.scatter) / a.freedom + np.trace(b.scatter) / b.freedom
    xp, factor = _library(device), _factor(few, device)
    squares = xp.linalg.eigvalsh(factor.T @ (xp.asarray(many.scatter, device=device) @ factor)) / many.freedom
    covariance_term = float(traces - 2 * (squares.clip(0) ** 0.5).sum())
    # What is left of the traces when they cancel is rounding, not a distance.
    covariance_term = 0.0 if covariance_term < _ROUNDING * traces else covariance_term
    return Value(mean_term + covariance_term, {"mean_term": mean_term, "covariance_term": covariance_term})


def transport(a: Moments, b: Moments, *, device: str = "cpu") -> np.ndarray:
    """Returns T of the optimal map x -> m_b + T (x - m_a) from the Gaussian of a to that of b (Knott and Smith 1984).

    T = S_b^(1/2) (S_b^(1/2) S_a S_b^(1/2))^(-1/2) S_b^(1/2), symmetric, shape (d, d), in terms of any factor of S_b
    and with a pseudo-inverse: where a has no extent, nothing is carried.
    """
    xp, factor = _library(device), _factor(b, device)
    if not factor.shape[1]:
        return np.zeros((b.dim, b.dim))
    squares, vectors = xp.linalg.eigh(factor.T @ (xp.asarray(a.covariance, device=device) @ factor))
    kept = squares > squares.max() * len(squares) * np.finfo(float).eps
    root = (factor @ vectors[:, kept]) * squares[kept] ** -0.25
    matrix = root @ root.T
    return matrix if device == "cpu" else matrix.cpu().numpy()


def _library(device: str) -> ModuleType:
    """NumPy or PyTorch, which name alike what is used here; importing torch takes seconds that a CPU does without."""
    return np if device == "cpu" else import_module("torch")


def _factor(moments: Moments, device: str) -> Any:
    """Returns L, shape (d, rank), with L L^T the covariance.

    By Cholesky where the covariance is regular; otherwise by its eigenvectors, without those of rounding alone.
    """
    xp = _library(device)
    scatter = xp.asarray(moments.scatter, device=device)
    if moments.count > moments.dim:
        try:
            return xp.linalg.cholesky(scatter) * moments.freedom**-0.5
        except xp.linalg.LinAlgError:  # singular all the same: features that are constant or depend on each other
            pass
    eigenvalues, vectors = xp.linalg.eigh(scatter)
    kept = eigenvalues > eigenvalues.max() * moments.dim * np.finfo(float).eps
    return vectors[:, kept] * (eigenvalues[kept] / moments.freedom) ** 0.5
