"""Slabs labelled by CHGNet: calculator, relaxation frames, rattled frames, placement of adsorbates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms
from ase.optimize import BFGS
from chgnet.model import CHGNet
from pymatgen.io.ase import AseAtomsAdaptor

from .frames import MAX_FORCE


@cache
def chgnet() -> CHGNet:
    """The pretrained CHGNet 0.3.0, one thread, without warnings about atoms far from all others."""
    torch.set_num_threads(1)
    model = CHGNet.load(use_device="cpu", verbose=False)
    model.graph_converter.set_isolated_atom_response("ignore")
    return model


class EnergyForces(Calculator):
    """CHGNet without stress and magnetic moments, which cost as much as the rest."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy", "forces"),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute total energy (eV) and forces (eV/Angstrom)."""
        super().calculate(atoms, properties, system_changes)
        prediction = chgnet().predict_structure(AseAtomsAdaptor.get_structure(self.atoms), task="ef")
        self.results = {
            "energy": float(prediction["e"]) * len(self.atoms),
            "forces": prediction["f"].astype(np.float64),
        }


@dataclass(frozen=True)
class Snapshot:
    """A labelled frame; ``forces`` (eV/Angstrom) are those of all atoms, the fixed ones too."""

    atoms: Atoms
    energy: float
    forces: np.ndarray
    frame: int


def snapshot(atoms: Atoms, frame: int) -> Snapshot:
    """Label a copy of the slab as it stands."""
    copy = atoms.copy()
    return Snapshot(copy, atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False), frame)


def relax(atoms: Atoms, steps: int, fmax: float = 0.03) -> Iterator[int]:
    """Relax in place, constraints kept; yield the number of every step that was made."""
    atoms.calc = EnergyForces()
    optimizer = BFGS(atoms, logfile=None, maxstep=0.1)
    for _ in optimizer.irun(fmax=fmax, steps=steps):
        yield optimizer.nsteps


def trajectory(
    atoms: Atoms, before: int, relaxed: int, every: int, rattled: int, rng: np.random.Generator
) -> list[Snapshot]:
    """Frames of a relaxation and rattled copies of them.

    Args:
        atoms: The starting slab, moved in place. Constrained atoms are not rattled.
        before: Steps before the first frame: raw placements have forces far too large.
        relaxed: Number of relaxation frames.
        every: Steps between them.
        rattled: Number of rattled frames (normal displacements of 0.03 to 0.10 Angstrom).
        rng: Source of randomness.

    Returns:
        The usable frames, at most ``relaxed + rattled``; rattled ones are numbered from 1000.
    """
    wanted = range(before, before + relaxed * every, every)
    snapshots = [snapshot(atoms, step) for step in relax(atoms, steps=wanted[-1]) if step in wanted]
    snapshots = snapshots or [snapshot(atoms, 0)]
    free = np.setdiff1d(np.arange(len(atoms)), [i for fix in atoms.constraints for i in fix.get_indices()])
    for i in range(rattled + relaxed - len(snapshots)):  # a relaxation that ended early is made up for
        copy = snapshots[int(rng.integers(min(relaxed, len(snapshots))))].atoms.copy()
        copy.positions[free] += rng.normal(0, rng.uniform(0.03, 0.10), (len(free), 3))
        copy.calc = EnergyForces()
        snapshots.append(snapshot(copy, 1000 + i))
    return [shot for shot in snapshots if np.linalg.norm(shot.forces, axis=1).max() < MAX_FORCE]


def upright(name: str, binding: str, rng: np.random.Generator) -> Atoms:
    """Build an adsorbate with its binding atom at the origin and the rest above, turned at random about z.

    Args:
        name: One element, or a name in ASE's collection of molecules.
        binding: Symbol of the binding atom.
        rng: Source of randomness.

    Returns:
        The adsorbate, all atoms with tag 2.
    """
    adsorbate = Atoms(name) if name == binding else molecule(name)
    adsorbate.set_initial_magnetic_moments(None)
    anchor = adsorbate.get_chemical_symbols().index(binding)
    adsorbate.positions -= adsorbate.positions[anchor]
    if len(adsorbate) > 1:
        direction = adsorbate.positions.sum(axis=0)
        if np.linalg.norm(direction) < 0.1:  # a flat star, such as CH3: fold it into an umbrella
            direction = np.cross(*np.delete(adsorbate.positions, anchor, axis=0)[:2])
            adsorbate.positions[np.arange(len(adsorbate)) != anchor] += 0.4 * direction / np.linalg.norm(direction)
        adsorbate.rotate(direction, "z")
        adsorbate.rotate(rng.uniform(0, 360), "z")
    adsorbate.set_tags(2)
    return adsorbate


def fix_subsurface(atoms: Atoms) -> None:
    """Hold the atoms with tag 0."""
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 0))


@cache
def gas_references() -> dict[str, float]:
    """Energies (eV) of H, C, N and O from relaxed H2, H2O, CO and N2, as OC20 defines its references."""
    energy = {}
    for name in ("H2", "H2O", "CO", "N2"):
        atoms = molecule(name, vacuum=8, pbc=True)
        for _ in relax(atoms, steps=30):
            pass
        energy[name] = atoms.get_potential_energy()
    oxygen = energy["H2O"] - energy["H2"]
    return {"H": energy["H2"] / 2, "N": energy["N2"] / 2, "O": oxygen, "C": energy["CO"] - oxygen}
