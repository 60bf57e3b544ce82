"""What a dataset's energies and forces are like, in one pass over its structures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from atomcsi.errors import InputError
from atomcsi.structure import MAX_ATOMIC_NUMBER
from atomcsi.structure_batch import StructureBatch

_SIZE = MAX_ATOMIC_NUMBER + 1
#: Energies of atoms below this (eV) are zero up to rounding: the fit that they are from had no such atom.
_SMALLEST_ENERGY = 1e-2
#: Compositions whose singular value is smaller than this share of the largest carry no information.
_RANK = 1e-10
#: A batch whose energies are further from the reference, in squares, than so many times what is usual moves it.
_SURPRISE = 100.0


class Statistics:
    """Energy and force statistics of a stream of structures.

    The linear reference is the least-squares fit of the energy to the number of atoms of each element; with fewer
    compositions than elements, the solution of least norm. Its normal equations are well-behaved here: counts are
    integers, so that their matrix is exact, and the energies enter as what a fit to the first batches leaves of
    them, so that -17 617 eV a structure do not drown a spread of 0.1 eV. The fit is renewed when a batch does not
    go with it, as when an element comes late.

    Args:
        reference: A linear reference that is given instead of fitted, eV by atomic number, shape (119,).
    """

    def __init__(self, reference: np.ndarray | None = None) -> None:
        self._given = reference is not None
        self._start = reference
        self._elements = np.zeros(_SIZE, np.int64)
        self._gram = np.zeros((_SIZE, _SIZE))
        self._moment = np.zeros(_SIZE)
        self._energies = 0
        self._energy_sum = self._residual_square = 0.0
        self._energy_range = (np.inf, -np.inf)
        self._force_square = self._force_square_max = 0.0
        self._force_components = 0

    def add(self, batch: StructureBatch) -> None:
        """Takes a batch of structures into account."""
        cells = batch.index * _SIZE + batch.numbers
        counts = np.bincount(cells, minlength=len(batch) * _SIZE).reshape(len(batch), _SIZE)
        self._elements += counts.sum(axis=0)
        known = np.isfinite(batch.energy)
        if known.any():
            self._add_energies(counts[known].astype(float), batch.energy[known])
        forces = batch.known_forces
        if len(forces):
            squares = np.einsum("ai,ai->a", forces, forces, dtype=float)
            self._force_square += float(squares.sum())
            self._force_square_max = max(self._force_square_max, float(squares.max()))
            self._force_components += forces.size

    def _add_energies(self, counts: np.ndarray, energy: np.ndarray) -> None:
        if self._start is None:
            self._start = np.zeros(_SIZE)
        residual = energy - counts @ self._start
        held = np.flatnonzero(counts.any(axis=0))
        gram, gained = np.zeros((_SIZE, _SIZE)), residual @ counts
        gram[np.ix_(held, held)] = counts[:, held].T @ counts[:, held]
        spread = self._residual_square / max(self._energies, 1)
        if not self._given and residual @ residual > _SURPRISE * spread * len(energy):
            self._move_start(_solve(self._gram + gram, self._moment + gained))
            residual = energy - counts @ self._start
            gained = residual @ counts
        self._gram += gram
        self._moment += gained
        self._energies += len(energy)
        self._energy_sum += float(energy.sum())
        self._energy_range = (
            min(self._energy_range[0], float(energy.min())),
            max(self._energy_range[1], float(energy.max())),
        )
        self._residual_square += float(residual @ residual)

    def _move_start(self, step: np.ndarray) -> None:
        """Counts energies from another reference, those that are counted already too."""
        self._residual_square += float(step @ self._gram @ step - 2 * step @ self._moment)
        self._moment -= self._gram @ step
        self._start = self._start + step

    @property
    def elements(self) -> np.ndarray:
        """Atomic numbers of the elements seen, ascending."""
        return np.flatnonzero(self._elements)

    def summary(self) -> dict[str, Any]:
        """Returns the statistics as metadata: eV and eV/Angstrom; elements by atomic number, as JSON has them."""
        elements = self.elements
        summary: dict[str, Any] = {"elements": {str(z): int(self._elements[z]) for z in elements}}
        if self._energies:
            reference, gained = self._fit(elements)
            variance = (self._residual_square - gained) / self._energies
            summary["linear_reference"] = dict(zip(map(str, elements), reference.tolist(), strict=True))
            summary["energy_std"] = float(np.sqrt(max(variance, 0.0)))
            summary["energy_mean"] = self._energy_sum / self._energies
            summary["energy_range"] = list(self._energy_range)
            summary["energies"] = self._energies
        if self._force_components:
            summary["force_rms"] = float(np.sqrt(self._force_square / self._force_components))
            summary["force_max"] = float(np.sqrt(self._force_square_max))
        return summary

    def _fit(self, elements: np.ndarray) -> tuple[np.ndarray, float]:
        """Returns the reference of the elements and by how much it lowers the sum of squares."""
        if self._given:
            return self._start[elements], 0.0
        step = _solve(self._gram, self._moment)
        return (self._start + step)[elements], float(step @ self._moment)


def _solve(gram: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Solution of least norm of the normal equations; 0 for elements that are in none of them."""
    held = np.flatnonzero(gram.diagonal())
    solution = np.zeros(_SIZE)
    solution[held] = np.linalg.lstsq(gram[np.ix_(held, held)], moment[held], rcond=_RANK)[0]
    return solution


def read_reference(path: Path, largest: float) -> np.ndarray:
    """Reads a linear reference in fairchem's form: an ``.npz`` with ``coeff``, eV by atomic number.

    Fits leave anything behind for elements that their data lacked. What cannot be the energy of an atom becomes
    NaN; :func:`check_reference` refuses it where it is needed.

    Args:
        path: The file.
        largest: The largest energy of an atom in eV that is believed, as a positive number.

    Returns:
        Energies in eV by atomic number, shape (119,).

    Raises:
        InputError: The file is missing or of another form.
    """
    mend = "fetch the file again"
    try:
        with np.load(path, allow_pickle=False) as file:
            coefficients = np.asarray(file["coeff"], float).ravel()
    except FileNotFoundError as error:
        raise InputError(path, "is missing", mend="list it under the dataset's files") from error
    except Exception as error:  # NumPy raises nearly anything on damaged archives
        raise InputError(path, f"holds no linear reference 'coeff': {error}", mend=mend) from error
    reference = np.full(_SIZE, np.nan)
    size = min(len(coefficients), _SIZE)
    reference[:size] = coefficients[:size]
    believed = (np.abs(reference) >= _SMALLEST_ENERGY) & (np.abs(reference) <= largest)
    return np.where(believed, reference, np.nan)


def check_reference(reference: np.ndarray, batch: StructureBatch, path: Path) -> None:
    """Refuses structures of elements that a linear reference does not know.

    Raises:
        InputError: Names the reference's file, the element and the structure.
    """
    unknown = np.isnan(reference)[batch.numbers]
    if unknown.any():
        atom = int(np.argmax(unknown))
        symbol = chemical_symbols[batch.numbers[atom]]
        problem = f"has no credible energy for {symbol}, which {batch.sources[batch.index[atom]]} holds"
        mend = "take the linear reference out of the config, which fits one to the data, or correct its `largest`"
        raise InputError(path, problem, mend=mend)
