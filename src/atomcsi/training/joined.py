"""The structures of several datasets as one: what a training on a mix sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch.utils.data import Dataset

from atomcsi.structure import Structure
from atomcsi.structure_batch import StructureBatch
from atomcsi.training.data import LabelledStructures


class JoinedStructures(Dataset[Structure], Sequence[Structure]):
    """Draws of several datasets, one behind the other.

    Args:
        parts: The draws, all with the same target, in the order of :attr:`StructureBatch.dataset`.
    """

    def __init__(self, parts: Sequence[LabelledStructures]) -> None:
        self.parts = list(parts)
        self.target = self.parts[0].target
        self._ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        """Number of structures drawn."""
        return int(self._ends[-1])

    def __getitem__(self, position: int) -> Structure:
        """Returns a structure with its label."""
        part, place = self._places(np.array([position]))
        return self.parts[int(part[0])][int(place[0])]

    def __getitems__(self, positions: Sequence[int]) -> StructureBatch:
        """Returns several structures, those of one dataset together; what PyTorch's loader calls for a batch.

        Energies and forces only: properties are not the same in all datasets.
        """
        part, place = self._places(np.asarray(positions))
        return StructureBatch.join([self._read(number, place[part == number]) for number in np.unique(part)])

    def of_epoch(self, positions: Sequence[int], epoch: int) -> StructureBatch:
        """Returns several structures; they are the same in every epoch."""
        return self.__getitems__(positions)

    @property
    def natoms(self) -> np.ndarray:
        """Number of atoms of each structure drawn, shape (structures,)."""
        return np.concatenate([part.natoms for part in self.parts])

    @property
    def nedges(self) -> np.ndarray:
        """Number of edges of each structure at most, shape (structures,)."""
        return np.concatenate([part.nedges for part in self.parts])

    def _places(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the part of each position, and where in that part it is."""
        part = np.searchsorted(self._ends, positions, side="right")
        return part, positions - np.concatenate([[0], self._ends])[part]

    def _read(self, part: int, places: np.ndarray) -> StructureBatch:
        batch = self.parts[part].__getitems__(places)
        return replace(
            batch,
            dataset=np.full(len(batch), part),
            properties=batch.properties[:, :0],
            property_names=(),
        )
