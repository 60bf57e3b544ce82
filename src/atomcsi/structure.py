"""The one in-memory form of a structure: atoms, labels and where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from ase import units
from ase.formula import Formula

MAX_ATOMIC_NUMBER = 118
#: Numbers beyond this do not fit into the single precision that structures are stored in.
LARGEST = 1e30

#: Factors that turn a unit into its base, eV or Angstrom.
ENERGY_UNITS: Mapping[str, float] = {"eV": 1.0, "hartree": units.Hartree, "kcal/mol": units.kcal / units.mol}
LENGTH_UNITS: Mapping[str, float] = {"angstrom": 1.0, "bohr": units.Bohr}


@dataclass(slots=True, kw_only=True)
class Structure:
    """Atoms with their labels.

    Readers give energies, forces and lengths in their source's units; everything behind
    :func:`atomcsi.convert.convert` is in eV, eV/Angstrom and Angstrom.

    Attributes:
        numbers: Atomic numbers, shape (atoms,), integers 1 to 118.
        positions: Cartesian positions, shape (atoms, 3).
        source: Name of the record in the raw data; unique within a dataset.
        label: Class for class-balanced sampling (paper, section 1), such as the molecular formula.
        group: What a random split must keep together; empty if structures are split one by one.
        energy: Total energy; NaN if the source has none.
        forces: Forces (minus the gradient of the energy), shape (atoms, 3), or None.
        properties: Further scalar targets by name.
        cell: Lattice vectors as rows, shape (3, 3), or None.
        pbc: Periodicity along the lattice vectors.
        tags: OC20's tags, shape (atoms,): 0 below the surface, 1 surface, 2 adsorbate; or None.
        fixed: True where the atom was held in the source's relaxation, shape (atoms,), or None.
    """

    numbers: np.ndarray
    positions: np.ndarray
    source: str
    label: str
    group: str = ""
    energy: float = float("nan")
    forces: np.ndarray | None = None
    properties: Mapping[str, float] = field(default_factory=dict)
    cell: np.ndarray | None = None
    pbc: tuple[bool, bool, bool] = (False, False, False)
    tags: np.ndarray | None = None
    fixed: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of atoms."""
        return len(self.numbers)

    def problem(self) -> str:
        """Says in a few words why the structure cannot be used; empty if it can."""
        n = len(self.numbers)
        if n == 0:
            return "holds no atoms"
        numbers = np.asarray(self.numbers)
        if numbers.min() < 1 or numbers.max() > MAX_ATOMIC_NUMBER:
            bad = int(numbers[(numbers < 1) | (numbers > MAX_ATOMIC_NUMBER)][0])
            return f"holds the atomic number {bad}, which is no element"
        for name, array in (("positions", self.positions), ("forces", self.forces)):
            if array is None:
                continue
            if array.shape != (n, 3):
                return f"has {name} of shape {array.shape} for {n} atoms"
            if not (np.abs(array) < LARGEST).all():
                return f"has {name} that are not finite (NaN or infinite)"
        if np.isinf(self.energy):
            return "has an infinite energy"
        for name, value in self.properties.items():
            if not abs(value) < LARGEST:
                return f"has the property '{name}' that is not finite (NaN or infinite)"
        if self.cell is not None and not (np.abs(self.cell) < LARGEST).all():
            return "has a cell that is not finite"
        if any(self.pbc) and (self.cell is None or not repeats(self.cell, np.array(self.pbc))):
            return "is periodic but has no cell with a volume"
        for name in ("tags", "fixed"):
            array = getattr(self, name)
            if array is not None and array.shape != (n,):
                return f"has {name} of shape {array.shape} for {n} atoms"
        if self.tags is not None and (self.tags.min() < 0 or self.tags.max() > 255):
            return "has tags outside 0 to 255"
        return ""


def repeats(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Whether the lattice vectors along periodic directions are independent of each other.

    The others may be anything, zero included.

    Args:
        cell: Lattice vectors as rows in Angstrom, shape (..., 3, 3).
        pbc: Periodicity along them, shape (..., 3).

    Returns:
        Shape (...); True where no direction is periodic.
    """
    vectors = np.where(pbc[..., None], cell, 0.0).astype(float)
    # The squared volume, area or length that the periodic vectors span.
    gram = vectors @ np.swapaxes(vectors, -1, -2) + np.where(pbc[..., None], 0.0, np.eye(3))
    return np.linalg.det(gram) > 1e-12


def hill_formula(numbers: np.ndarray) -> str:
    """Returns the molecular formula in Hill order, such as ``C9H8O4``."""
    from ase.symbols import Symbols

    return Formula(str(Symbols(np.asarray(numbers, dtype=int)))).format("hill")
