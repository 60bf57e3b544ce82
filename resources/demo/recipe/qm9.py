"""The real QM9, as the Python package ``qm9pack`` carries it (130 831 molecules, all properties)."""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from ase import Atoms

N_TOTAL = 133_885
"""Molecules in the official archive, the uncharacterized ones included."""

PROPERTIES = (
    "RotA_GHz",
    "RotB_GHz",
    "RotC_GHz",
    "Dipole_debye",
    "Polarizability_bohr3",
    "HOMO_au",
    "LUMO_au",
    "HOMO_LUMO_gap_au",
    "R2_bohr2",
    "ZPVE_au",
    "InternalEnergy_0K_au",
    "InternalEnergy_298K_au",
    "Enthalphy_298K_au",
    "GibbsFreeEnergy_298K_au",
    "Heatcapacity_Cv_cal_mol_K",
)
"""Columns of the package in the order of the raw files' property line."""


def records() -> Iterator[dict[str, str]]:
    """Yield every molecule as the package's columns, every number as the text that it is stored in."""
    # The package itself imports pkg_resources, which setuptools no longer has: its tables are read directly.
    spec = find_spec("qm9pack")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the recipe needs the package qm9pack")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    csv.field_size_limit(2**24)
    for part in (1, 2, 3):
        with (folder / f"qm9_part{part}.csv").open(newline="") as handle:
            yield from csv.DictReader(handle)


def atoms_of(record: dict[str, str]) -> Atoms:
    """Build the molecule (Angstrom) of one record."""
    return Atoms(ast.literal_eval(record["Elements"]), positions=ast.literal_eval(record["XYZ_Ang"]))


def small_molecules(seed: int, n: int, heavy: range, n_formulae: int) -> list[Atoms]:
    """Draw CHNO molecules, spread over formulae: a second isomer only after every formula had its first.

    Args:
        seed: Seed of the draw.
        n: Number of molecules.
        heavy: Allowed numbers of C, N and O atoms together.
        n_formulae: Number of formulae that they are drawn from.

    Returns:
        The molecules, with atoms in the order of their symbols (C, H, N, O).
    """
    found: dict[tuple[int, ...], list[dict[str, str]]] = {}
    for record in records():
        if int(record["Index"]) > 22_000:  # beyond it every molecule has nine heavy atoms
            break
        hydrogen, carbon, nitrogen, oxygen, fluorine = ast.literal_eval(record["Stoichiometry"])
        if fluorine == 0 and carbon > 0 and hydrogen > 1 and carbon + nitrogen + oxygen in heavy:
            found.setdefault((carbon, hydrogen, nitrogen, oxygen), []).append(record)
    rng = np.random.default_rng(seed)
    formulae = [list(found)[i] for i in rng.permutation(len(found))[:n_formulae]]
    order = {formula: rng.permutation(len(found[formula])) for formula in formulae}
    chosen: list[Atoms] = []
    for rank in range(n):
        for formula in formulae:
            if rank < len(order[formula]) and len(chosen) < n:
                atoms = atoms_of(found[formula][order[formula][rank]])
                chosen.append(atoms[np.argsort(atoms.get_chemical_symbols(), kind="stable")])
    return chosen


def raw_text(record: dict[str, str]) -> str:
    """Write one molecule as the official archive does: ``dsgdb9nsd_NNNNNN.xyz``.

    The numbers keep their digits. Small ones are in the Mathematica notation of the originals (``2.1997*^-6``).
    The originals have two SMILES and two InChI (GDB-17's and that of the relaxed geometry); the package has
    one of each, which is written twice.
    """

    def number(text: str) -> str:
        return text.strip().replace("E", "*^").replace("e", "*^")

    def flat(column: str) -> list[str]:
        return [number(text) for text in record[column].replace("[", "").replace("]", "").split(",")]

    symbols, xyz, charges = ast.literal_eval(record["Elements"]), flat("XYZ_Ang"), flat("Mulliken_pop")
    lines = [str(len(symbols)), f"gdb {record['Index']}\t" + "".join(number(record[p]) + "\t" for p in PROPERTIES)]
    for i, (symbol, charge) in enumerate(zip(symbols, charges, strict=True)):
        lines.append("\t".join([symbol, *(f"{text:>13}" for text in xyz[3 * i : 3 * i + 3]), f"{charge:>9}"]))
    lines.append("\t".join(flat("Harmonic_Freq_cmi")))
    lines.append(f"{record['SMILES']}\t{record['SMILES']}\t")
    lines.append(f"{record['InChi']}\t{record['InChi']}")
    return "\n".join(lines) + "\n"


def sample(seed: int, n: int, n_uncharacterized: int) -> tuple[dict[int, str], list[int]]:
    """Draw molecules for the raw layout.

    Args:
        seed: Seed of the draw.
        n: Number of molecules.
        n_uncharacterized: How many of the uncharacterized molecules to list.

    Returns:
        Raw text by QM9 index in ascending order, and the first indices that QM9 calls uncharacterized, which
        are those that the package lacks.
    """
    indices = np.array([int(record["Index"]) for record in records()])
    absent = np.setdiff1d(np.arange(1, N_TOTAL + 1), indices)
    wanted = set(np.random.default_rng(seed).choice(indices, n, replace=False).tolist())
    texts = {int(record["Index"]): raw_text(record) for record in records() if int(record["Index"]) in wanted}
    return texts, absent[:n_uncharacterized].tolist()
