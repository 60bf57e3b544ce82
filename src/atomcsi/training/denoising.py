"""Structures with noise on their positions: what a pretraining without labels learns from (paper, experiment 11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch.utils.data import Dataset

from atomcsi.structure import Structure
from atomcsi.structure_batch import FORCES, StructureBatch
from atomcsi.training.data import LabelledStructures
from atomcsi.training.joined import JoinedStructures


class NoisyStructures(Dataset[Structure]):
    """Structures whose positions are off by Gaussian noise, which stands in the place of their forces.

    Like a force, the target points back to where the atom belongs: it is minus the noise, in units of ``sigma``. Every
    epoch has noise of its own. It depends on the seed, the epoch and the structure's position alone, so that resumed
    trainings, and trainings in several processes, see the same.

    Args:
        structures: The structures.
        sigma: Standard deviation of each coordinate's noise in Angstrom.
        seed: Seed of the noise.
    """

    def __init__(self, structures: LabelledStructures | JoinedStructures, *, sigma: float, seed: int) -> None:
        self.structures, self._sigma, self._seed = structures, sigma, seed

    def __len__(self) -> int:
        """Number of structures."""
        return len(self.structures)

    @property
    def natoms(self) -> np.ndarray:
        """Number of atoms of each structure, shape (structures,)."""
        return self.structures.natoms

    @property
    def nedges(self) -> np.ndarray:
        """Number of edges of each structure at most, shape (structures,)."""
        return self.structures.nedges

    def of_epoch(self, positions: Sequence[int], epoch: int) -> StructureBatch:
        """Returns several structures with the noise of an epoch."""
        # In ascending order, in which those of a mix come: each keeps its own noise.
        positions = np.sort(np.asarray(positions))
        batch = self.structures.of_epoch(positions, epoch)
        noise = np.concatenate([self._noise(*each, epoch) for each in zip(positions, batch.natoms, strict=True)])
        return replace(
            batch,
            positions=batch.positions + self._sigma * noise,
            forces=-noise,
            flags=batch.flags | np.uint16(FORCES),
        )

    def _noise(self, position: int, natoms: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch, position]).normal(size=(natoms, 3))
