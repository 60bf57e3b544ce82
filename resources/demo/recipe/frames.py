"""Labelled conformations of one molecule, in eV and Angstrom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

KCAL_PER_EV = 23.060547830619026
"""Kilocalories per mole in one electronvolt (CODATA 2018)."""

MAX_FORCE = 12.0
"""Frames with a larger force on any atom (eV/Angstrom) are left out of all datasets."""


@dataclass(frozen=True)
class Frames:
    """Conformations that share one list of atoms.

    Attributes:
        numbers: Atomic numbers, shape ``(atoms,)``.
        positions: Cartesian coordinates in Angstrom, shape ``(frames, atoms, 3)``, representable in float32.
        energy: Total energies in eV, shape ``(frames,)``.
        forces: Forces in eV/Angstrom (minus the gradient), shape ``(frames, atoms, 3)``.
    """

    numbers: np.ndarray
    positions: np.ndarray
    energy: np.ndarray
    forces: np.ndarray

    def __len__(self) -> int:
        return len(self.energy)

    def take(self, index: np.ndarray | Sequence[int]) -> Frames:
        """Select frames by index or mask."""
        return Frames(self.numbers, self.positions[index], self.energy[index], self.forces[index])

    def below(self, max_force: float) -> Frames:
        """Keep the frames whose largest atomic force is under ``max_force`` (eV/Angstrom)."""
        return self.take(np.linalg.norm(self.forces, axis=-1).max(axis=1) < max_force)


def concatenate(parts: Sequence[Frames]) -> Frames:
    """Join frames of the same atoms."""
    return Frames(
        parts[0].numbers,
        np.concatenate([part.positions for part in parts]),
        np.concatenate([part.energy for part in parts]),
        np.concatenate([part.forces for part in parts]),
    )


def as_float32(values: np.ndarray) -> np.ndarray:
    """Round to float32 but stay in float64: the tail of zero bits is what makes the files small."""
    return values.astype(np.float32).astype(np.float64)
