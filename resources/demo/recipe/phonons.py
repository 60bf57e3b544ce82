"""Phonons of crystals by finite displacements, with CHGNet's forces."""

from __future__ import annotations

import numpy as np
from ase import Atoms, units
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms
from pymatgen.core import Lattice, Structure

from .surfaces import chgnet

TERAHERTZ = 1e12 / (units._c * 100)
"""One terahertz in 1/cm."""


def highest_mode(atoms: Atoms) -> float | None:
    """Find the highest mode at the centre of the Brillouin zone.

    Cells are displaced as a whole, by 0.03 Angstrom for one atom after another. The long-range field that splits
    longitudinal from transverse modes is left out.

    Args:
        atoms: A relaxed primitive cell of two atoms at least.

    Returns:
        Its frequency in 1/cm; None if there is a mode below -5 1/cm, which is to say an imaginary one.
    """
    cell = PhonopyAtoms(numbers=atoms.numbers, scaled_positions=atoms.get_scaled_positions(), cell=atoms.cell.array)
    phonon = Phonopy(cell, supercell_matrix=[1, 1, 1], primitive_matrix="P", symprec=1e-4)
    phonon.generate_displacements(distance=0.03)
    displaced = [
        Structure(Lattice(image.cell), image.symbols, image.scaled_positions)
        for image in phonon.supercells_with_displacements
    ]
    phonon.forces = [chgnet().predict_structure(image, task="ef")["f"].astype(np.float64) for image in displaced]
    phonon.produce_force_constants(show_drift=False)
    phonon.symmetrize_force_constants(show_drift=False)
    frequencies = phonon.run_qpoints([[0, 0, 0]]).frequencies[0] * TERAHERTZ
    return None if frequencies.min() < -5 else round(float(frequencies.max()), 2)
