"""Rows of ASE's databases: ``.db`` (SQLite) and fairchem's ``.aselmdb`` (LMDB), in eV and Angstrom.

A row holds ``numbers``, ``positions``, ``cell``, ``pbc``, ``tags``, ``constraints``, ``energy`` and ``forces``
(minus the gradient, of fixed atoms too); each but the first two may be missing. Both kinds of files are decoded
here: ASE would build whatever objects a row names, and take locks.

- ``.db``: a table ``systems`` whose arrays are blobs of little-endian int32 and float64, pbc a bit per axis.
- ``.aselmdb``: keys are decimal integers from 1; a value is zlib-compressed JSON of the row, with arrays as nested
  lists (fairchem's own writer, OMat24) or as ``{"__ndarray__": [shape, dtype, flat]}`` (ase-db-backends).
  ``nextid`` is one more than the last id, ``deleted_ids`` are those that were removed.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from atomcsi.errors import InputError
from atomcsi.lmdb_file import LmdbFile
from atomcsi.readers.raw import MEND_FILE, parsing, words
from atomcsi.structure import Structure

_COLUMNS = ("numbers", "positions", "cell", "pbc", "tags", "constraints", "energy", "forces")
_INTEGERS = ("numbers", "tags")
#: A row that unpacks to more than this is no structure but an attack on the memory.
_LARGEST_ROW = 1 << 28


def sqlite_structures(path: Path) -> Iterator[Structure]:
    """Yields the structures of a ``.db`` file in the order of their ids, which are their sources, without labels.

    Raises:
        InputError: The file is no database of ASE, or damaged.
    """
    select = f"SELECT id, {', '.join(_COLUMNS)} FROM systems ORDER BY id"
    try:
        # Immutable: neither a lock nor a journal of somebody else's file is made or played back.
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            database.execute("PRAGMA trusted_schema=OFF")
            # A view could compute anything, for as long as it likes.
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name='systems' AND type='table'").fetchone():
                raise InputError(path, "has no table 'systems'", mend="convert it with ASE: `ase convert`")
            for row_id, *values in database.execute(select):
                with parsing(path, f"row {row_id}", "is no row of ASE's database"):
                    row = {name: _unpacked(name, value) for name, value in zip(_COLUMNS, values, strict=True)}
                    structure = structure_of(row, str(row_id))
                yield structure
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise InputError(path, f"is no readable SQLite database: {words(error)}", mend=MEND_FILE) from error


def _unpacked(name: str, value: Any) -> Any:
    if name == "pbc":
        return [bool((value or 0) & bit) for bit in (1, 2, 4)]
    if name == "constraints":
        return json.loads(value or "null")
    return np.frombuffer(value, "<i4" if name in _INTEGERS else "<f8") if isinstance(value, bytes) else value


def aselmdb_structures(path: Path) -> Iterator[Structure]:
    """Yields the structures of an ``.aselmdb`` file in the order of their ids, which are their sources, without labels.

    Raises:
        InputError: The file is damaged.
    """
    values = LmdbFile(path, mend=MEND_FILE).values()
    with parsing(path, "", "is no .aselmdb: 'nextid' or 'deleted_ids'", MEND_FILE):
        end = int(_from_json(values.get(b"nextid", b"")))
        deleted = set(_from_json(values.get(b"deleted_ids", zlib.compress(b"[]"))))
    for row_id in range(1, end):
        record = values.get(str(row_id).encode())
        if record is None and row_id in deleted:
            continue
        if record is None:
            raise InputError(path, "is not there", record=f"row {row_id}", mend=MEND_FILE)
        with parsing(path, f"row {row_id}", "is no row of ASE's database"):
            structure = structure_of(_from_json(record), str(row_id))
        yield structure


def _from_json(value: bytes | memoryview) -> Any:
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(value, _LARGEST_ROW)
    if not unpacker.eof:
        raise ValueError("its compressed text is cut short, or far too long")
    return json.loads(text, object_hook=_array)


def _array(content: dict[str, Any]) -> Any:
    if "__ndarray__" not in content:
        return content
    shape, _dtype, flat = content["__ndarray__"]
    return np.reshape(flat, shape)


def structure_of(row: Mapping[str, Any], source: str) -> Structure:
    """Returns the structure of a row, without a label.

    Raises:
        Exception: Of nearly any kind, where the row is damaged; see :func:`atomcsi.readers.raw.parsing`.
    """

    def array(name: str, dtype: type, *shape: int) -> np.ndarray | None:
        value = row.get(name)
        return None if value is None else np.asarray(value).astype(dtype, casting="same_kind").reshape(shape)

    if row["numbers"] is None or row["positions"] is None:
        raise ValueError("it has no atoms")
    numbers, cell = array("numbers", np.int64, -1), array("cell", float, 3, 3)
    energy, constraints = row.get("energy"), row.get("constraints")
    return Structure(
        numbers=numbers,
        positions=array("positions", float, -1, 3),
        source=source,
        label="",
        energy=np.nan if energy is None else float(energy),
        forces=array("forces", float, -1, 3),
        cell=cell if cell is not None and cell.any() else None,
        pbc=tuple(map(bool, np.reshape(row.get("pbc", [False] * 3), 3))),
        tags=array("tags", np.int64, -1),
        fixed=_fixed_atoms(constraints, len(numbers)) if constraints else None,
    )


def _fixed_atoms(constraints: list[dict[str, Any]], natoms: int) -> np.ndarray:
    """Returns which atoms ``FixAtoms`` holds, shape (atoms,), of constraints as ASE stores them."""
    fixed = np.zeros(natoms, dtype=bool)
    for constraint in constraints:
        if constraint["name"] == "FixAtoms":
            fixed[np.asarray(constraint["kwargs"]["indices"])] = True
    return fixed
