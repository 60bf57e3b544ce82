"""Molecules labelled by GFN2-xTB (through tblite): relaxation, normal-mode sampling, Langevin dynamics."""

from __future__ import annotations

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import LBFGS
from tblite.ase import TBLite

from .frames import Frames, as_float32

FAILURES = (CalculationFailed, RuntimeError)
"""What tblite raises when it does not converge."""


def calculator(method: str = "GFN2-xTB", accuracy: float = 1.0) -> TBLite:
    """A fresh xTB calculator; a larger ``accuracy`` means looser convergence."""
    return TBLite(method=method, accuracy=accuracy, verbosity=0)


def label(numbers: np.ndarray, positions: np.ndarray, method: str = "GFN2-xTB") -> Frames:
    """Compute energy and forces, every frame from a fresh guess and at float32-rounded positions.

    Args:
        numbers: Atomic numbers, shape ``(atoms,)``.
        positions: Coordinates in Angstrom, shape ``(frames, atoms, 3)``.
        method: Name of the xTB Hamiltonian.

    Returns:
        The labelled frames.
    """
    positions = as_float32(np.asarray(positions))
    energy, forces = [], []
    for xyz in positions:
        atoms = Atoms(numbers, positions=xyz, calculator=calculator(method))
        energy.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
    return Frames(numbers, positions, np.array(energy), as_float32(np.array(forces)))


def relax(atoms: Atoms, fmax: float = 0.02, steps: int = 300) -> bool:
    """Relax in place; true if the largest force fell under ``fmax`` (eV/Angstrom)."""
    atoms.calc = calculator()
    return bool(LBFGS(atoms, logfile=None, maxstep=0.1).run(fmax=fmax, steps=steps))


def hessian(atoms: Atoms, step: float = 0.005) -> np.ndarray:
    """Central differences of the forces.

    Args:
        atoms: A relaxed molecule.
        step: Displacement in Angstrom.

    Returns:
        Symmetric second derivatives in eV/Angstrom^2, shape ``(3 atoms, 3 atoms)``.
    """
    work = atoms.copy()
    work.calc = calculator()
    start = work.get_positions()
    rows = []
    for i in range(start.size):
        shift = np.zeros(start.size)
        shift[i] = step
        sides = []
        for sign in (1, -1):
            work.positions = start + sign * shift.reshape(start.shape)
            sides.append(work.get_forces().ravel())
        rows.append((sides[1] - sides[0]) / (2 * step))
    matrix = np.array(rows)
    return (matrix + matrix.T) / 2


def normal_mode_samples(atoms: Atoms, temperatures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw conformations from the classical harmonic distribution about a minimum.

    Args:
        atoms: A relaxed molecule.
        temperatures: One temperature in kelvin for each sample, shape ``(samples,)``.
        rng: Source of randomness.

    Returns:
        Coordinates in Angstrom, shape ``(samples, atoms, 3)``.
    """
    mass = np.repeat(atoms.get_masses(), 3)
    eigenvalues, modes = np.linalg.eigh(hessian(atoms) / np.sqrt(np.outer(mass, mass)))
    # The first six are translations and rotations. Floppy torsions are no straight lines: 150 1/cm at least.
    floor = (150 * units.invcm / (units._hbar * units.J * units.s)) ** 2
    stiffness = np.maximum(eigenvalues[6:], floor)
    amplitude = np.sqrt(units.kB * temperatures[:, None] / stiffness) * rng.standard_normal(
        (len(temperatures), len(stiffness))
    )
    shift = amplitude @ modes[:, 6:].T / np.sqrt(mass)
    return atoms.get_positions() + shift.reshape(len(temperatures), -1, 3)


def langevin(
    atoms: Atoms, temperature: float, n: int, every: int, burn_in: int, rng: np.random.Generator, accuracy: float = 1.0
) -> np.ndarray:
    """Run Langevin dynamics with steps of 1 fs and a friction of 0.02/fs.

    Args:
        atoms: Starting conformation, moved in place.
        temperature: In kelvin.
        n: Number of frames.
        every: Femtoseconds between frames.
        burn_in: Femtoseconds before the first frame.
        rng: Source of randomness.
        accuracy: Convergence of xTB on the way (larger is looser and faster); labels are computed afterwards.

    Returns:
        Coordinates in Angstrom about the centre of mass, shape ``(n, atoms, 3)``.
    """
    atoms.calc = calculator(accuracy=accuracy)
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    dynamics = Langevin(atoms, units.fs, temperature_K=temperature, friction=0.02 / units.fs, fixcm=False, rng=rng)
    dynamics.run(burn_in)
    frames = []
    for _ in range(n):
        dynamics.run(every)
        frames.append(atoms.get_positions() - atoms.get_center_of_mass())
    return np.array(frames)
