"""Extended XYZ, as ASE and most codes write it; OC20's files and many users' own.

Per frame the number of atoms, a line of ``key=value`` (``Lattice``, ``pbc``, ``energy``, ``Properties``) and one
line per atom. The units are the writer's; ASE writes eV and Angstrom.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from itertools import islice
from pathlib import Path

import ase.io

from atomcsi.readers.ase_files import of_atoms
from atomcsi.readers.raw import opened, parsing
from atomcsi.structure import Structure

_MEND = "correct the frame"


def frames(path: Path) -> Iterator[Structure]:
    """Yields the frames of an extended XYZ file as ``frame <index>``, without labels, one in memory at a time.

    Files that end in ``.xz``, ``.gz`` or ``.bz2`` are decompressed on the way.
    """
    with opened(path) as stream:
        for index, count in enumerate(line for line in stream if line.strip()):
            source = f"frame {index}"
            with parsing(path, source, "is no complete frame", _MEND):
                lines = islice(stream, int(count) + 1)
            # ASE scans a whole file for its frames first, and in a compressed file it seeks backwards for every
            # one of them; so it is given a frame at a time.
            text = StringIO(count + "".join(lines))
            with parsing(path, source, "is no complete frame", _MEND):
                try:
                    (atoms,) = ase.io.iread(text, format="extxyz")
                except KeyError as error:
                    raise ValueError(f"{error} is no element") from error
                structure = of_atoms(atoms, source)
            yield structure
