"""Starting molecules from SMILES, and isomerisations found by moving a hydrogen atom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import minimize_rotation_and_translation
from ase.data import covalent_radii
from ase.mep import NEB
from ase.optimize import FIRE
from rdkit import Chem
from rdkit.Chem import AllChem

from .frames import Frames, concatenate
from .xtb import FAILURES, calculator, label, relax


def embed(smiles: str, n: int, seed: int) -> tuple[list[Atoms], str]:
    """Build conformers with the force field MMFF94.

    Args:
        smiles: The molecule.
        n: Number of conformers.
        seed: Seed of the embedding.

    Returns:
        The conformers, and a SMILES in which every atom, hydrogens too, bears its index plus one.
    """
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMultipleConfs(molecule, n, randomSeed=seed, numThreads=1)
    AllChem.MMFFOptimizeMoleculeConfs(molecule, numThreads=1)
    numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    conformers = [Atoms(numbers, positions=conformer.GetPositions()) for conformer in molecule.GetConformers()]
    for atom in molecule.GetAtoms():
        atom.SetAtomMapNum(atom.GetIdx() + 1)
    return conformers, Chem.MolToSmiles(molecule)


def bonds(atoms: Atoms) -> np.ndarray:
    """Adjacency by distance (1.25 times the sum of covalent radii), shape ``(atoms, atoms)``."""
    radii = covalent_radii[atoms.numbers]
    adjacency = atoms.get_all_distances() < 1.25 * (radii[:, None] + radii)
    np.fill_diagonal(adjacency, False)
    return adjacency


def hydrogen_shifts(atoms: Atoms, rng: np.random.Generator) -> list[Atoms]:
    """Guess isomers: every hydrogen moved to every heavy atom close by, in random order."""
    adjacency, heavy, guesses = bonds(atoms), atoms.numbers > 1, []
    for hydrogen in np.flatnonzero(~heavy):
        for acceptor in np.flatnonzero(heavy & ~adjacency[hydrogen]):
            if atoms.get_distance(hydrogen, acceptor) > 2.8:
                continue
            centre = atoms.positions[acceptor]
            spokes = atoms.positions[adjacency[acceptor]] - centre
            away = -(spokes / np.linalg.norm(spokes, axis=1, keepdims=True)).sum(axis=0)
            towards = atoms.positions[hydrogen] - centre
            direction = away + towards / np.linalg.norm(towards)
            guess = atoms.copy()
            guess.positions[hydrogen] = centre + 1.1 * direction / np.linalg.norm(direction)
            guesses.append(guess)
    return [guesses[i] for i in rng.permutation(len(guesses))]


@dataclass(frozen=True)
class Reaction:
    """Frames of a nudged elastic band, and its ends and top as single frames."""

    path: Frames
    reactant: Frames
    product: Frames
    transition_state: Frames


def elastic_band(reactant: Atoms, product: Atoms, max_force: float) -> Reaction | None:
    """Interpolate (IDPP) and relax a band of ten images for a few steps.

    Args:
        reactant: A minimum.
        product: Another minimum of the same atoms in the same order.
        max_force: Frames with a larger force (eV/Angstrom) are left out.

    Returns:
        Ends and inner images early and late in the relaxation; none if too few of them are usable.
    """
    images = [reactant.copy() for _ in range(9)] + [product.copy()]
    minimize_rotation_and_translation(images[0], images[-1])
    shared = calculator()
    for image in images:
        image.calc = shared
    band = NEB(images, k=0.1, method="improvedtangent", allow_shared_calculator=True)
    band.interpolate(method="idpp")
    optimizer = FIRE(band, logfile=None, maxstep=0.08)
    optimizer.run(fmax=0.05, steps=8)
    early = [image.get_positions() for image in images[1:-1:2]]
    optimizer.run(fmax=0.05, steps=30)
    late = [image.get_positions() for image in images[1:-1]]
    numbers = reactant.numbers
    ends = label(numbers, np.array([images[0].positions, images[-1].positions]))
    inner = label(numbers, np.array(early + late))
    top = inner.take([len(early) + int(inner.energy[len(early) :].argmax())])
    path = concatenate([ends.take([0]), inner, ends.take([1])]).below(max_force)
    barrier = top.energy[0] - ends.energy[0]
    if len(path) < 11 or len(top.below(max_force)) == 0 or not 0.2 < barrier < 10:
        return None
    return Reaction(path, ends.take([0]), ends.take([1]), top)


def find_reactions(molecule: Atoms, n: int, max_force: float, rng: np.random.Generator) -> list[Reaction]:
    """Look for up to ``n`` different isomerisations of a molecule that xTB can follow."""
    if not relax(molecule):
        return []
    found, seen = [], [bonds(molecule)]
    for guess in hydrogen_shifts(molecule, rng)[:8]:
        if len(found) == n:
            break
        try:
            converged = relax(guess, fmax=0.05, steps=150)
            adjacency = bonds(guess)
            rise = guess.get_potential_energy() - molecule.get_potential_energy()
            if not converged or rise > 5 or any((adjacency == known).all() for known in seen):
                continue
            reaction = elastic_band(molecule, guess, max_force)
        except FAILURES:
            continue
        if reaction is not None:
            seen.append(adjacency)
            found.append(reaction)
    return found
