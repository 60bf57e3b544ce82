"""Files that ASE reads: trajectories (``.traj``), CIF, PDB and VASP's POSCAR, in eV and Angstrom.

Only formats whose readers compute nothing that a file asks for: ASE also has some that run Python or unpickle, and
it goes by a file's content where it is not told the format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.io import ulm

from atomcsi.errors import InputError
from atomcsi.readers.ase_db import structure_of
from atomcsi.readers.raw import MEND_FILE, naming, parsing
from atomcsi.structure import Structure

#: Ending of a file's name -> ASE's name of the format.
FORMATS: Mapping[str, str] = {".cif": "cif", ".pdb": "proteindatabank", ".vasp": "vasp"}


def structures(path: Path, format_: str) -> Iterator[Structure]:
    """Yields the structures of a file in one of :data:`FORMATS`, by index, without labels."""
    with naming(path), parsing(path, "", f"is no {format_} that ASE can read", MEND_FILE):
        images = ase.io.read(path, index=":", format=format_)
    for index, atoms in enumerate(images):
        yield of_atoms(atoms, str(index))


def trajectory(path: Path) -> Iterator[Structure]:
    """Yields the frames of a ``.traj`` file, by index, without labels, one in memory at a time.

    A frame holds ``positions``, ``cell`` and ``calculator`` with its results; ``numbers``, ``pbc``, ``tags`` and
    ``constraints`` are with the first frame, or with every one where they change.
    """
    with naming(path), parsing(path, "", "is no trajectory of ASE", MEND_FILE):
        file = ulm.Reader(path)
        count = len(file)
    with file:
        if file.get_tag() != "ASE-Trajectory":
            raise InputError(path, "is no trajectory of ASE", mend=MEND_FILE)
        for index in range(count):
            with parsing(path, f"frame {index}", "is damaged"):
                frame = file[index]
                structure = structure_of(_row(frame, frame if "numbers" in frame else file), str(index))
            yield structure


def _row(frame: ulm.Reader, header: ulm.Reader) -> dict[str, Any]:
    """Returns a frame as a row of ASE's databases, which name things alike."""
    row = {name: header.get(name) for name in ("numbers", "pbc", "tags")}
    row |= {
        "positions": frame.positions,
        "cell": frame.cell,
        "constraints": json.loads(header.get("constraints", "[]")),
    }
    results = frame.get("calculator", {})
    return row | {name: results.get(name) for name in ("energy", "forces")}


def of_atoms(atoms: Atoms, source: str) -> Structure:
    """Returns the structure of an ``ase.Atoms``, with the results of its calculator if it has one."""
    # Not through get_forces, which would give zero for fixed atoms.
    results = atoms.calc.results if atoms.calc else {}
    fixed = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            fixed[constraint.index] = True
    return Structure(
        numbers=atoms.numbers,
        positions=atoms.positions,
        source=source,
        label="",
        energy=float(results.get("energy", np.nan)),
        forces=results.get("forces"),
        cell=atoms.cell.array if atoms.cell.any() else None,
        pbc=tuple(bool(periodic) for periodic in atoms.pbc),
        tags=atoms.get_tags() if atoms.has("tags") else None,
        fixed=fixed if atoms.constraints else None,
    )
