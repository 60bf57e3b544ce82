"""Structures in LMDB, without pickles: readable from any language, zero-copy, safe with many processes.

Keys are 8-byte big-endian integers 0 ... n-1. A value is a little-endian header (:data:`HEADER`) followed by the
arrays that its flags announce, in this order: numbers (uint8), tags (uint8), fixed (uint8), source (UTF-8), zero
bytes up to a multiple of 4, positions (float32, atoms x 3), forces (float32, atoms x 3), cell (float32, 3 x 3),
properties (float64). Energies are float64: -17 617 eV in float32 would lose 2 meV.

Reserved keys hold the metadata (``b"metadata"``, JSON), the number of atoms (``b"natoms"``, int32) and the class
(``b"classes"``, int32) of every structure, so that sampling and batching never touch the structures.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import lmdb
import numpy as np

from atomcsi.errors import InputError
from atomcsi.files import atomic_path, open_lmdb
from atomcsi.structure import Structure

SCHEMA = "atomcsi.structures/1"
_MEND = "delete it and run again"

#: atoms (uint32), flags (uint16), length of the source's name (uint16), class (int32), energy (float64, eV).
HEADER = struct.Struct("<IHHid")
_KEY = struct.Struct(">Q")
_PBC, _FORCES, _CELL, _TAGS, _FIXED = (1, 2, 4), 8, 16, 32, 64
#: The map must be larger than what it will ever hold; LMDB's files grow as needed, so this reserves no disk.
_MAP_SIZE = 1 << 40
_COMMIT_EVERY = 10_000


def encode(structure: Structure, class_id: int, property_names: Sequence[str]) -> bytes:
    """Returns the record of a structure (eV, Angstrom) in the layout of this module."""
    natoms = len(structure)
    flags = sum(bit for bit, periodic in zip(_PBC, structure.pbc, strict=True) if periodic)
    parts = [np.asarray(structure.numbers, "u1").tobytes()]
    for array, flag in ((structure.tags, _TAGS), (structure.fixed, _FIXED)):
        if array is not None:
            flags |= flag
            parts.append(np.asarray(array, "u1").tobytes())
    source = structure.source.encode()
    parts.append(source)
    parts.append(b"\0" * (-sum(map(len, parts)) % 4))
    for array, flag in ((structure.positions, 0), (structure.forces, _FORCES), (structure.cell, _CELL)):
        if array is not None:
            flags |= flag
            parts.append(np.asarray(array, "<f4").tobytes())
    parts.append(np.array([structure.properties[name] for name in property_names], "<f8").tobytes())
    return HEADER.pack(natoms, flags, len(source), class_id, structure.energy) + b"".join(parts)


def decode(record: bytes | memoryview, classes: Sequence[str], property_names: Sequence[str]) -> Structure:
    """Returns the structure of a record; its arrays are views into ``record``."""
    natoms, flags, source_length, class_id, energy = HEADER.unpack_from(record)
    offset = HEADER.size

    def take(dtype: str, *shape: int) -> np.ndarray:
        nonlocal offset
        array = np.frombuffer(record, dtype, int(np.prod(shape)), offset).reshape(shape)
        offset += array.nbytes
        return array

    numbers = take("u1", natoms)
    tags = take("u1", natoms) if flags & _TAGS else None
    fixed = take("u1", natoms).astype(bool) if flags & _FIXED else None
    source = bytes(take("u1", source_length)).decode()
    offset += (HEADER.size - offset) % 4
    positions = take("<f4", natoms, 3)
    forces = take("<f4", natoms, 3) if flags & _FORCES else None
    cell = take("<f4", 3, 3) if flags & _CELL else None
    values = take("<f8", len(property_names))
    return Structure(
        numbers=numbers,
        positions=positions,
        source=source,
        label=classes[class_id],
        energy=energy,
        forces=forces,
        properties=dict(zip(property_names, values.tolist(), strict=True)),
        cell=cell,
        pbc=tuple(bool(flags & bit) for bit in _PBC),
        tags=tags,
        fixed=fixed,
    )


class StructureLMDB(Sequence[Structure]):
    """Read access to a file of structures, by position.

    An instance can be handed to workers, forked or spawned.

    Args:
        path: The ``.lmdb`` file.

    Raises:
        InputError: The file is missing, damaged or of another schema.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._environment: lmdb.Environment | None = None
        if not self.path.is_file():
            raise InputError(path, "is missing")
        try:
            self.metadata: dict[str, Any] = json.loads(self._get(b"metadata") or b"{}")
        except (lmdb.Error, ValueError) as error:
            raise InputError(path, f"is no readable LMDB: {error}", mend=_MEND) from error
        if self.metadata.get("schema") != SCHEMA:
            raise InputError(path, f"holds no '{SCHEMA}'", mend="make it with `atomcsi` or the pipeline")
        self._classes: list[str] = self.metadata["classes"]
        self._properties: list[str] = self.metadata["properties"]

    @property
    def natoms(self) -> np.ndarray:
        """Number of atoms of every structure, shape (structures,)."""
        return np.frombuffer(self._get(b"natoms"), "<i4")

    @property
    def classes(self) -> np.ndarray:
        """Class of every structure as an index into ``metadata["classes"]``, shape (structures,)."""
        return np.frombuffer(self._get(b"classes"), "<i4")

    def __len__(self) -> int:
        """Number of structures."""
        return self.metadata["structures"]

    def __getitem__(self, index: int) -> Structure:
        """Returns one structure, in eV and Angstrom."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return decode(self._get(_KEY.pack(index)), self._classes, self._properties)
        except (TypeError, ValueError, struct.error, lmdb.Error) as error:
            raise InputError(self.path, f"is damaged: {error}", record=f"structure {index}", mend=_MEND) from error

    def __getstate__(self) -> dict[str, Any]:
        """An open environment must not cross into another process."""
        return {**self.__dict__, "_environment": None}

    def _get(self, key: bytes) -> bytes | None:
        if self._environment is None:
            self._environment = _open(self.path)
        with self._environment.begin() as transaction:
            return transaction.get(key)


#: LMDB refuses to open a file twice in one process, so instances share what is open. A forked process may go on
#: with it: LMDB's warning against that is about its lock table, and read-only files are opened without one.
_environments: WeakValueDictionary[tuple[int, int], lmdb.Environment] = WeakValueDictionary()


def _open(path: Path) -> lmdb.Environment:
    status = path.stat()
    environment = _environments.get((status.st_dev, status.st_ino))
    if environment is None:
        environment = open_lmdb(path, mend=_MEND, readahead=False)
        _environments[status.st_dev, status.st_ino] = environment
    return environment


def write_structures(
    path: Path | str,
    structures: Iterable[Structure],
    *,
    property_names: Sequence[str] = (),
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes structures (eV, Angstrom) to an LMDB file in one pass, atomically.

    Beside the structures the metadata hold their statistics: elements, linear reference (least squares of the
    energy over the composition, eV per element), standard deviation of what remains, and root mean square of the
    force components.

    Args:
        path: The file to write.
        structures: What to write; never held all at once.
        property_names: The properties that every structure has.
        provenance: Where the structures come from; stored as it is.

    Returns:
        The metadata.

    Raises:
        AtomcsiError: The disk is full.
        InputError: There are no structures.
    """
    natoms: list[int] = []
    class_ids: list[int] = []
    classes: dict[str, int] = {}
    statistics, digest = Statistics(), hashlib.sha256()
    with atomic_path(path) as temporary:
        environment = lmdb.open(str(temporary), subdir=False, map_size=_MAP_SIZE, lock=False, sync=False, meminit=False)
        try:
            transaction = environment.begin(write=True)
            for index, structure in enumerate(structures):
                class_id = classes.setdefault(structure.label, len(classes))
                record = encode(structure, class_id, property_names)
                digest.update(record)
                transaction.put(_KEY.pack(index), record, append=True)
                natoms.append(len(structure))
                class_ids.append(class_id)
                statistics.add(structure)
                if (index + 1) % _COMMIT_EVERY == 0:
                    transaction.commit()
                    transaction = environment.begin(write=True)
            if not natoms:
                raise InputError(path, "would hold no structures", mend="see the dataset's split and reader")
            metadata = {
                "schema": SCHEMA,
                "structures": len(natoms),
                "atoms": int(np.sum(natoms)),
                "classes": list(classes),
                "properties": list(property_names),
                **statistics.summary(),
                "fingerprint": digest.hexdigest(),
                "provenance": dict(provenance),
            }
            transaction.put(b"natoms", np.array(natoms, "<i4").tobytes())
            transaction.put(b"classes", np.array(class_ids, "<i4").tobytes())
            transaction.put(b"metadata", json.dumps(metadata).encode())
            transaction.commit()
            environment.sync(True)
        finally:
            environment.close()
    return metadata


class Statistics:
    """Energy and force statistics of a stream of structures.

    The linear reference is the least-squares fit of the energy to the number of atoms of each element, through its
    normal equations; with fewer compositions than elements, the solution of least norm.
    """

    def __init__(self) -> None:
        self.elements: Counter[int] = Counter()
        self.gram = np.zeros((120, 120))
        self.moment = np.zeros(120)
        self.energies = 0
        self.energy_square = 0.0
        self.force_square = 0.0
        self.force_components = 0

    def add(self, structure: Structure) -> None:
        """Takes one structure into account."""
        numbers, counts = np.unique(structure.numbers, return_counts=True)
        self.elements.update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
        if np.isfinite(structure.energy):
            self.energies += 1
            self.gram[np.ix_(numbers, numbers)] += np.outer(counts, counts)
            self.moment[numbers] += counts * structure.energy
            self.energy_square += structure.energy**2
        if structure.forces is not None:
            self.force_square += float(np.square(structure.forces, dtype=float).sum())
            self.force_components += 3 * len(structure)

    def summary(self) -> dict[str, Any]:
        """Returns the statistics as metadata: eV and eV/Angstrom; elements by atomic number, as JSON has them."""
        elements = sorted(self.elements)
        summary: dict[str, Any] = {"elements": {str(z): self.elements[z] for z in elements}}
        if self.energies:
            gram, moment = self.gram[np.ix_(elements, elements)], self.moment[elements]
            reference = np.linalg.lstsq(gram, moment, rcond=1e-10)[0]
            variance = (self.energy_square - reference @ moment) / self.energies
            summary["linear_reference"] = dict(zip(map(str, elements), reference.tolist(), strict=True))
            summary["energy_std"] = float(np.sqrt(max(variance, 0.0)))
        if self.force_components:
            summary["force_rms"] = float(np.sqrt(self.force_square / self.force_components))
        return summary
