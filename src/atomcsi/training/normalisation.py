"""From eV to numbers around one, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atomcsi.models.batch import AtomBatch
from atomcsi.statistics import Statistics
from atomcsi.structure import MAX_ATOMIC_NUMBER
from atomcsi.structure_batch import StructureBatch
from atomcsi.targets import Target

#: Below this spread (eV, eV/Angstrom) labels are equal up to rounding, and dividing by it would blow up noise.
_SMALLEST_SPREAD = 1e-6


@dataclass(frozen=True)
class Normaliser:
    """References and scales of the training targets (paper, section 1: "Pretraining"), for each dataset of a mix.

    Energies are float64: totals of 1e4 eV with errors of 1e-3 eV do not fit into float32. A scalar that is trained on
    in the energy's place has its own unit in place of eV.

    Attributes:
        reference: Energy of each element in eV, by atomic number, shape (datasets, 119).
        mean: What else is taken off an energy, eV, shape (datasets,).
        energy_scale: Standard deviation of what is left of the energy, eV, shape (datasets,).
        force_scale: Root mean square of the force components, eV/Angstrom, shape (datasets,).
    """

    reference: Tensor
    mean: Tensor
    energy_scale: Tensor
    force_scale: Tensor

    @classmethod
    def fit(
        cls,
        batches: Iterable[StructureBatch],
        reference: np.ndarray | None = None,
        *,
        target: Target | None = None,
        gradient: bool = False,
    ) -> Normaliser:
        """Fits reference and scales to the labelled structures of one dataset.

        Args:
            batches: The structures.
            reference: A linear reference that is given instead of fitted, eV by atomic number, shape (119,).
            target: What is taken off the energy; by default the linear reference.
            gradient: Whether forces are the energy's gradient. Both then have one scale, up to 1 Angstrom: that of
                the forces, which are most of the labels.
        """
        kind = "elements" if target is None else target.reference
        statistics = Statistics(reference if kind == "elements" else np.zeros(MAX_ATOMIC_NUMBER + 1))
        for batch in batches:
            statistics.add(batch)
        summary = statistics.summary()
        energies = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.float64)
        mean, spread = 0.0, summary.get("energy_std", 1.0)
        if kind == "elements":
            for element, energy in summary.get("linear_reference", {}).items():
                energies[int(element)] = energy
        elif kind == "mean":
            mean = summary.get("energy_mean", 0.0)
            # Until here the spread is that around zero.
            spread = max(spread**2 - mean**2, 0.0) ** 0.5
        else:
            spread = 1.0
        force_scale = _scale(summary.get("force_rms", 1.0))
        energy_scale = force_scale if gradient else _scale(spread)
        scalars = torch.tensor([mean, energy_scale, force_scale], dtype=torch.float64)
        return cls(energies[None], *scalars.split(1))

    @classmethod
    def join(cls, parts: Sequence[Normaliser]) -> Normaliser:
        """Returns the normaliser of a mix of those of its datasets, in the order of :attr:`AtomBatch.dataset`."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    @classmethod
    def from_records(cls, records: Sequence[Mapping[str, Any]]) -> Normaliser:
        """Returns the normaliser of what :meth:`records` gave."""
        reference = torch.zeros(len(records), MAX_ATOMIC_NUMBER + 1, dtype=torch.float64)
        for row, record in zip(reference, records, strict=True):
            for element, energy in record["linear_reference"].items():
                row[int(element)] = energy
        columns = [[record[name] for record in records] for name in ("mean", "energy_scale", "force_scale")]
        return cls(reference, *torch.tensor(columns, dtype=torch.float64))

    def records(self) -> list[dict[str, Any]]:
        """Returns a record per dataset, as JSON has it, without loss."""
        return [
            {
                "linear_reference": {str(z): energy for z, energy in enumerate(reference) if energy},
                "mean": mean,
                "energy_scale": energy_scale,
                "force_scale": force_scale,
            }
            for reference, mean, energy_scale, force_scale in zip(
                *(getattr(self, field.name).tolist() for field in fields(self)), strict=True
            )
        ]

    def energy_target(self, batch: AtomBatch) -> Tensor:
        """Normalised energies of a batch's labels, shape (structures,)."""
        scale = _of(self.energy_scale, batch.dataset)
        return ((batch.energy - self._reference(batch)) / scale).to(batch.positions.dtype)

    def energy(self, normalised: Tensor, batch: AtomBatch) -> Tensor:
        """Predicted total energies in eV, shape (structures,), float64."""
        return normalised.double() * _of(self.energy_scale, batch.dataset) + self._reference(batch)

    def force_target(self, batch: AtomBatch) -> Tensor:
        """Normalised forces of a batch's labels, shape (atoms, 3)."""
        return batch.forces / self._force_scale(batch)

    def forces(self, normalised: Tensor, batch: AtomBatch) -> Tensor:
        """Predicted forces in eV/Angstrom, shape (atoms, 3)."""
        return normalised * self._force_scale(batch)

    def _force_scale(self, batch: AtomBatch) -> Tensor:
        return _of(self.force_scale, batch.dataset)[batch.index, None].to(batch.positions.dtype)

    def _reference(self, batch: AtomBatch) -> Tensor:
        atoms = self.reference.to(batch.numbers.device)[batch.dataset[batch.index], batch.numbers]
        return _of(self.mean, batch.dataset).index_add(0, batch.index, atoms)


def _scale(spread: float) -> float:
    return spread if spread > _SMALLEST_SPREAD else 1.0


def _of(values: Tensor, dataset: Tensor) -> Tensor:
    """Values of the structures' datasets, shape (structures,)."""
    return values.to(dataset.device)[dataset]
