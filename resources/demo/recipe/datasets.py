"""The demo datasets: what is sampled, how much of it, and in which layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from . import crystals, layouts, metals, oxides, phonons, qm9, xtb
from .frames import MAX_FORCE, Frames, concatenate
from .molecules import Reaction, embed, find_reactions

ACETYL_ALANINE_3 = "CC(=O)NC(C)C(=O)NC(C)C(=O)NC(C)C(=O)NC"
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"

PEPTIDES = {
    "gly": "CC(=O)NCC(=O)NC",
    "ala": "CC(=O)N[C@@H](C)C(=O)NC",
    "val": "CC(=O)N[C@@H](C(C)C)C(=O)NC",
    "ser": "CC(=O)N[C@@H](CO)C(=O)NC",
    "thr": "CC(=O)N[C@@H]([C@H](O)C)C(=O)NC",
    "cys": "CC(=O)N[C@@H](CS)C(=O)NC",
    "pro": "CC(=O)N1CCC[C@H]1C(=O)NC",
    "asn": "CC(=O)N[C@@H](CC(N)=O)C(=O)NC",
    "ash": "CC(=O)N[C@@H](CC(=O)O)C(=O)NC",
    "phe": "CC(=O)N[C@@H](Cc1ccccc1)C(=O)NC",
    "gly-gly": "CC(=O)NCC(=O)NCC(=O)NC",
    "gly-ala": "CC(=O)NCC(=O)N[C@@H](C)C(=O)NC",
}
"""Amino acids (and two pairs) between an acetyl and a methylamide cap."""


def ani1x_mini(folder: Path, seed: int) -> None:
    """Normal-mode samples at 200-1500 K about the minima of small QM9 molecules."""
    rng = np.random.default_rng(seed)
    groups: dict[str, list[Frames]] = {}
    for molecule in qm9.small_molecules(seed, n=106, heavy=range(5, 9), n_formulae=90):
        if not xtb.relax(molecule):
            continue
        positions = xtb.normal_mode_samples(molecule, rng.uniform(200, 1500, size=6), rng)
        frames = xtb.label(molecule.numbers, positions).below(MAX_FORCE)
        groups.setdefault(molecule_formula(molecule), []).append(frames.take(np.arange(min(len(frames), 4))))
    joined = {formula: concatenate(parts) for formula, parts in groups.items()}
    for formula in rng.choice(list(joined), 3, replace=False).tolist():
        frames = joined[formula]
        energy, forces = frames.energy.copy(), frames.forces.copy()
        energy[-1], forces[-1] = np.nan, np.nan
        joined[formula] = replace(frames, energy=energy, forces=forces)
    layouts.write_ani1x(folder / "ani1x-mini.h5", dict(sorted(joined.items())))


def molecule_formula(atoms: Atoms) -> str:
    """Formula with every count written, as ANI-1x has it: ``C1H4N4O4``."""
    return "".join(f"{symbol}{count}" for symbol, count in sorted(atoms.symbols.formula.count().items()))


def transition1x_mini(folder: Path, seed: int) -> None:
    """Elastic bands between small QM9 molecules and isomers of theirs, split by formula."""
    rng = np.random.default_rng(seed)
    by_formula: dict[str, list[tuple[str, Reaction]]] = {}
    total = 0
    for molecule in qm9.small_molecules(seed, n=60, heavy=range(3, 8), n_formulae=60):
        if total >= 30:
            break
        for reaction in find_reactions(molecule, min(2, 30 - total), MAX_FORCE, rng):
            formula = molecule.get_chemical_formula()
            by_formula.setdefault(formula, []).append((f"rxn{total:04d}", reaction))
            total += 1
    formulae = list(by_formula)
    n_held_out = max(2, round(0.14 * len(formulae)))
    parts = {
        "train": formulae[: -2 * n_held_out],
        "val": formulae[-2 * n_held_out : -n_held_out],
        "test": formulae[-n_held_out:],
    }
    layouts.write_transition1x(
        folder / "transition1x-mini.h5",
        {split: {formula: by_formula[formula] for formula in names} for split, names in parts.items()},
    )


def rmd17_mini(folder: Path, seed: int) -> None:
    """Aspirin at 500 K, frames 25 fs apart in random order; the "old" labels are GFN1-xTB's."""
    rng = np.random.default_rng(seed)
    conformers, _ = embed(ASPIRIN, 1, seed)
    every = 25
    positions = xtb.langevin(conformers[0], 500, n=700, every=every, burn_in=2000, rng=rng)
    order = rng.permutation(len(positions))
    frames = xtb.label(conformers[0].numbers, positions[order])
    old = xtb.label(frames.numbers, frames.positions, method="GFN1-xTB")
    layouts.write_rmd17(folder / "rmd17-mini.zip", "aspirin", frames, old, order * every)


def md22_mini(folder: Path, seed: int) -> None:
    """A capped alanine tripeptide at 500 K, frames 15 fs apart."""
    rng = np.random.default_rng(seed)
    conformers, _ = embed(ACETYL_ALANINE_3, 1, seed)
    positions = xtb.langevin(conformers[0], 500, n=400, every=15, burn_in=500, rng=rng, accuracy=50)
    frames = xtb.label(conformers[0].numbers, positions)
    layouts.write_md22(folder / "md22_Ac-Ala3-NHMe.npz", "Ac-Ala3-NHMe", "GFN2-xTB", frames)


def spice_mini(folder: Path, seed: int) -> None:
    """Capped amino acids: every conformer once after 60 fs at 500 K and once relaxed a little from there."""
    rng = np.random.default_rng(seed)
    molecules = {}
    for name, smiles in PEPTIDES.items():
        conformers, mapped = embed(smiles, 17, seed)
        positions = []
        for conformer in conformers:
            positions.append(xtb.langevin(conformer, 500, n=1, every=60, burn_in=0, rng=rng)[0])
            xtb.relax(conformer, steps=5)
            positions.append(conformer.get_positions())
        frames = xtb.label(conformers[0].numbers, np.array(positions)).below(MAX_FORCE)
        subset = "spice-mini dipeptides" if "-" in name else "spice-mini amino acids"
        molecules[name] = (frames, mapped, subset, np.array([atom_energy(z) for z in frames.numbers]))
    layouts.write_spice(folder / "spice-mini.hdf5", molecules)


def atom_energy(number: int) -> float:
    """GFN2-xTB energy (eV) of an isolated atom, in its ground state by xTB's own occupation."""
    return Atoms(chemical_symbols[number], calculator=xtb.calculator()).get_potential_energy()


def qm9_mini(folder: Path, seed: int) -> None:
    """Random molecules of the real QM9."""
    layouts.write_qm9(folder, *qm9.sample(seed, n=700, n_uncharacterized=2))


def oc20_mini(folder: Path, seed: int) -> None:
    """Adsorbates on metals and alloys, labelled by CHGNet; every sixth system is for validation."""
    systems = metals.make_systems(seed, n_slabs=30, adsorbates_per_slab=2)
    rng = np.random.default_rng(seed)
    validation = set(rng.choice(len(systems), len(systems) // 6, replace=False).tolist())
    for name, wanted in (("s2ef_train_mini", False), ("s2ef_val_id", True)):
        members = [system for i, system in enumerate(systems) if (i in validation) == wanted]
        pairs = [(system, shot) for system in members for shot in system.snapshots]
        pairs = [pairs[i] for i in rng.permutation(len(pairs))]  # as in the official files
        texts = [
            layouts.extxyz_text(shot.atoms, shot.energy, shot.forces, shot.atoms.get_tags() > 0) for _, shot in pairs
        ]
        index = [f"{system.sid},frame{shot.frame},{system.reference:.8f}" for system, shot in pairs]
        layouts.write_oc20(folder / f"{name}.tar", texts, index, chunk=200)
    layouts.write_pickle(folder / "oc20_data_mapping.pkl", {system.sid: system.entry for system in systems})


def oc22_mini(folder: Path, seed: int) -> None:
    """Oxide slabs, total energies of CHGNet; every sixth system is for validation."""
    frames, table = oxides.make_systems(seed, n_adslabs=32)
    rng = np.random.default_rng(seed)
    validation = set(rng.choice(list(frames), len(frames) // 6, replace=False).tolist())
    splits = {}
    for name, wanted in (("train", False), ("val_id", True)):
        pairs = [(sid, shot) for sid, shots in frames.items() if (sid in validation) == wanted for shot in shots]
        pairs = [pairs[i] for i in rng.permutation(len(pairs))]
        splits[name] = [oxides.to_data(shot, sid, table[sid]["nads"], f"0_{i}") for i, (sid, shot) in enumerate(pairs)]
    layouts.write_oc22(folder / "s2ef_total_train_val_test_lmdbs.tar.gz", splits)
    layouts.write_pickle(folder / "oc22_metadata.pkl", table)


def matbench_phonons_mini(folder: Path, seed: int) -> None:
    """Semiconductors and insulators with the highest of CHGNet's phonons at Gamma, in random order."""
    rows = []
    for kind, formula in crystals.compounds(crystals.INSULATORS):
        atoms = crystals.relaxed(kind, formula)
        peak = None if atoms is None else phonons.highest_mode(atoms)
        if peak is not None:
            rows.append((atoms, peak))
    order = np.random.default_rng(seed).permutation(len(rows))
    layouts.write_matbench(folder / "matbench_phonons.json.gz", "last phdos peak", [rows[i] for i in order])


def omat24_mini(folder: Path, seed: int) -> None:
    """Crystals of all kinds, strained and with displaced atoms, three times each, in random order."""
    rng = np.random.default_rng(seed)
    known = crystals.compounds(crystals.INSULATORS | crystals.METALS)
    chosen = (crystals.relaxed(*known[i]) for i in rng.choice(len(known), 64, replace=False))
    frames = [shot for atoms in chosen if atoms is not None for shot in crystals.rattled(atoms, 3, rng)]
    frames = [frames[i] for i in rng.permutation(len(frames))]
    layouts.write_omat24(folder / "val.tar.gz", "rattled-300-subsampled", frames)


DATASETS: dict[str, Callable[[Path, int], None]] = {
    "qm9-mini": qm9_mini,
    "ani1x-mini": ani1x_mini,
    "transition1x-mini": transition1x_mini,
    "spice-mini": spice_mini,
    "rmd17-mini": rmd17_mini,
    "md22-mini": md22_mini,
    "oc20-mini": oc20_mini,
    "oc22-mini": oc22_mini,
    "matbench-phonons-mini": matbench_phonons_mini,
    "omat24-mini": omat24_mini,
}
