"""Bulk crystals of common prototypes, relaxed by CHGNet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from ase import Atoms
from ase.constraints import FixSymmetry
from ase.data import covalent_radii
from ase.filters import FrechetCellFilter
from ase.formula import Formula
from ase.neighborlist import neighbor_list
from ase.optimize import BFGS
from ase.spacegroup import crystal
from chgnet.model.dynamics import CHGNetCalculator

from .frames import MAX_FORCE
from .surfaces import EnergyForces, Snapshot, chgnet, snapshot


@dataclass(frozen=True)
class Prototype:
    """A kind of crystal: one orbit of sites for each element, in the order of the formulae.

    Attributes:
        group: Number of the space group.
        sites: Fractional coordinates of one site of each orbit.
        formulae: Compounds of this kind, separated by spaces.
        c_over_a: Ratio of the axes.
        gamma: Angle between the first two axes in degrees.
    """

    group: int
    sites: tuple[tuple[float, float, float], ...]
    formulae: str
    c_over_a: float = 1.0
    gamma: float = 90.0


CORNER, CENTRE, QUARTER = (0, 0, 0), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

INSULATORS = {
    "diamond": Prototype(227, (CORNER,), "C Si Ge"),
    "rocksalt": Prototype(
        225,
        (CORNER, CENTRE),
        "NaCl KF RbI MgO CaO SrSe CaTe PbTe",
    ),
    "caesium chloride": Prototype(221, (CORNER, CENTRE), "CsI"),
    "zincblende": Prototype(
        216,
        (CORNER, QUARTER),
        "InP CuI BeSe",
    ),
    "wurtzite": Prototype(
        186,
        ((1 / 3, 2 / 3, 0), (1 / 3, 2 / 3, 0.375)),
        "BN MgTe GaP AlP",
        c_over_a=1.633,
        gamma=120,
    ),
    "fluorite": Prototype(
        225,
        (CORNER, QUARTER),
        "CeO2 HfO2 GeMg2 OLi2 SK2 SRb2 SeK2 TeLi2",
    ),
    "half-Heusler": Prototype(
        216,
        (CORNER, CENTRE, QUARTER),
        "LiPMg NbSbFe TaSbFe",
    ),
    "perovskite": Prototype(
        221,
        (CORNER, CENTRE, (0.5, 0.5, 0)),
        "CsCaF3",
    ),
    "rutile": Prototype(
        136,
        (CORNER, (0.305, 0.305, 0)),
        "GeO2 SiO2 ZnF2 FeF2",
        c_over_a=0.66,
    ),
    "cadmium iodide": Prototype(
        164,
        (CORNER, (1 / 3, 2 / 3, 0.25)),
        "SnSe2 HfS2 TiS2 PbI2",
        c_over_a=1.65,
        gamma=120,
    ),
    "molybdenite": Prototype(
        194,
        ((1 / 3, 2 / 3, 0.25), (1 / 3, 2 / 3, 0.621)),
        "MoSe2 WS2",
        c_over_a=3.9,
        gamma=120,
    ),
    "CaAl2Si2": Prototype(
        164,
        (CORNER, (1 / 3, 2 / 3, 0.63), (1 / 3, 2 / 3, 0.25)),
        "CaMg2Sb2 SrMg2Sb2 SrMg2As2 SrZn2Sb2 BaMg2P2 BaCd2P2",
        c_over_a=1.65,
        gamma=120,
    ),
    "delafossite": Prototype(
        166,
        (CORNER, (0, 0, 0.5), (0, 0, 0.11)),
        "CuInO2",
        c_over_a=5.9,
        gamma=120,
    ),
    "NaFeO2": Prototype(
        166,
        (CORNER, (0, 0, 0.5), (0, 0, 0.24)),
        "LiAlO2 NaAlO2 KScS2 RbScS2 NaYSe2 KYSe2",
        c_over_a=5.0,
        gamma=120,
    ),
    "chalcopyrite": Prototype(
        122,
        (CORNER, (0, 0, 0.5), (0.25, 0.25, 0.125)),
        "CuAlS2 CuInS2 CuInSe2 CuInTe2 AgGaS2 ZnSnP2 CdSnP2 ZnGeAs2 MgSiP2 LiAlTe2 LiInTe2",
        c_over_a=2.0,
    ),
    "matlockite": Prototype(
        129,
        ((0, 0.5, 0.20), CORNER, (0, 0.5, 0.65)),
        "SrHBr CaHCl",
        c_over_a=1.65,
    ),
    "K2PtCl6": Prototype(
        225,
        (QUARTER, CORNER, (0.24, 0, 0)),
        "Rb2SiF6 Cs2SiF6 Cs2HfCl6 Cs2PtBr6",
    ),
    "elpasolite": Prototype(
        225,
        (QUARTER, CENTRE, CORNER, (0.24, 0, 0)),
        "K2NaAlF6",
    ),
}
"""Semiconductors and insulators, as those of MatBench's phonons are."""

METALS = {
    "fcc": Prototype(225, (CORNER,), "Al Rh Pd Ag Ir Pt Pb"),
    "bcc": Prototype(229, (CORNER,), "Fe Ta W Li K"),
    "hcp": Prototype(194, ((1 / 3, 2 / 3, 0.25),), "Mg Hf Be", c_over_a=1.6, gamma=120),
    "B2": Prototype(221, (CORNER, CENTRE), "FeAl TiNi ScRu"),
    "L1_2": Prototype(221, (CORNER, (0, 0.5, 0.5)), "AlNi3 AuCu3 TiPt3"),
    "Heusler": Prototype(225, (CORNER, CENTRE, QUARTER), "VAlFe2"),
}
"""Metals and alloys."""


def ideal_crystal(prototype: Prototype, formula: str) -> Atoms:
    """Build the primitive cell of a compound, so large that its closest atoms are a little beyond their covalent radii.

    Raises:
        ValueError: The sites do not make up the formula.
    """
    a = 5.0
    elements = re.findall("[A-Z][a-z]?", formula)
    cell = [a, a, a * prototype.c_over_a, 90, 90, prototype.gamma]
    atoms = crystal(elements, prototype.sites, spacegroup=prototype.group, cellpar=cell, primitive_cell=True)
    if Formula(formula).reduce()[0] != atoms.symbols.formula.reduce()[0]:
        raise ValueError(f"the sites do not make up {formula}, but {atoms.symbols}")
    first, second, distance = neighbor_list("ijd", atoms, 1.5 * a)
    radii = covalent_radii[atoms.numbers]
    scale = 1.05 * np.max((radii[first] + radii[second]) / distance)
    return Atoms(atoms.numbers, scaled_positions=atoms.get_scaled_positions(), cell=scale * atoms.cell.array, pbc=True)


def compounds(prototypes: Mapping[str, Prototype]) -> list[tuple[Prototype, str]]:
    """List every compound with its prototype."""
    return [(kind, formula) for kind in prototypes.values() for formula in kind.formulae.split()]


@cache
def with_stress() -> CHGNetCalculator:
    """CHGNet with all that it gives."""
    return CHGNetCalculator(chgnet(), use_device="cpu")


def relaxed(prototype: Prototype, formula: str, fmax: float = 0.01, steps: int = 60) -> Atoms | None:
    """Build a compound and relax its sites and cell with its symmetry kept.

    Args:
        prototype: Its kind.
        formula: Its formula.
        fmax: Largest force on an atom (eV/Angstrom), and on the cell as ASE's filter measures it, at the end.
        steps: Steps at most.

    Returns:
        The primitive cell; none if it took more steps.
    """
    atoms = ideal_crystal(prototype, formula)
    atoms.calc = with_stress()
    atoms.set_constraint(FixSymmetry(atoms))
    if not BFGS(FrechetCellFilter(atoms), logfile=None, maxstep=0.2).run(fmax=fmax, steps=steps):
        return None
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)


def rattled(atoms: Atoms, n: int, rng: np.random.Generator) -> list[Snapshot]:
    """Strain a crystal and displace its atoms, as OMat24's rattled structures are made, and label it.

    Args:
        atoms: A relaxed primitive cell; its shortest axis is doubled until there are six atoms.
        n: Number of frames. Displacements are normal, of 0.03 to 0.25 Angstrom for a frame; strains too, of 0.03.
        rng: Source of randomness.

    Returns:
        The usable frames.
    """
    while len(atoms) < 6:
        atoms = atoms.repeat(np.where(np.arange(3) == atoms.cell.lengths().argmin(), 2, 1))
    snapshots = []
    for frame in range(n):
        copy = atoms.copy()
        strain = rng.normal(0, 0.03, (3, 3))
        copy.set_cell(copy.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        copy.rattle(rng.uniform(0.03, 0.25), rng=rng)
        copy.calc = EnergyForces()
        snapshots.append(snapshot(copy, frame))
    return [shot for shot in snapshots if np.linalg.norm(shot.forces, axis=1).max() < MAX_FORCE]
