"""What is in a file of structures, and whether all of it is sound."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from atomcsi.errors import InputError
from atomcsi.progress import Progress
from atomcsi.structure_lmdb import StructureLMDB, fingerprint
from atomcsi.structure_record import BLOCK

_MEND = "delete it and run again"


def describe(path: Path | str) -> dict[str, Any]:
    """Returns what an LMDB file of structures holds, as its metadata say it and by its table of sizes.

    Returns:
        Counts, sizes, elements (symbol: atoms), energies (eV) and forces (eV/Angstrom), provenance and fingerprint.

    Raises:
        InputError: The file is missing, damaged or of another schema.
    """
    store = StructureLMDB(path)
    metadata, natoms = store.metadata, store.natoms
    by_symbol = {chemical_symbols[int(z)]: content for z, content in metadata["elements"].items()}
    content = {
        "schema": metadata["schema"],
        "bytes": store.path.stat().st_size,
        "structures": len(store),
        "atoms": metadata["atoms"],
        "atoms_a_structure": {"min": int(natoms.min()), "mean": float(natoms.mean()), "max": int(natoms.max())},
        "classes": len(metadata["classes"]),
        "groups": len(metadata["groups"]),
        "properties": metadata["properties"],
        "elements": by_symbol,
    }
    if "energies" in metadata:
        low, high = metadata["energy_range"]
        content["energy"] = {
            "structures": metadata["energies"], "min": low, "mean": metadata["energy_mean"], "max": high,
            "std_without_reference": metadata["energy_std"],
        }  # fmt: skip
        reference = metadata["linear_reference"]
        content["linear_reference"] = {chemical_symbols[int(z)]: energy for z, energy in reference.items()}
    if "force_rms" in metadata:
        content["force"] = {"rms_component": metadata["force_rms"], "max": metadata["force_max"]}
    return {**content, "provenance": metadata["provenance"], "fingerprint": metadata["fingerprint"]}


def table(content: Mapping[str, Any]) -> str:
    """Returns nested content as lines of names and values; names in one column."""
    lines = list(_lines(content))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in lines)


def _lines(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in content.items():
        words = name.replace("_", " ")
        if isinstance(value, Mapping):
            yield words, ", ".join(f"{key.replace('_', ' ')} {_cell(item)}" for key, item in value.items())
        else:
            yield words, ", ".join(map(str, value)) or "none" if isinstance(value, list) else _cell(value)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.8g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def verify(path: Path | str) -> int:
    """Reads all of an LMDB file of structures and returns the number of structures, each of which is sound.

    Raises:
        InputError: The file is damaged; names the first damaged structure, if that is what is damaged.
    """
    store = StructureLMDB(path)
    progress = Progress(f"verify {store.path.name}", total=len(store), unit="structures")
    digest, atoms = hashlib.sha256(), 0
    for start in range(0, len(store), BLOCK):
        indices = np.arange(start, min(start + BLOCK, len(store)))
        batch = store.read_batch(indices)
        atoms += int(batch.natoms.sum())
        digest.update(store.block(start // BLOCK))
        store.release()
        progress.advance(len(indices))
    found = fingerprint(digest, (store.natoms, store.classes, store.groups), store.metadata)
    if found != store.metadata["fingerprint"] or atoms != store.metadata["atoms"]:
        raise InputError(path, "holds other structures than its fingerprint says", mend=_MEND)
    progress.finish()
    return len(store)
