"""LMDBs of pickled ``torch_geometric.data.Data``, the format of fairchem 1.x and JMP.

Keys are decimal integers from 0 and ``length``. A ``Data`` has ``pos`` (atoms, 3) in Angstrom, ``atomic_numbers``
(atoms,), ``y`` (energy, eV; newer writers call it ``energy``), ``force`` (atoms, 3) in eV/Angstrom, minus the
gradient (newer: ``forces``), ``cell`` (1, 3, 3) or ``pbc`` or both, ``fixed`` (1: held) and ``tags`` (0 below the
surface, 1 surface, 2 adsorbate). Datasets without cells (JMP's ANI-1x and Transition-1x) have ``pbc`` 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from atomcsi.errors import InputError
from atomcsi.lmdb_file import LmdbFile
from atomcsi.readers.raw import MEND_FILE, MEND_RECORD
from atomcsi.structure import Structure
from atomcsi.unpickle import load_plain, load_pyg_data


def structures(path: Path) -> Iterator[Structure]:
    """Yields the structures of a file with their keys as sources, without labels; NaN where there is no energy."""
    return (structure_of(data, path, key) for key, data in entries(path))


def entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the keys of a file with the attributes of their Data.

    Raises:
        InputError: The file is damaged, or a pickle in it is not one of data.
    """
    values = LmdbFile(path, mend=MEND_FILE).values()
    length = values.get(b"length")
    count = len(values) if length is None else load_plain(bytes(length), path=path, record="length")
    if not isinstance(count, int):
        raise InputError(path, f"is {count!r}, not a number", record="length", mend=MEND_FILE)
    for index in range(count):
        key = str(index)
        if key.encode() not in values:
            problem = f"is not there, but the file should have {count} records"
            raise InputError(path, problem, record=key, mend=MEND_FILE)
        data = load_pyg_data(bytes(values[key.encode()]), path=path, record=key)
        if not isinstance(data, dict):
            raise InputError(path, "is no torch_geometric Data", record=key, mend=MEND_RECORD)
        yield key, data


def structure_of(data: dict[str, Any], path: Path, key: str) -> Structure:
    """Returns the structure of a Data; ``path`` and ``key`` are what an error names."""
    try:
        cell = np.reshape(data["cell"], (3, 3)) if "cell" in data else None
        pbc = np.reshape(data["pbc"], 3).astype(bool) if "pbc" in data else [cell is not None] * 3
        forces = data.get("forces", data.get("force"))
        return Structure(
            numbers=np.asarray(data["atomic_numbers"]).astype(np.int64),
            positions=np.asarray(data["pos"]),
            source=key,
            label="",
            energy=np.asarray(data.get("energy", data.get("y", np.nan)), dtype=float).item(),
            forces=None if forces is None else np.asarray(forces),
            cell=cell,
            pbc=tuple(map(bool, pbc)),
            tags=np.asarray(data["tags"]) if "tags" in data else None,
            fixed=np.asarray(data["fixed"], dtype=bool) if "fixed" in data else None,
        )
    except KeyError as error:
        raise InputError(path, f"has no attribute {error}", record=key, mend=MEND_RECORD) from error
    except (TypeError, ValueError) as error:
        problem = f"has an attribute of the wrong kind: {error}"
        raise InputError(path, problem, record=key, mend=MEND_RECORD) from error
