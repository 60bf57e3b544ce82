"""How well one order of things agrees with another, over many draws at once.

Spearman's and Kendall's coefficients are cosines: of the ranks around their mean, and of the signs of the differences
of all pairs (tau-b, Kendall 1945). Of several tasks together they are the cosines of what the tasks give, one after
the other: ranks around their own task's mean, and pairs of the same task only, so that errors of different tasks are
never compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np
from scipy.stats import rankdata

#: Things of which all orders are gone through; of more, so many orders are drawn at random.
_MOST_ORDERED, _ORDERS = 8, 20_000
#: Coefficients that differ by less are equal.
_ROUNDING = 1e-9


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks around their mean, equal values sharing theirs; shape (..., n) as the values."""
    found = rankdata(values, axis=-1)
    return found - found.mean(axis=-1, keepdims=True)


def signs(values: np.ndarray) -> np.ndarray:
    """Signs of the differences of all pairs, shape (..., n (n - 1) / 2) of values of shape (..., n)."""
    first, second = np.triu_indices(values.shape[-1], 1)
    return np.sign(values[..., first] - values[..., second])


#: The coefficients by name, each as what it is the cosine of.
COEFFICIENTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"spearman": ranks, "kendall": signs}


def agreement(kind: str, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> np.ndarray:
    """Rank correlation of one or several tasks.

    Args:
        kind: ``spearman`` or ``kendall``.
        ours: Values to order by, of each task shape (..., n).
        theirs: The same of the other order; leading axes are broadcast.

    Returns:
        Coefficients of shape (...). Tasks with nothing to order, for all values are equal, do not count; NaN where
        there are no others.
    """
    form = COEFFICIENTS[kind]
    product = own = other = np.zeros(())
    for a, b in zip(map(form, ours), map(form, theirs), strict=True):
        counts = a.any(axis=-1) & b.any(axis=-1)
        product = product + counts * (a * b).sum(axis=-1)
        own = own + counts * np.square(a).sum(axis=-1)
        other = other + counts * np.square(b).sum(axis=-1)
    size = np.sqrt(own * other)
    return np.divide(product, size, out=np.full(np.shape(size), np.nan), where=size > 0)


def permutation_p(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], *, seed: int = 0) -> float:
    """Two-sided p-value of Spearman's coefficient: how likely one so extreme is if the order is nothing but chance.

    The n things change places in all tasks at once, for they are the same in every task: an upstream that is good for
    one task is likely to be good for the next, so that many tasks are little more evidence than one. All n! orders are
    gone through if n is at most 8, so that the p-value is exact: twice the share of those that are as high, or as low
    if these are fewer. It is never below 2 / n!.

    Args:
        ours: Values to order by, of each task shape (n,), of the same things in the same order.
        theirs: The same of the other order.
        seed: Seed of the orders that are drawn where n is larger.

    Returns:
        NaN where no order can be told.
    """
    n = len(ours[0])
    observed = float(agreement("spearman", ours, theirs))
    if math.isnan(observed):
        return math.nan
    if n <= _MOST_ORDERED:
        orders = np.array(list(permutations(range(n))))
    else:
        generator = np.random.default_rng(seed)
        orders = np.vstack([np.arange(n), generator.permuted(np.tile(np.arange(n), (_ORDERS, 1)), axis=1)])
    chance = agreement("spearman", ours, [values[orders] for values in theirs])
    shares = (chance >= observed - _ROUNDING).mean(), (chance <= observed + _ROUNDING).mean()
    return min(2 * float(min(shares)), 1.0)


def regrets(errors: np.ndarray) -> np.ndarray:
    """How much larger each error is than the least along the last axis: 0 for the best."""
    return errors / errors.min(axis=-1, keepdims=True) - 1
