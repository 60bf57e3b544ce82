"""What every distance between two embedded datasets offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from atomcsi.embeddings import Embedding

#: Which blocks of an embedding count; None for all of it.
Kept = Sequence[int] | None


@dataclass(frozen=True)
class Value:
    """A distance, and what it is made of.

    Attributes:
        value: The distance; the smaller, the more alike.
        terms: Further numbers by name that say how it comes about.
    """

    value: float
    terms: Mapping[str, float] = field(default_factory=dict)


class Distance(ABC):
    """A way to compare two embedded datasets; constructed from keywords.

    Attributes:
        title: Name for readers.
        unit: Unit of the value, for readers; empty for a pure number.
        symmetric: Whether upstream and downstream may change places.

    Args:
        device: Where it computes, in PyTorch's terms; what is not worth it stays on the CPU.
        seed: Seed of every random choice.
    """

    title: ClassVar[str]
    unit: ClassVar[str] = ""
    symmetric: ClassVar[bool] = True

    def __init__(self, *, device: str = "cpu", seed: int = 0) -> None:
        self.device, self.seed = device, seed

    @abstractmethod
    def pair(self, upstream: Embedding, downstream: Embedding) -> Pair:
        """Prepares two embeddings of the same extractor for being compared, as a whole and in parts."""


class Pair(ABC):
    """Two embeddings whose distance can be measured on any of their blocks.

    Attributes:
        splits: How many random halvings of the data are worth their time.
        bias_falls_with_size: Whether the distance of samples of N structures exceeds that of the populations by about
            b / N, so that it can be extrapolated.
    """

    splits: int = 10
    bias_falls_with_size: ClassVar[bool] = True

    def __init__(self, upstream: Embedding, downstream: Embedding) -> None:
        if upstream.dim != downstream.dim:
            raise ValueError(f"features of dimension {upstream.dim} and {downstream.dim} cannot be compared")
        self.upstream, self.downstream = upstream, downstream

    @abstractmethod
    def value(self, upstream: Kept = None, downstream: Kept = None) -> Value:
        """Measures the distance between the given blocks of either embedding."""

    def influences(self) -> tuple[np.ndarray, np.ndarray]:
        """How much each block of either embedding moves the distance, shapes (blocks,).

        The variance of the distance is blocks / (blocks - 1) times the sum of their squares, summed over both sides:
        the delete-one jackknife (Tukey 1958), unless a distance knows its derivative.
        """
        sides = []
        for side in ("upstream", "downstream"):
            blocks = range(getattr(self, side).blocks)
            values = np.array([self.value(**{side: [b for b in blocks if b != out]}).value for out in blocks])
            sides.append((len(blocks) - 1) / len(blocks) * (values.mean() - values))
        return sides[0], sides[1]

    def elements(self) -> list[dict[str, Any]]:
        """Which elements make the distance; nothing for distances that cannot tell."""
        return []
