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


def pyg_data(structure: Structure) -> Data:
    """Returns a structure as fairchem's loaders give it: eV and Angstrom, vectors in float32, the energy in full."""
    import torch
    from torch_geometric.data import Data

    natoms = len(structure)
    attributes: dict[str, Any] = {
        "pos": torch.tensor(structure.positions),
        "atomic_numbers": torch.tensor(structure.numbers),
        "natoms": natoms,
        "energy": structure.energy,
        "sid": structure.source,
    }
    for name, array in (("forces", structure.forces), ("tags", structure.tags), ("fixed", structure.fixed)):
        if array is not None:
            attributes[name] = torch.tensor(array)
    if structure.cell is not None:
        attributes["cell"] = torch.tensor(structure.cell)[None]
    return Data(**attributes)
