"""Which structures of a dataset are embedded (paper, section 1)."""

from __future__ import annotations

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


def draw(method: Literal["balanced", "random"], classes: np.ndarray, structures: int, seed: int) -> Sample:
    """Draws a sample of structures.

    Args:
        method: ``random``: without repetition, at most all of them. ``balanced``: floor(N / K) of each of the K
            classes, with repetition where a class is smaller, then at most one more per class to reach N; if
            K > N, one of each class, and of those N at random.
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
        each, left = divmod(structures, len(members))
        quota = np.full(len(members), each)
        quota[generator.choice(len(members), left, replace=False)] += 1
        drawn = np.concatenate([_take(generator, group, n) for group, n in zip(members, quota, strict=True) if n])
    indices, multiplicity = np.unique(drawn, return_counts=True)
    return Sample(indices, multiplicity)


def _members_by_class(classes: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(classes, kind="stable")
    _, starts = np.unique(classes[order], return_index=True)
    return np.split(order, starts[1:])


def _take(generator: np.random.Generator, members: np.ndarray, n: int) -> np.ndarray:
    """All members as often as they fit into ``n``, and a random rest, so that repetitions are even."""
    whole, rest = divmod(n, len(members))
    return np.concatenate([np.tile(members, whole), generator.choice(members, rest, replace=False)])
