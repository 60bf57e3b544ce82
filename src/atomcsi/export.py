"""Structures for other people's code: fairchem's ``.aselmdb`` files, and PyTorch Geometric's ``Data``."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb
import numpy as np

from atomcsi.files import atomic_path
from atomcsi.progress import Progress
from atomcsi.structure import Structure
from atomcsi.structure_batch import CELL, FIXED, FORCES, TAGS, StructureBatch
from atomcsi.structure_lmdb import StructureLMDB

if TYPE_CHECKING:
    from torch_geometric.data import Data

_MAP_SIZE = 1 << 40
_COMMIT_EVERY = 10_000


def export_aselmdb(source: Path | str, path: Path | str) -> int:
    """Writes an LMDB file of structures as ``.aselmdb``, which fairchem and ASE (with ase-db-backends) read.

    It is an LMDB with the keys ``1``, ``2`` ..., ``nextid`` and ``metadata``, whose values are zlib-compressed JSON:
    of a structure, the fields of ``ase.db.row.AtomsRow`` with plain lists for arrays. Energies and forces are those
    of a single-point calculator; the name of the record, its class and its further targets are in ``data``.

    Args:
        source: The file to read.
        path: The file to write.

    Returns:
        The number of structures.

    Raises:
        InputError: ``source`` cannot be read.
        AtomcsiError: The disk is full.
    """
    store = StructureLMDB(source)
    progress = Progress(f"export {store.path.name}", total=len(store), unit="structures")
    metadata = {"provenance": store.metadata["provenance"], "fingerprint": store.metadata["fingerprint"]}
    with atomic_path(path) as temporary:
        environment = lmdb.open(str(temporary), subdir=False, map_size=_MAP_SIZE, lock=False, sync=False)
        try:
            transaction = environment.begin(write=True)
            for number, structure in enumerate(progress.over(store), start=1):
                transaction.put(str(number).encode(), _packed(_row(structure, number)))
                if number % _COMMIT_EVERY == 0:
                    transaction.commit()
                    transaction = environment.begin(write=True)
            transaction.put(b"nextid", _packed(len(store) + 1))
            transaction.put(b"metadata", _packed(metadata))
            transaction.commit()
            environment.sync(True)
        finally:
            environment.close()
    return len(store)


def _packed(content: Any) -> bytes:
    return zlib.compress(json.dumps(content).encode())


def _row(structure: Structure, number: int) -> dict[str, Any]:
    row = {
        "numbers": structure.numbers.tolist(),
        "positions": structure.positions.tolist(),
        "cell": np.zeros((3, 3)).tolist() if structure.cell is None else structure.cell.tolist(),
        "pbc": list(structure.pbc),
        # Of no use here, but the format has them; constant, so that the same structures give the same file.
        "unique_id": f"{number:032x}",
        "ctime": 0.0,
        "mtime": 0.0,
        "user": "atomcsi",
        "key_value_pairs": {},
        "data": {"source": structure.source, "label": structure.label, **structure.properties},
    }
    if structure.tags is not None:
        row["tags"] = structure.tags.tolist()
    if structure.fixed is not None and structure.fixed.any():
        indices = np.flatnonzero(structure.fixed).tolist()
        row["constraints"] = [{"name": "FixAtoms", "kwargs": {"indices": indices}}]
    labels = {} if np.isnan(structure.energy) else {"energy": structure.energy}
    if structure.forces is not None:
        labels["forces"] = structure.forces.tolist()
    return {**row, **labels, "calculator": "unknown", "calculator_parameters": {}} if labels else row


def pyg_data(batch: StructureBatch) -> list[Data]:
    """Returns structures as PyTorch Geometric's ``Data``, with the attributes that fairchem's loaders give.

    ``pos`` (atoms, 3) and ``cell`` (1, 3, 3) in Angstrom, ``forces`` (atoms, 3) in eV/Angstrom, ``atomic_numbers``,
    ``tags`` and ``fixed`` (atoms,), ``natoms``, ``energy`` in eV and ``sid``, the name of the record; cell, forces,
    tags and fixed only where a structure has them. The tensors are views into the batch.
    """
    import torch
    from torch_geometric.data import Data

    natoms = batch.natoms.tolist()
    always = {"pos": batch.positions, "atomic_numbers": batch.numbers.astype(np.int64)}
    by_flag = {FORCES: ("forces", batch.forces), TAGS: ("tags", batch.tags), FIXED: ("fixed", batch.fixed)}
    columns = {name: torch.from_numpy(array).split(natoms) for name, array in always.items()}
    columns |= {"natoms": natoms, "energy": batch.energy.tolist(), "sid": batch.sources}
    partial = {
        flag: (name, torch.from_numpy(array).split(natoms))
        for flag, (name, array) in by_flag.items()
        if batch.has(flag).any()
    }
    if batch.has(CELL).any():
        partial[CELL] = ("cell", torch.from_numpy(batch.cell).split(1))
    found = []
    for position, (flags, *values) in enumerate(zip(batch.flags.tolist(), *columns.values(), strict=True)):
        attributes = dict(zip(columns, values, strict=True))
        for flag, (name, pieces) in partial.items():
            if flags & flag:
                attributes[name] = pieces[position]
        data = Data()
        # Its setters take 2 us an attribute, several times what reading the structure takes.
        data._store._mapping.update(attributes)
        found.append(data)
    return found
