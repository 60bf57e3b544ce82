"""How sure a distance is, and with it a choice: bias with sample size, confidence intervals, P(best).

Structures (or classes) are resampled, never atoms: the atoms of a structure resemble each other. Both embeddings are
cut into random blocks of structures, and everything here is made from distances between some of the blocks.

*Bias.* A distance between samples of N structures exceeds that between the populations by about b / N. Random halves
of the data have twice the bias, so their mean distance extrapolates to 1/N = 0. Quarters tell whether that law holds
yet: with N not much larger than the number of features the bias falls more slowly, and what the law misses widens the
interval.

*Variance.* The jackknife over blocks. For a distance near zero, which its samples move in second order only, it is
too large: with V1 and V2 the parts of the variance of first and second order, it expects V1 + 2 V2 (Efron and Stein
1981). V2 is known from the halvings: each takes into account the products of one half with the other only, so that
they scatter around their mean as that mean does around the truth (it is a U-statistic of degree 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from atomcsi.distances.base import Pair, Value

#: Fewer blocks than these say nothing about their spread.
LEAST_BLOCKS = 4
#: Draws by which the probability of being the best is counted: its standard error is below 0.002.
_DRAWS = 100_000


@dataclass(frozen=True)
class Estimate:
    """A distance with its error bar; all but ``found`` are NaN or empty if there are too few blocks.

    Attributes:
        found: The distance between the samples.
        corrected: The distance extrapolated to infinitely many structures of both sets.
        by_share: Share of the structures -> mean distance between such parts of the samples; 1 for all of them.
        halvings: The corrected distance by each halving, shape (halvings,).
        bias_error: How much the bias is uncertain, because it does not fall with 1/N yet.
        upstream: What each upstream block moves it by, shape (blocks,); see :meth:`Pair.influences`.
        downstream: The same of the downstream blocks.
    """

    found: Value
    corrected: float
    by_share: dict[float, float]
    halvings: np.ndarray
    bias_error: float
    upstream: np.ndarray
    downstream: np.ndarray

    @property
    def known(self) -> bool:
        """Whether there is an error bar."""
        return len(self.halvings) > 0

    @property
    def standard_error(self) -> float:
        """Standard error of ``corrected``."""
        return math.sqrt(self.variance) if self.known else math.nan

    @property
    def variance(self) -> float:
        """Variance of ``corrected``."""
        jackknife = _jackknife(self.upstream, self.upstream) + _jackknife(self.downstream, self.downstream)
        second_order = float(self.halvings.var(ddof=1))
        sampling = max(jackknife - second_order, second_order) + second_order / len(self.halvings)
        return sampling + self.bias_error**2

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of the distance between the populations; never below zero."""
        if not self.known:
            return math.nan, math.nan
        width = stats.t.ppf((1 + level) / 2, self.degrees_of_freedom) * self.standard_error
        return max(self.corrected - width, 0.0), max(self.corrected + width, 0.0)

    @property
    def degrees_of_freedom(self) -> float:
        """Satterthwaite's (1946), of a sum of variances that are known from few blocks each."""
        parts = [(_jackknife(side, side), len(side) - 1) for side in (self.upstream, self.downstream)]
        total = sum(variance for variance, _ in parts)
        return total**2 / sum(variance**2 / freedom for variance, freedom in parts) if total > 0 else math.inf


def estimate(pair: Pair, *, seed: int = 0) -> Estimate:
    """Measures a pair with its error bar.

    Args:
        pair: The pair.
        seed: Seed of the halvings. With the same seed, pairs of one downstream set halve it alike, so that their
            errors can be compared.
    """
    found = pair.value()
    blocks = pair.upstream.blocks, pair.downstream.blocks
    if min(blocks) < LEAST_BLOCKS:
        nothing = np.empty(0)
        return Estimate(found, math.nan, {1.0: found.value}, nothing, math.nan, nothing, nothing)
    generators = [np.random.default_rng([seed, count]) for count in blocks]
    halves, quarters = [], []
    for _ in range(pair.splits):
        orders = [generator.permutation(count) for generator, count in zip(generators, blocks, strict=True)]
        halves.append(_mean_over_parts(pair, orders, 2))
        quarters.append(_mean_over_parts(pair, orders, 4))
    half, quarter = float(np.mean(halves)), float(np.mean(quarters))
    law = pair.bias_falls_with_size
    upstream, downstream = pair.influences()
    return Estimate(
        found=found,
        corrected=2 * found.value - half if law else found.value,
        by_share={1.0: found.value, 0.5: half, 0.25: quarter},
        halvings=2 * found.value - np.array(halves) if law else np.full(len(halves), found.value),
        bias_error=_bias_error(found.value, half, quarter) if law else 0.0,
        upstream=upstream,
        downstream=downstream,
    )


def _mean_over_parts(pair: Pair, orders: Sequence[np.ndarray], parts: int) -> float:
    """Mean distance between two parts of either side, each a share ``1 / parts`` of the blocks in this order."""
    upstream, downstream = (np.array_split(order, parts)[:2] for order in orders)
    return float(np.mean([pair.value(a.tolist(), b.tolist()).value for a, b in zip(upstream, downstream, strict=True)]))


def _bias_error(whole: float, half: float, quarter: float) -> float:
    """How far the bias of the whole may be from ``half - whole``, which it is where it falls with 1/N.

    If it falls with N to the power -a, from halves to quarters it grows by 2^a times what it grows from the whole to
    halves, and is ``(half - whole) / (2^a - 1)`` (Aitken's extrapolation); a is taken between 1/2 and 2.
    """
    step = half - whole
    if step <= 0:
        return 0.0
    growth = float(np.clip((quarter - half) / step, math.sqrt(2), 4.0))
    return abs(step / (growth - 1) - step)


def covariance(estimates: Sequence[Estimate]) -> np.ndarray:
    """Covariance matrix of the corrected distances of several upstreams to one downstream set.

    Upstream sets err independently of each other; the downstream set's error is common to all.

    Returns:
        Shape (estimates, estimates).
    """
    found = np.array([[_jackknife(a.downstream, b.downstream) for b in estimates] for a in estimates])
    found += np.diag([_jackknife(each.upstream, each.upstream) for each in estimates])
    # The jackknife's correlations, with variances that are right for small distances too.
    deviations, variances = np.sqrt(np.diag(found)), np.array([each.variance for each in estimates])
    scale = np.sqrt(variances) / np.where(deviations > 0, deviations, 1.0)
    return found * np.outer(scale, scale)


def _jackknife(a: np.ndarray, b: np.ndarray) -> float:
    return len(a) / (len(a) - 1) * float(a @ b)


def probability_best(estimates: Sequence[Estimate], *, seed: int = 0) -> np.ndarray:
    """Probability that each upstream is the one of least distance, given the errors of all, shape (estimates,).

    It is counted over draws from Student's t with the corrected distances' covariance and their least degrees of
    freedom; what draws as near as another shares with it. NaN where an estimate has no error bar.
    """
    if not all(each.known for each in estimates):
        return np.full(len(estimates), math.nan)
    generator = np.random.default_rng(seed)
    errors = generator.multivariate_normal(np.zeros(len(estimates)), covariance(estimates), _DRAWS, method="eigh")
    freedom = min(each.degrees_of_freedom for each in estimates)
    if math.isfinite(freedom):
        errors *= np.sqrt(freedom / generator.chisquare(freedom, size=(_DRAWS, 1)))
    draws = np.array([each.corrected for each in estimates]) + errors
    nearest = draws == draws.min(axis=1, keepdims=True)
    return (nearest / nearest.sum(axis=1, keepdims=True)).mean(axis=0)


def difference(a: Estimate, b: Estimate, level: float = 0.95) -> tuple[float, float, float]:
    """How much farther b is than a (corrected distances to the same downstream set), with its confidence interval."""
    if not (a.known and b.known):
        return math.nan, math.nan, math.nan
    matrix = covariance([a, b])
    error = math.sqrt(max(matrix[0, 0] + matrix[1, 1] - 2 * matrix[0, 1], 0.0))
    gap = b.corrected - a.corrected
    width = stats.t.ppf((1 + level) / 2, min(a.degrees_of_freedom, b.degrees_of_freedom)) * error
    return gap, gap - width, gap + width
