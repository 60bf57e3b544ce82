"""Metal and alloy slabs with small adsorbates, in the manner of OC20."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, surface
from ase.data import covalent_radii
from ase.spacegroup import crystal

from .surfaces import Snapshot, fix_subsurface, gas_references, relax, trajectory, upright

ELEMENTS = {
    "fcc": ("Cu", "Ag", "Au", "Ni", "Pd", "Pt", "Al", "Ir", "Rh"),
    "bcc": ("Fe", "W", "Mo", "V", "Nb", "Ta"),
    "hcp": ("Ru", "Co", "Ti", "Zr", "Zn", "Re"),
}
"""Elements by structure, with the lattice constants that ASE knows."""

ALLOYS = {
    "l12": {"AuCu3": 3.75, "AlNi3": 3.57, "NiPt3": 3.84, "TiPt3": 3.90},
    "b2": {"NiAl": 2.89, "FeAl": 2.91, "CuZn": 2.95, "TiFe": 2.98},
}
"""Binary alloys by structure, with their lattice constants in Angstrom."""

FACETS = {
    "fcc": (((1, 1, 1), 4, (1, 1, 1)), ((1, 0, 0), 2, (2, 1, 1))),
    "bcc": (((1, 1, 0), 4, (1, 2, 1)), ((1, 0, 0), 2, (2, 2, 1))),
    "hcp": (((0, 0, 1), 2, (2, 2, 1)),),
    "l12": (((1, 1, 1), 4, (1, 1, 1)),),
    "b2": (((1, 1, 0), 4, (1, 2, 1)),),
}
"""Miller indices, repeats along the normal and repeats of the slab: 16 atoms in four layers each."""

ADSORBATES = (
    ("*H", "H", "H"),
    ("*O", "O", "O"),
    ("*N", "N", "N"),
    ("*C", "C", "C"),
    ("*OH", "OH", "O"),
    ("*OH2", "H2O", "O"),
    ("*CO", "CO", "C"),
    ("*NO", "NO", "N"),
    ("*CH", "CH", "C"),
    ("*CH2", "CH2_s1A1d", "C"),
    ("*CH3", "CH3", "C"),
    ("*NH", "NH", "N"),
    ("*NH2", "NH2", "N"),
    ("*NH3", "NH3", "N"),
    ("*CHO", "HCO", "C"),
    ("*OCH3", "CH3O", "O"),
)
"""OC20-like symbol, name in ASE's collection, binding atom."""


@dataclass(frozen=True)
class System:
    """Frames of one adsorbate on one slab, their reference energy (eV) and their entry in the mapping."""

    sid: str
    snapshots: list[Snapshot]
    reference: float
    entry: dict[str, Any]


def conventional_cell(structure: str, name: str) -> Atoms:
    """Build the bulk."""
    if structure == "hcp":
        return bulk(name)
    if structure in ELEMENTS:
        return bulk(name, cubic=True)
    a = ALLOYS[structure][name]
    symbols = list(dict.fromkeys(Atoms(name).get_chemical_symbols()))
    second = (0.5, 0.5, 0) if structure == "l12" else (0.5, 0.5, 0.5)
    return crystal(symbols, [(0, 0, 0), second], spacegroup=221, cellpar=[a, a, a, 90, 90, 90])


def clean_slab(structure: str, name: str, facet: int) -> Atoms:
    """Build a slab in 20 Angstrom of vacuum; the lower two layers are subsurface (tag 0) and held."""
    miller, layers, repeat = FACETS[structure][facet]
    cell = conventional_cell(structure, name)
    slab = surface(Atoms(cell.symbols, cell.get_positions(), cell=cell.cell, pbc=True), miller, layers)
    slab = slab.repeat(repeat)
    slab.center(vacuum=10, axis=2)
    slab.pbc = True
    height = slab.positions[:, 2]
    slab.set_tags((height > (height.min() + height.max()) / 2).astype(int))
    fix_subsurface(slab)
    return slab


def adsorb(slab: Atoms, name: str, binding: str, rng: np.random.Generator) -> Atoms:
    """Put an adsorbate on top of one, between two, or among three surface atoms."""
    top = np.flatnonzero(slab.positions[:, 2] > slab.positions[:, 2].max() - 0.7)
    first = int(rng.choice(top))
    n_neighbours = int(rng.integers(3))
    vectors = slab.get_distances(first, top, mic=True, vector=True)
    nearest = np.argsort(np.linalg.norm(vectors, axis=1), kind="stable")[: n_neighbours + 1]
    site = slab.positions[first] + vectors[nearest].mean(axis=0)
    adsorbate = upright(name, binding, rng)
    radii = covalent_radii[slab.numbers[top[nearest]]].mean() + covalent_radii[Atoms(binding).numbers[0]]
    adsorbate.positions += site
    adsorbate.positions[:, 2] += (1.0, 0.85, 0.75)[n_neighbours] * radii
    system = slab.copy()
    system.set_constraint()
    system += adsorbate
    fix_subsurface(system)
    return system


def make_systems(seed: int, n_slabs: int, adsorbates_per_slab: int) -> list[System]:
    """Build, relax a little and rattle.

    Args:
        seed: Seed of all choices.
        n_slabs: Number of slabs, drawn from all structures, elements and facets above.
        adsorbates_per_slab: Different adsorbates on each.

    Returns:
        A system for each slab and adsorbate, with about seven frames.
    """
    rng = np.random.default_rng(seed)
    families = {**ELEMENTS, **ALLOYS}
    all_slabs = [(s, name, f) for s, names in families.items() for name in names for f in range(len(FACETS[s]))]
    sids = iter(rng.choice(2_500_000, n_slabs * adsorbates_per_slab, replace=False).tolist())
    systems = []
    for choice in rng.permutation(len(all_slabs))[:n_slabs]:
        structure, name, facet = all_slabs[choice]
        slab = clean_slab(structure, name, facet)
        for _ in relax(slab, steps=20):
            pass
        for which in rng.choice(len(ADSORBATES), adsorbates_per_slab, replace=False).tolist():
            symbols, molecule_name, binding = ADSORBATES[which]
            atoms = adsorb(slab, molecule_name, binding, rng)
            gas = sum(gas_references()[s] for s in atoms[len(slab) :].get_chemical_symbols())
            sid = f"random{next(sids)}"
            systems.append(
                System(
                    sid,
                    trajectory(atoms, before=6, relaxed=4, every=3, rattled=3, rng=rng),
                    slab.get_potential_energy() + gas,
                    {
                        "bulk_id": list(families[structure]).index(name) + 100 * list(families).index(structure),
                        "ads_id": which,
                        "bulk_mpid": f"demo-{structure}-{name}",
                        "bulk_symbols": conventional_cell(structure, name).get_chemical_formula(mode="metal"),
                        "ads_symbols": symbols,
                        "miller_index": FACETS[structure][facet][0],
                        "shift": 0.0,
                        "top": True,
                        "adsorption_site": (tuple(atoms.positions[len(slab)].round(2).tolist()),),
                        "class": 0,
                        "anomaly": 0,
                    },
                )
            )
    return systems
