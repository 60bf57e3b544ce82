"""Extended XYZ, as ASE and most codes write it; the format for users' own structures.

Per frame the number of atoms, a line of ``key=value`` (``Lattice``, ``pbc``, ``energy``, ``Properties``) and one
line per atom. The units are the writer's; ASE writes eV and Angstrom.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from itertools import islice
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.io.extxyz import XYZError

from atomcsi.errors import InputError
from atomcsi.readers.base import Reader
from atomcsi.readers.raw import label_of, opened
from atomcsi.structure import Structure

_MEND = "correct the frame"


class ExtxyzReader(Reader):
    """Reads energies and forces where there are any; the label is the formula.

    Args:
        root: Folder of the dataset.
        part: Stands for ``{part}`` in ``file``.
        file: Path of the file below ``root``; ``.xz``, ``.gz`` and ``.bz2`` are decompressed.
    """

    def __init__(self, root: Path, *, part: str | None = None, file: str) -> None:
        super().__init__(root, part=part)
        self.file = self.path(file)

    def __iter__(self) -> Iterator[Structure]:
        """Yields the frames in order, as ``index`` or ``part/index``."""
        prefix = f"{self.part}/" if self.part else ""
        index = -1
        for index, structure in enumerate(frames(self.file)):
            label = label_of(structure.numbers, self.file, structure.source)
            yield replace(structure, source=f"{prefix}{index}", label=label)
        if index < 0:
            raise InputError(self.file, "holds no frames", mend="write it again")


def frames(path: Path) -> Iterator[Structure]:
    """Yields the frames of an extended XYZ file as ``frame <index>``, without labels, one in memory at a time."""
    with opened(path) as stream:
        for index, count in enumerate(line for line in stream if line.strip()):
            source = f"frame {index}"
            try:
                # ASE scans a whole file for its frames first, and in a compressed file it seeks backwards for
                # every one of them; so it is given a frame at a time.
                text = count + "".join(islice(stream, int(count) + 1))
                (atoms,) = ase.io.iread(StringIO(text), format="extxyz")
                structure = _structure(atoms, source)
            except KeyError as error:
                problem = f"names {error}, which is no element"
                raise InputError(path, problem, record=source, mend=_MEND) from error
            except (IndexError, RuntimeError, TypeError, ValueError, XYZError) as error:
                problem = f"is no complete frame: {error}"
                raise InputError(path, problem, record=source, mend=_MEND) from error
            yield structure


def _structure(atoms: Atoms, source: str) -> Structure:
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
