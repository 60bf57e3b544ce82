"""From eV to numbers around one, and back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atomcsi.models.batch import AtomBatch
from atomcsi.statistics import Statistics
from atomcsi.structure import MAX_ATOMIC_NUMBER
from atomcsi.structure_batch import StructureBatch

#: Below this spread (eV, eV/Angstrom) labels are equal up to rounding, and dividing by it would blow up noise.
_SMALLEST_SPREAD = 1e-6


@dataclass(frozen=True)
class Normaliser:
    """Linear reference and scales of the training targets (paper, section 1: "Pretraining").

    Attributes:
        reference: Energy of each element in eV, by atomic number, shape (119,).
        energy_scale: Standard deviation of the energy without the reference, eV.
        force_scale: Root mean square of the force components, eV/Angstrom.
    """

    reference: Tensor
    energy_scale: float
    force_scale: float

    @classmethod
    def fit(cls, batches: Iterable[StructureBatch], reference: np.ndarray | None = None) -> Normaliser:
        """Fits scales to labelled structures, and the reference unless it is given (eV by atomic number)."""
        statistics = Statistics(reference)
        for batch in batches:
            statistics.add(batch)
        summary = statistics.summary()
        energies = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.float64)
        for element, energy in summary.get("linear_reference", {}).items():
            energies[int(element)] = energy
        scales = [summary.get(key, 1.0) for key in ("energy_std", "force_rms")]
        return cls(energies, *(scale if scale > _SMALLEST_SPREAD else 1.0 for scale in scales))

    def energy_target(self, batch: AtomBatch) -> Tensor:
        """Normalised energies of a batch's labels, shape (structures,)."""
        return ((batch.energy - self._reference(batch)) / self.energy_scale).to(batch.positions.dtype)

    def energy(self, normalised: Tensor, batch: AtomBatch) -> Tensor:
        """Predicted total energies in eV, shape (structures,), float64."""
        return normalised.double() * self.energy_scale + self._reference(batch)

    def force_target(self, batch: AtomBatch) -> Tensor:
        """Normalised forces of a batch's labels, shape (atoms, 3)."""
        return batch.forces / self.force_scale

    def _reference(self, batch: AtomBatch) -> Tensor:
        # float64: total energies of 1e4 eV with errors of 1e-3 eV do not fit into float32.
        atoms = self.reference.to(batch.numbers.device)[batch.numbers]
        return atoms.new_zeros(len(batch)).index_add(0, batch.index, atoms)
