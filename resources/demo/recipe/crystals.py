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
        "LiF LiCl LiBr NaF NaCl NaBr NaI KF KCl KBr KI RbCl RbBr RbI AgCl AgBr MgO CaO SrO BaO CdO MgS CaS SrS BaS MgSe"
        " CaSe SrSe CaTe SrTe PbS PbSe PbTe",
    ),
    "caesium chloride": Prototype(221, (CORNER, CENTRE), "CsCl CsBr CsI TlCl TlBr"),
    "zincblende": Prototype(
        216,
        (CORNER, QUARTER),
        "BN BP BAs AlP AlAs AlSb GaP GaAs GaSb InP InAs InSb ZnS ZnSe ZnTe CdTe CuCl CuBr CuI SiC BeS BeSe BeTe HgTe",
    ),
    "wurtzite": Prototype(
        186,
        ((1 / 3, 2 / 3, 0), (1 / 3, 2 / 3, 0.375)),
        "BeO ZnO BN AlN GaN InN ZnS ZnSe CdS CdSe SiC AgI MgTe CuBr CuI GaP AlP BP",
        c_over_a=1.633,
        gamma=120,
    ),
    "fluorite": Prototype(
        225,
        (CORNER, QUARTER),
        "CaF2 SrF2 BaF2 CdF2 PbF2 SrCl2 CeO2 HfO2 SiMg2 GeMg2 SnMg2 OLi2 ONa2 OK2 SLi2 SNa2 SK2 SRb2 SeLi2 SeNa2 SeK2"
        " TeLi2 TeNa2 TeK2 CBe2",
    ),
    "half-Heusler": Prototype(
        216,
        (CORNER, CENTRE, QUARTER),
        "LiPZn LiAsZn LiNZn LiPMg LiAsMg LiPCd TiSnNi ZrSnNi HfSnNi TiSbCo ZrSbCo HfSbCo NbSbFe VSbFe TaSbFe NbSbRu",
    ),
    "perovskite": Prototype(
        221,
        (CORNER, CENTRE, (0.5, 0.5, 0)),
        "KMgF3 KZnF3 RbZnF3 RbMgF3 CsCaF3 CsCdF3 KNiF3 BaLiF3 BaLiH3 SrLiH3 BaZrO3 BaSnO3 BaHfO3 KTaO3 SrTiO3 BiNCa3"
        " SbNCa3 PNCa3 AsNCa3 SbNMg3 AsNMg3 SbNSr3 BiNSr3 BrOLi3",
    ),
    "rutile": Prototype(
        136,
        (CORNER, (0.305, 0.305, 0)),
        "TiO2 SnO2 GeO2 PbO2 SiO2 MgF2 ZnF2 MgH2 NiF2 MnF2 FeF2 CoF2 MnO2",
        c_over_a=0.66,
    ),
    "cadmium iodide": Prototype(
        164,
        (CORNER, (1 / 3, 2 / 3, 0.25)),
        "CdI2 MgBr2 MgI2 CaI2 SnS2 SnSe2 ZrS2 ZrSe2 HfS2 HfSe2 TiS2 PtS2 PtSe2 MnI2 PbI2",
        c_over_a=1.65,
        gamma=120,
    ),
    "molybdenite": Prototype(
        194,
        ((1 / 3, 2 / 3, 0.25), (1 / 3, 2 / 3, 0.621)),
        "MoS2 MoSe2 WS2 WSe2 MoTe2",
        c_over_a=3.9,
        gamma=120,
    ),
    "CaAl2Si2": Prototype(
        164,
        (CORNER, (1 / 3, 2 / 3, 0.63), (1 / 3, 2 / 3, 0.25)),
        "CaMg2Sb2 CaMg2As2 CaMg2Bi2 SrMg2Sb2 SrMg2P2 SrMg2As2 CaZn2P2 CaZn2As2 CaZn2Sb2 SrZn2P2 SrZn2As2 SrZn2Sb2"
        " CaCd2P2 CaCd2As2 SrCd2P2 SrCd2As2 BaMg2P2 BaMg2As2 BaMg2Sb2 BaCd2P2",
        c_over_a=1.65,
        gamma=120,
    ),
    "delafossite": Prototype(
        166,
        (CORNER, (0, 0, 0.5), (0, 0, 0.11)),
        "CuAlO2 CuGaO2 CuInO2 CuScO2 CuYO2 AgAlO2 AgGaO2 AgInO2 AgScO2",
        c_over_a=5.9,
        gamma=120,
    ),
    "NaFeO2": Prototype(
        166,
        (CORNER, (0, 0, 0.5), (0, 0, 0.24)),
        "NaScO2 NaInO2 NaYO2 LiCoO2 LiAlO2 NaAlO2 NaScS2 NaInS2 NaYS2 KScS2 KYS2 KInS2 RbYS2 RbScS2 CsYS2 NaYSe2 KYSe2",
        c_over_a=5.0,
        gamma=120,
    ),
    "chalcopyrite": Prototype(
        122,
        (CORNER, (0, 0, 0.5), (0.25, 0.25, 0.125)),
        "CuAlS2 CuGaS2 CuInS2 CuAlSe2 CuGaSe2 CuInSe2 CuGaTe2 CuInTe2 AgAlS2 AgGaS2 AgInS2 AgGaSe2 AgInSe2 AgGaTe2"
        " ZnSiP2 ZnGeP2 ZnSnP2 CdSiP2 CdGeP2 CdSnP2 ZnSiAs2 ZnGeAs2 CdSiAs2 CdGeAs2 MgSiP2 LiAlTe2 LiGaTe2 LiInTe2",
        c_over_a=2.0,
    ),
    "matlockite": Prototype(
        129,
        ((0, 0.5, 0.20), CORNER, (0, 0.5, 0.65)),
        "BaFCl BaFBr BaFI SrFCl SrFBr CaFCl PbFCl PbFBr BaHCl BaHBr BaHI SrHCl SrHBr CaHCl BiOCl BiOBr BiOI LaOCl YOCl",
        c_over_a=1.65,
    ),
    "K2PtCl6": Prototype(
        225,
        (QUARTER, CORNER, (0.24, 0, 0)),
        "K2SiF6 Rb2SiF6 Cs2SiF6 Cs2GeF6 Cs2TiF6 K2PtCl6 Rb2PtCl6 Cs2PtCl6 Cs2SnCl6 Cs2SnBr6 Cs2SnI6 Cs2ZrCl6 Cs2HfCl6"
        " Rb2SnCl6 Cs2PtBr6 Cs2TeI6",
    ),
    "elpasolite": Prototype(
        225,
        (QUARTER, CENTRE, CORNER, (0.24, 0, 0)),
        "K2NaAlF6 Rb2NaYF6 Cs2NaYF6 Cs2NaYCl6 Cs2NaScCl6 Cs2LiYCl6 Cs2NaLaCl6 Cs2KYF6 Cs2NaYBr6 Rb2KScF6 Cs2KScF6"
        " Cs2NaAlF6 Cs2KLaCl6",
    ),
}
"""Semiconductors and insulators, as those of MatBench's phonons are."""

METALS = {
    "fcc": Prototype(225, (CORNER,), "Al Ni Cu Rh Pd Ag Ir Pt Au Ca Sr Pb"),
    "bcc": Prototype(229, (CORNER,), "V Cr Fe Nb Mo Ta W Li Na K Ba"),
    "hcp": Prototype(194, ((1 / 3, 2 / 3, 0.25),), "Mg Ti Zr Hf Sc Y Zn Co Ru Re Be", c_over_a=1.6, gamma=120),
    "B2": Prototype(221, (CORNER, CENTRE), "NiAl CoAl FeAl TiFe TiNi CuZn AgMg ScRu"),
    "L1_2": Prototype(221, (CORNER, (0, 0.5, 0.5)), "AlNi3 AuCu3 PtFe3 NiPt3 TiPt3 GaNi3 SnCe3 AlSc3"),
    "Heusler": Prototype(225, (CORNER, CENTRE, QUARTER), "MnAlCu2 VAlFe2 TiAlNi2 MnSiCo2 SnLiAg2 ZrAlCu2"),
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


def relaxed(prototype: Prototype, formula: str, fmax: float = 0.005, steps: int = 100) -> Atoms | None:
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
    if not BFGS(FrechetCellFilter(atoms), logfile=None, maxstep=0.1).run(fmax=fmax, steps=steps):
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
