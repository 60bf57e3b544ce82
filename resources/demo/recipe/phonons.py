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


def last_peak(atoms: Atoms) -> float | None:
    """Find the last peak of the phonon density of states.

    Force constants come from displacements of 0.03 Angstrom in 2 x 2 x 2 cells, without the long-range part that splits
    longitudinal from transverse modes; the density is that of 12 x 12 x 12 wave vectors, in Gaussians of 5 1/cm.

    Args:
        atoms: A relaxed primitive cell.

    Returns:
        The highest frequency at which the density has a maximum, in 1/cm; None if there is a mode below -5 1/cm,
        which is to say an imaginary one.
    """
    cell = PhonopyAtoms(numbers=atoms.numbers, scaled_positions=atoms.get_scaled_positions(), cell=atoms.cell.array)
    phonon = Phonopy(cell, supercell_matrix=[2, 2, 2], primitive_matrix="P", symprec=1e-4)
    phonon.generate_displacements(distance=0.03)
    displaced = [
        Structure(Lattice(image.cell), image.symbols, image.scaled_positions)
        for image in phonon.supercells_with_displacements
    ]
    phonon.forces = [chgnet().predict_structure(image, task="ef")["f"].astype(np.float64) for image in displaced]
    phonon.produce_force_constants(show_drift=False)
    phonon.symmetrize_force_constants(show_drift=False)
    mesh = phonon.run_mesh([12, 12, 12], is_gamma_center=True)
    if mesh.frequencies.min() * TERAHERTZ < -5:
        return None
    density = phonon.run_total_dos(sigma=5 / TERAHERTZ, freq_pitch=0.5 / TERAHERTZ, use_tetrahedron_method=False)
    rises = np.diff(density.dos) > 0
    last = np.flatnonzero(rises[:-1] & ~rises[1:])[-1] + 1
    return round(float(density.frequency_points[last]) * TERAHERTZ, 1)
