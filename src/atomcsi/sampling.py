"""Which structures of a dataset are embedded (paper, section 1), and how they are resampled."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Sample:
    """A sample with repetition: each structure once, with how often it was drawn.

    Attributes:
        indices: Positions of the structures, ascending, shape (distinct structures,).
        multiplicity: How often each was drawn, at least 1, shape (distinct structures,).
    """

    indices: np.ndarray
    multiplicity: np.ndarray

    def __len__(self) -> int:
        """Number of structures drawn, repetitions counted."""
        return int(self.multiplicity.sum())


Method = Literal["balanced", "random", "stratified"]
Resample = Literal["structures", "classes"]
Aggregation = Literal["flat", "mean", "sum", "max"]


def draw(method: Method, classes: np.ndarray, structures: int, seed: int) -> Sample:
    """Draws a sample of structures.

    Args:
        method: ``random``: without repetition, at most all of them. ``balanced``: floor(N / K) of each of the K
            classes, with repetition where a class is smaller, then at most one more per class to reach N; if
            K > N, one of each class, and of those N at random. ``stratified``: as ``random``, but each class has
            its share of the population, rounded.
        classes: Class of every structure, shape (population,).
        structures: N.
        seed: Seed of the draw.
    """
    generator = np.random.default_rng(seed)
    population = len(classes)
    if method == "random":
        drawn = generator.choice(population, min(structures, population), replace=False)
    else:
        members = _members_by_class(classes)
        if method == "balanced":
            each, left = divmod(structures, len(members))
            quota = np.full(len(members), each)
            quota[generator.choice(len(members), left, replace=False)] += 1
        else:
            quota = apportion([len(group) for group in members], min(structures, population))
        drawn = np.concatenate([_take(generator, group, n) for group, n in zip(members, quota, strict=True) if n])
    indices, multiplicity = np.unique(drawn, return_counts=True)
    return Sample(indices, multiplicity)


def apportion(shares: Sequence[float], total: int) -> np.ndarray:
    """Splits ``total`` into whole numbers in proportion to ``shares``, by largest remainder (Hamilton's method).

    Each differs from its exact share by less than one; of equal remainders the first wins.
    """
    exact = np.asarray(shares, float) * (total / np.sum(shares))
    # What rounding leaves below a whole number must not cost it: 0.1 * 30 is 3.0000000000000004, others are below.
    quota = np.floor(exact + 1e-9).astype(int)
    quota[np.argsort(quota - exact, kind="stable")[: total - quota.sum()]] += 1
    return quota


def into_blocks(
    sample: Sample, classes: np.ndarray, blocks: int, resample: Resample, method: Method, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Deals the structures of a sample into random blocks of about equal size, for resampling.

    Args:
        sample: The sample.
        classes: Class of every structure of the population, shape (population,).
        blocks: Number of blocks. Fewer if there are fewer units, or if one of them is so heavy that blocks could not
            weigh the same; and even, so that halves can be made of them.
        resample: What is dealt as one: ``structures``, or whole ``classes`` where structures of one class are so
            alike that they tell little more than one of them, such as conformers.
        method: How the sample was drawn: where by class, every block gets its share of every class too.
        seed: Seed of the deal.

    Returns:
        An order of the sample's distinct structures in which they stand block by block, shape (distinct
        structures,), and the position of the first one of every block, and the end, shape (blocks + 1,).
    """
    generator = np.random.default_rng([seed, 1])
    drawn = classes[sample.indices]
    units = np.unique(drawn, return_inverse=True)[1] if resample == "classes" else np.arange(len(drawn))
    weights = np.bincount(units, sample.multiplicity).astype(int)
    blocks = min(blocks, int(weights.sum() // weights.max()))
    blocks -= blocks % 2 if blocks > 1 else 0
    # The heaviest first, each to the emptiest block; among units of one weight, the order is random.
    order = generator.permutation(len(weights))
    if resample == "structures" and method != "random":
        order = order[np.argsort(drawn[order], kind="stable")]
    order = order[np.argsort(-weights[order], kind="stable")]
    room = [(0, block) for block in range(blocks)]
    block_of = np.empty(len(weights), int)
    for unit in order.tolist():
        weight, block = heapq.heappop(room)
        block_of[unit] = block
        heapq.heappush(room, (weight + int(weights[unit]), block))
    block = block_of[units]
    return np.argsort(block, kind="stable"), np.concatenate([[0], np.cumsum(np.bincount(block, minlength=blocks))])


def _members_by_class(classes: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(classes, kind="stable")
    _, starts = np.unique(classes[order], return_index=True)
    return np.split(order, starts[1:])


def _take(generator: np.random.Generator, members: np.ndarray, n: int) -> np.ndarray:
    """All members as often as they fit into ``n``, and a random rest, so that repetitions are even."""
    whole, rest = divmod(n, len(members))
    return np.concatenate([np.tile(members, whole), generator.choice(members, rest, replace=False)])
