"""OC22 S2EF-total: adsorbates on oxide slabs along relaxations at PBE+U, as LMDBs of pickled ``Data`` objects.

Keys are decimal integers from 0 and ``length``. A ``torch_geometric.data.Data`` has ``y`` (DFT total energy, eV;
newer writers call it ``energy``), ``pos`` (atoms, 3) in Angstrom, ``cell`` (1, 3, 3), ``atomic_numbers`` (atoms,),
``force`` (atoms, 3) in eV/Angstrom, minus the gradient (newer: ``forces``), ``fixed`` (1: held), ``tags`` (0 below
the surface, 1 surface, 2 adsorbate), ``sid`` and ``fid``. ``oc22_metadata.pkl`` tells what a system is made of.

JMP's LMDBs of ANI-1x and Transition-1x have the same layout, without ``cell`` and with ``pbc``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from atomcsi.errors import InputError
from atomcsi.files import open_lmdb
from atomcsi.readers.base import Reader
from atomcsi.readers.raw import MEND_FILE, MEND_RECORD, BulkLabels, files_in, finite_energy, label_of
from atomcsi.structure import Structure
from atomcsi.unpickle import load_plain, load_pyg_data


class Oc22Reader(Reader):
    """Reads a part, with the composition of the bulk as the label, or the formula where there is no metadata.

    Args:
        root: Folder of the dataset.
        part: ``train``, ``val_id`` or ``val_ood``.
        folder: Folder of the part's LMDBs below ``root``; ``{part}`` stands for ``part``.
        metadata: Path of ``oc22_metadata.pkl`` below ``root``, or None.
    """

    def __init__(
        self,
        root: Path,
        *,
        part: str | None = None,
        folder: str = "s2ef_total_train_val_test_lmdbs/data/oc22/s2ef-total/{part}",
        metadata: str | None = "oc22_metadata.pkl",
    ) -> None:
        super().__init__(root, part=part)
        self.folder = self.path(folder)
        self.metadata = None if metadata is None else self.path(metadata)

    def __iter__(self) -> Iterator[Structure]:
        """Yields the structures, LMDB by LMDB, as ``sid/fid``."""
        return self.read(self.pieces())

    def pieces(self) -> list[Path]:
        """Returns the part's LMDBs."""
        return files_in(self.folder, ".lmdb")

    @cached_property
    def _labels(self) -> BulkLabels | None:
        return None if self.metadata is None else BulkLabels(self.metadata)

    def read(self, pieces: Sequence[Path]) -> Iterator[Structure]:
        """Yields the structures of some LMDBs."""
        labels = self._labels
        for path in pieces:
            for key, data in _entries(path):
                yield _structure(data, labels, path, key)


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the keys of an LMDB with the attributes of their Data."""
    try:
        with open_lmdb(path, mend=MEND_FILE) as file, file.begin() as transaction:
            length = transaction.get(b"length")
            count = file.stat()["entries"] if length is None else load_plain(length, path=path, record="length")
            for index in range(count):
                key = str(index)
                record = transaction.get(key.encode())
                if record is None:
                    problem = f"is not there, but the file should have {count} records"
                    raise InputError(path, problem, record=key, mend=MEND_FILE)
                yield key, load_pyg_data(record, path=path, record=key)
    except lmdb.Error as error:
        raise InputError(path, f"is no readable LMDB: {error}", mend=MEND_FILE) from error


def _structure(data: dict[str, Any], labels: BulkLabels | None, path: Path, key: str) -> Structure:
    try:
        numbers = np.asarray(data["atomic_numbers"]).astype(np.int64)
        sid, source = int(data["sid"]), f"{data['sid']}/{data['fid']}"
        positions = np.asarray(data["pos"])
        energy = float(data["energy"] if "energy" in data else data["y"])
        forces = np.asarray(data["forces"] if "forces" in data else data["force"])
        cell = np.reshape(data["cell"], (3, 3)) if "cell" in data else None
        pbc = np.reshape(data["pbc"], 3).astype(bool) if "pbc" in data else [cell is not None] * 3
    except KeyError as error:
        raise InputError(path, f"has no attribute {error}", record=key, mend=MEND_RECORD) from error
    except (TypeError, ValueError) as error:
        problem = f"has an attribute of the wrong kind: {error}"
        raise InputError(path, problem, record=key, mend=MEND_RECORD) from error
    return Structure(
        numbers=numbers,
        positions=positions,
        source=source,
        label=label_of(numbers, path, key) if labels is None else labels[sid],
        energy=finite_energy(energy, path, key),
        forces=forces,
        cell=cell,
        pbc=tuple(map(bool, pbc)),
        tags=np.asarray(data["tags"]) if "tags" in data else None,
        fixed=np.asarray(data["fixed"], dtype=bool) if "fixed" in data else None,
    )
