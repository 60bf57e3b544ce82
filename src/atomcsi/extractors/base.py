"""What every feature extractor offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from atomcsi.errors import AtomcsiError, ConfigError
from atomcsi.models.neighbours import neighbours
from atomcsi.structure import Structure


class Extractor(ABC):
    """Turns structures into features of their atoms; constructed from the ``options`` of its entry as keywords.

    Attributes:
        needs_checkpoint: Whether it reads its weights from a file.
        dim: Features per atom.
        invariant_dim: How many of them, the first ones, do not turn with the structure; all unless it says otherwise.
        elements: Atomic numbers that it knows.
        cutoff: Length in Angstrom of the longest edges of its graphs; 0 if it makes none.
        max_neighbors: Edges per atom at most; None if the cutoff alone decides.

    Args:
        device: Where it computes, in PyTorch's terms.
        checkpoint: File with weights.

    Raises:
        ConfigError: A checkpoint is missing, or given to an extractor that takes none.
    """

    needs_checkpoint: bool = False
    dim: int
    elements: frozenset[int]
    cutoff: float = 0.0
    max_neighbors: int | None = None

    def __init__(self, *, device: str = "cpu", checkpoint: Path | None = None) -> None:
        if self.needs_checkpoint != (checkpoint is not None):
            problem = "needs a checkpoint" if self.needs_checkpoint else "takes no checkpoint"
            raise ConfigError(f"{type(self).__name__} {problem}")
        self.device, self.checkpoint = device, checkpoint

    @property
    def invariant_dim(self) -> int:
        """See the class."""
        return self.dim

    def count_edges(self, structure: Structure) -> int:
        """Returns how many edges the graph of a structure has, on which memory and time depend."""
        if not self.cutoff:
            return 0
        per_atom = np.bincount(neighbours(structure, self.cutoff)[0])
        return int(per_atom.clip(max=self.max_neighbors).sum())

    def features(self, structures: Sequence[Structure]) -> list[np.ndarray]:
        """Computes the features of a few structures, as one batch.

        Args:
            structures: At least one structure, in Angstrom.

        Returns:
            For each structure an array of shape (atoms, dim), float32.

        Raises:
            AtomcsiError: A structure holds an element that the extractor does not know, or all atoms are isolated
                and the extractor needs neighbours.
        """
        for structure in structures:
            if unknown := set(np.asarray(structure.numbers).tolist()) - self.elements:
                symbols = ", ".join(chemical_symbols[number] for number in sorted(unknown))
                raise AtomcsiError(f"{type(self).__name__} does not know {symbols}, held by '{structure.source}'")
        rows = self._rows(structures).astype(np.float32, copy=False)
        return np.split(rows, np.cumsum([len(structure) for structure in structures])[:-1])

    @abstractmethod
    def _rows(self, structures: Sequence[Structure]) -> np.ndarray:
        """Returns the features of all atoms in a row, shape (atoms of all structures, dim)."""
