"""Oxide slabs, clean or with O, OH or H2O, in the manner of OC22."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase import Atoms
from pymatgen.core import Lattice, Structure
from pymatgen.core.surface import SlabGenerator
from pymatgen.io.ase import AseAtomsAdaptor
from torch_geometric.data import Data

from .surfaces import Snapshot, trajectory, upright

MAX_ATOMS = 36
"""Largest number of atoms in a slab."""

BULKS: dict[str, dict[str, tuple[float, ...]]] = {
    "rutile": {
        "TiO2": (4.594, 2.959),
        "RuO2": (4.492, 3.107),
        "IrO2": (4.505, 3.159),
        "SnO2": (4.737, 3.186),
        "VO2": (4.554, 2.850),
        "MnO2": (4.398, 2.873),
    },
    "rocksalt": {"MgO": (4.21,), "CaO": (4.81,), "NiO": (4.18,), "CoO": (4.26,), "MnO": (4.44,), "FeO": (4.33,)},
    "perovskite": {"SrTiO3": (3.905,), "BaTiO3": (4.00,), "LaAlO3": (3.79,), "KTaO3": (3.99,), "LaCoO3": (3.82,)},
    "fluorite": {"CeO2": (5.41,), "ZrO2": (5.09,), "HfO2": (5.08,)},
    "wurtzite": {"ZnO": (3.25, 5.21), "BeO": (2.70, 4.38)},
}
"""Lattice constants (a, or a and c) in Angstrom by structure and formula."""

MILLER = {
    "rutile": ((1, 1, 0), (1, 0, 1)),
    "rocksalt": ((1, 0, 0), (1, 1, 0)),
    "perovskite": ((1, 0, 0),),
    "fluorite": ((1, 1, 1),),
    "wurtzite": ((1, 0, 0),),
}
"""Facets by structure."""

ADSORBATES = {"O": "O", "OH": "OH", "H2O": "H2O"}
"""OC22's symbol and ASE's name."""


def bulk_structure(structure: str, formula: str) -> Structure:
    """Build the conventional cell."""
    a, c = (*BULKS[structure][formula], 0.0)[:2]
    species = list(dict.fromkeys(Atoms(formula).get_chemical_symbols()))
    cubic, tetragonal, hexagonal = Lattice.cubic(a), Lattice.tetragonal(a, c or a), Lattice.hexagonal(a, c or a)
    group, lattice, sites = {
        "rutile": ("P4_2/mnm", tetragonal, [(0, 0, 0), (0.305, 0.305, 0)]),
        "rocksalt": ("Fm-3m", cubic, [(0, 0, 0), (0.5, 0.5, 0.5)]),
        "perovskite": ("Pm-3m", cubic, [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)]),
        "fluorite": ("Fm-3m", cubic, [(0, 0, 0), (0.25, 0.25, 0.25)]),
        "wurtzite": ("P6_3mc", hexagonal, [(1 / 3, 2 / 3, 0), (1 / 3, 2 / 3, 0.382)]),
    }[structure]
    return Structure.from_spacegroup(group, lattice, species, sites)


def clean_slab(structure: str, formula: str, miller: tuple[int, int, int]) -> Atoms | None:
    """Cut a slab at least 5 Angstrom thick in 15 Angstrom of vacuum.

    Args:
        structure: Key of ``BULKS``.
        formula: Formula of the bulk.
        miller: Facet.

    Returns:
        The slab, symmetric if there is such a termination, with tag 1 on the upmost 1.5 Angstrom; none if it
        has too many atoms.
    """
    generator = SlabGenerator(
        bulk_structure(structure, formula), miller, min_slab_size=5, min_vacuum_size=15, center_slab=True
    )
    slabs = [slab for slab in generator.get_slabs() if len(slab) <= MAX_ATOMS]
    if not slabs:
        return None
    slab = min(slabs, key=lambda candidate: (not candidate.is_symmetric(), len(candidate)))
    atoms = AseAtomsAdaptor.get_atoms(slab.get_orthogonal_c_slab())
    atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    for axis in (0, 1):
        if atoms.cell.lengths()[axis] < 4.5 and 2 * len(atoms) <= MAX_ATOMS:
            atoms = atoms.repeat([2 if axis == i else 1 for i in range(3)])
    height = atoms.positions[:, 2]
    atoms.set_tags((height > height.max() - 1.5).astype(int))
    return atoms


def adsorb(slab: Atoms, name: str, rng: np.random.Generator) -> Atoms:
    """Put an adsorbate, oxygen down, 2 Angstrom above one of the upmost metal atoms."""
    metal = slab.numbers != 8
    upmost = np.flatnonzero(metal & (slab.positions[:, 2] > slab.positions[metal, 2].max() - 0.3))
    adsorbate = upright(name, "O", rng)
    adsorbate.positions += slab.positions[int(rng.choice(upmost))] + [*rng.normal(0, 0.2, 2), 2.0]
    return slab + adsorbate


def to_data(shot: Snapshot, sid: int, nads: int, identifier: str) -> Data:
    """Write a frame as an object of the S2EF-total LMDBs (float32, no atom is fixed)."""
    atoms = shot.atoms

    def single(values: np.ndarray) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32)

    return Data(
        y=shot.energy,
        pos=single(atoms.positions),
        cell=single(atoms.cell.array).view(1, 3, 3),
        atomic_numbers=single(atoms.numbers),
        natoms=len(atoms),
        force=single(shot.forces),
        fixed=torch.zeros(len(atoms)),
        tags=torch.tensor(atoms.get_tags(), dtype=torch.long),
        nads=nads,
        sid=sid,
        fid=shot.frame,
        id=identifier,
        oc22=1,
    )


def make_systems(seed: int, n_adslabs: int) -> tuple[dict[int, list[Snapshot]], dict[int, dict[str, Any]]]:
    """Build all clean slabs and some with an adsorbate; relax a little and rattle.

    Args:
        seed: Seed of all choices.
        n_adslabs: Number of systems with an adsorbate.

    Returns:
        Frames by system id, and the metadata table by system id.
    """
    rng = np.random.default_rng(seed)
    keys = [(s, formula, m) for s, formulae in BULKS.items() for formula in formulae for m in MILLER[s]]
    slabs = [(key, slab) for key in keys if (slab := clean_slab(*key)) is not None]
    sids = iter(rng.choice(70_000, len(slabs) + n_adslabs, replace=False).tolist())
    frames: dict[int, list[Snapshot]] = {}
    table: dict[int, dict[str, Any]] = {}

    def add(key: tuple[str, str, tuple[int, int, int]], atoms: Atoms, slab_sid: int | None, ads: str | None) -> int:
        sid = next(sids)
        structure, formula, miller = key
        frames[sid] = trajectory(atoms, before=5, relaxed=3, every=4, rattled=2, rng=rng)
        table[sid] = {
            "bulk_id": f"demo-{structure}-{formula}",
            "bulk_symbols": bulk_structure(structure, formula).formula.replace(" ", ""),
            "miller_index": miller,
            "traj_id": f"{structure}_{formula}_{''.join(map(str, miller))}_{ads or 'clean'}_{sid}",
            "slab_sid": slab_sid,
            "ads_symbols": ads,
            "nads": int(ads is not None),
        }
        return sid

    clean_sids = [add(key, slab, None, None) for key, slab in slabs]  # relaxes the slabs in place
    for i in range(n_adslabs):
        which = i % len(slabs)
        ads = str(rng.choice(list(ADSORBATES)))
        add(slabs[which][0], adsorb(slabs[which][1], ADSORBATES[ads], rng), clean_sids[which], ads)
    return frames, table
