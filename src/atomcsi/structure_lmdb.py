"""Structures in an LMDB file, without pickles: checked on reading, safe with many processes.

Keys 0, 1, ... as 8-byte big-endian integers hold blocks of structures (:mod:`atomcsi.structure_record`). Reserved keys
hold the metadata (``b"metadata"``, JSON) and, as zlib streams of a little-endian int32 a structure, the number of atoms
(``b"natoms"``), the class (``b"classes"``) and the group (``b"groups"``), both as positions in the metadata's lists:
sampling, splitting and batching never touch the structures. ``b"checksums"`` holds the XXH3-64 of these four values,
uint64 each.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from xxhash import xxh3_64_intdigest

from atomcsi.errors import InputError
from atomcsi.files import atomic_path
from atomcsi.lmdb_file import LmdbFile
from atomcsi.statistics import Statistics
from atomcsi.structure import Structure
from atomcsi.structure_batch import CELL, FORCES, TAGS, StructureBatch, batches_of
from atomcsi.structure_record import BLOCK, ENTRY, HEADER, HEADER_TYPE, HELD, checksum, decode, encode, pack

SCHEMA = "atomcsi.structures/2"
KEY = struct.Struct(">Q")
#: The reserved keys, in the order of their checksums.
RESERVED = (b"metadata", b"natoms", b"classes", b"groups")
_MEND = "delete it and run again"
#: The map must be larger than what it will ever hold; LMDB's files grow as needed, so this reserves no disk.
_MAP_SIZE = 1 << 40
#: Bytes between commits: until then LMDB keeps what it was given in memory.
_COMMIT_EVERY = 1 << 25


class StructureLMDB(Sequence[Structure]):
    """Read access to a file of structures, by position.

    An instance can be handed to workers, forked or spawned. Every record is checked against its checksum when it is
    read.

    Args:
        path: The ``.lmdb`` file; it must not be overwritten in place while it is in use.

    Raises:
        InputError: The file is missing, damaged or of another schema.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        file = LmdbFile(path, mend=_MEND)
        self._content, self._bytes, self._reserved = file.content, np.frombuffer(file.content, "u1"), {}
        places = []
        for key, start, stop in file.items():
            if len(key) == KEY.size and KEY.unpack(key)[0] == len(places):
                places.append((start, stop))
            else:
                self._reserved[key] = (start, stop)
        self._places = np.array(places, np.int64).reshape(-1, 2)
        self.metadata: dict[str, Any] = self._metadata()
        self._classes: list[str] = self.metadata["classes"]
        self._groups: list[str] = self.metadata["groups"]
        self._properties: list[str] = self.metadata["properties"]
        members = np.diff(np.minimum(np.arange(len(places) + 1) * BLOCK, len(self)))
        complete = len(places) == -(-len(self) // BLOCK)
        if not complete or (np.diff(self._places).ravel() < members * ENTRY.size).any():
            raise self._damage("it lacks blocks, or parts of them")

    def _metadata(self) -> dict[str, Any]:
        try:
            start, stop = self._reserved.get(b"metadata", (0, 0))
            metadata = json.loads(bytes(self._content[start:stop]) or b"{}")
        except ValueError as error:
            raise self._damage(f"its metadata are no JSON: {error}") from error
        if not isinstance(metadata, dict) or metadata.get("schema") != SCHEMA:
            found = metadata.get("schema") if isinstance(metadata, dict) else None
            mend = "make it again with this version" if found else "make it with `atomcsi` or the pipeline"
            raise InputError(self.path, f"holds no '{SCHEMA}'" + (f" but '{found}'" if found else ""), mend=mend)
        self._value(b"metadata")
        return metadata

    @cached_property
    def natoms(self) -> np.ndarray:
        """Number of atoms of every structure, shape (structures,)."""
        return self._column(b"natoms")

    @cached_property
    def classes(self) -> np.ndarray:
        """Class of every structure as an index into ``metadata["classes"]``, shape (structures,)."""
        return self._column(b"classes")

    @cached_property
    def groups(self) -> np.ndarray:
        """Group of every structure as an index into ``metadata["groups"]``, shape (structures,)."""
        return self._column(b"groups")

    def __len__(self) -> int:
        """Number of structures."""
        return self.metadata["structures"]

    def __getitem__(self, index: int) -> Structure:
        """Returns one structure, in eV and Angstrom.

        Raises:
            InputError: Its record is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        block, place = divmod(index, BLOCK)
        base, end = self._places[block].tolist()
        start, size, expected = ENTRY.unpack_from(self._content, base + place * ENTRY.size)
        record = bytes(self._content[base + start : min(base + start + size, end)])
        if checksum(record, index) != expected:
            raise self._damage("its checksum is wrong", f"structure {index}")
        return decode(record, self._classes[self.classes[index]], self._groups[self.groups[index]], self._properties)

    def read_batch(self, indices: Sequence[int] | np.ndarray) -> StructureBatch:
        """Returns several structures, in eV and Angstrom, in the order of ``indices``.

        Raises:
            IndexError: There is no such structure.
            InputError: A record is damaged.
        """
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"not all of 0 ... {len(self) - 1}")
        starts = self._checked(indices)
        headers = self._gather(starts, HEADER.size).view(HEADER_TYPE)[:, 0]
        natoms, flags = headers["natoms"].astype(np.int64), headers["flags"]
        has = {flag: (flags & flag) != 0 for flag in (CELL, FORCES, TAGS)}
        at, width = starts + HEADER.size, 8 * len(self._properties)
        properties = self._gather(at, width).view("<f8")
        at = at + width
        cell = self._gather(at[has[CELL]], 36).view("<f4").reshape(-1, 3, 3)
        at = at + 36 * has[CELL]
        positions = self._join(at, 12 * natoms).view("<f4").reshape(-1, 3)
        at = at + 12 * natoms
        forces = self._join(at, 12 * natoms * has[FORCES]).view("<f4").reshape(-1, 3)
        at = at + 12 * natoms * has[FORCES]
        atoms = self._join(at, natoms)
        at = at + natoms
        tags = self._join(at, natoms * has[TAGS])
        at = at + natoms * has[TAGS]
        ends = (at + headers["source"]).tolist()
        return StructureBatch(
            natoms=natoms,
            flags=flags,
            numbers=atoms & (HELD - 1),
            positions=positions,
            forces=_spread(forces, has[FORCES], natoms, np.nan),
            tags=_spread(tags, has[TAGS], natoms, 0),
            fixed=atoms >= HELD,
            cell=_spread(cell, has[CELL], 1, 0.0),
            energy=headers["energy"].copy(),
            properties=properties,
            property_names=tuple(self._properties),
            sources=[str(self._content[start:end], "utf-8") for start, end in zip(at.tolist(), ends, strict=True)],
            labels=[self._classes[number] for number in self.classes[indices].tolist()],
            groups=[self._groups[number] for number in self.groups[indices].tolist()],
        )

    def _checked(self, indices: np.ndarray) -> np.ndarray:
        """Returns where the structures' records start in the file; their checksums vouch for what is in them."""
        blocks, places = np.divmod(indices, BLOCK)
        bases, ends = self._places[blocks].T
        entries = self._gather(bases + places * ENTRY.size, ENTRY.size).view("<u4").astype(np.int64)
        starts = bases + entries[:, 0]
        stops = np.minimum(starts + entries[:, 1], ends)
        found = [
            checksum(self._content[start:stop], index)
            for index, start, stop in zip(indices.tolist(), starts.tolist(), stops.tolist(), strict=True)
        ]
        wrong = np.flatnonzero(np.array(found, np.int64) != entries[:, 2])
        if len(wrong):
            raise self._damage("its checksum is wrong", f"structure {indices[wrong[0]]}")
        return starts

    def _gather(self, starts: np.ndarray, size: int) -> np.ndarray:
        """Copies short pieces of the file, shape (pieces, size), uint8."""
        return self._bytes[starts[:, None] + np.arange(size)]

    def _join(self, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Copies long pieces of the file one behind the other, shape (bytes,), uint8."""
        if not sizes.any():
            return np.empty(0, "u1")
        bounds = zip(starts.tolist(), (starts + sizes).tolist(), strict=True)
        return np.frombuffer(bytearray().join([self._content[start:stop] for start, stop in bounds]), "u1")

    def block(self, number: int) -> memoryview:
        """The block of :data:`~atomcsi.structure_record.BLOCK` records with this number, as it is in the file."""
        start, stop = self._places[number].tolist()
        return self._content[start:stop]

    def release(self) -> None:
        """Gives back the memory of what was read; a pass over a whole file then takes no more than its batches."""
        self._content.obj.madvise(mmap.MADV_DONTNEED)

    def __reduce__(self) -> tuple[object, ...]:
        """Another process opens the file anew."""
        return StructureLMDB, (self.path,)

    def _column(self, key: bytes) -> np.ndarray:
        return np.frombuffer(zlib.decompress(self._value(key)), "<i4")

    def _value(self, key: bytes) -> bytes:
        """Returns the value of a reserved key, checked."""
        if key not in self._reserved or b"checksums" not in self._reserved:
            raise self._damage(f"its {key.decode()} are missing")
        value, sums = bytes(self._slice(key)), bytes(self._slice(b"checksums"))
        expected = np.frombuffer(sums[: 8 * len(RESERVED)].ljust(8 * len(RESERVED), b"\0"), "<u8")[RESERVED.index(key)]
        if xxh3_64_intdigest(value) != expected:
            raise self._damage(f"the checksum of its {key.decode()} is wrong")
        return value

    def _slice(self, key: bytes) -> memoryview:
        start, stop = self._reserved[key]
        return self._content[start:stop]

    def _damage(self, problem: str, record: str = "") -> InputError:
        return InputError(self.path, f"is damaged: {problem}", record=record, mend=_MEND)


def _spread(rows: np.ndarray, has: np.ndarray, natoms: np.ndarray | int, fill: float) -> np.ndarray:
    """Returns the rows of the structures that have them, and ``fill`` for the ``natoms`` rows of each of the others."""
    if has.all():
        return rows
    mask = np.repeat(has, natoms)
    spread = np.full((len(mask), *rows.shape[1:]), fill, rows.dtype)
    spread[mask] = rows
    return spread


def write_structures(
    path: Path | str,
    structures: Iterable[Structure],
    *,
    property_names: Sequence[str] = (),
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes structures (eV, Angstrom) to an LMDB file; see :func:`write_batches`.

    Raises:
        ValueError: A structure cannot be stored; its :meth:`~atomcsi.structure.Structure.problem` says why.
    """
    return write_batches(path, batches_of(structures, BLOCK, property_names), provenance=provenance)


def write_batches(
    path: Path | str,
    batches: Iterable[StructureBatch],
    *,
    provenance: Mapping[str, Any],
    reference: np.ndarray | None = None,
) -> dict[str, Any]:
    """Writes structures (eV, Angstrom) to an LMDB file in one pass, atomically.

    The file depends on the structures alone, not on how they are batched. Beside them the metadata hold their
    statistics: elements, linear reference (eV per element), standard deviation of what it leaves, ranges, and root
    mean square of the force components.

    Args:
        path: The file to write.
        batches: What to write, all with the same properties; never held all at once.
        provenance: Where the structures come from; stored as it is.
        reference: Linear reference to store instead of the least squares of the energy over the composition, eV by
            atomic number, shape (119,).

    Returns:
        The metadata.

    Raises:
        AtomcsiError: The disk is full.
        InputError: There are no structures.
    """
    columns, statistics, digest = _Columns(), Statistics(reference), hashlib.sha256()
    with atomic_path(path) as temporary:
        environment = lmdb.open(str(temporary), subdir=False, map_size=_MAP_SIZE, lock=False, sync=False)
        try:
            transaction, written = environment.begin(write=True), 0
            for number, block in enumerate(_blocks(batches, columns, statistics)):
                digest.update(block)
                transaction.put(KEY.pack(number), block, append=True)
                written += len(block)
                if written >= _COMMIT_EVERY:
                    transaction.commit()
                    transaction, written = environment.begin(write=True), 0
            if not columns.structures:
                raise InputError(path, "would hold no structures", mend="see the dataset's split and reader")
            values = columns.values()
            names = columns.names()
            metadata = {
                "schema": SCHEMA,
                "structures": columns.structures,
                "atoms": columns.atoms,
                **names,
                **statistics.summary(),
                "fingerprint": fingerprint(digest, values, names),
                "provenance": dict(provenance),
            }
            values = [json.dumps(metadata).encode(), *map(zlib.compress, values)]
            for key, value in zip(RESERVED, values, strict=True):
                transaction.put(key, value)
            transaction.put(b"checksums", np.array([xxh3_64_intdigest(value) for value in values], "<u8").tobytes())
            transaction.commit()
            environment.sync(True)
        finally:
            environment.close()
    return metadata


def fingerprint(blocks: hashlib._Hash, columns: Sequence[bytes | np.ndarray], names: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of what a file holds, the same on every machine.

    Args:
        blocks: SHA-256 of the blocks, in order.
        columns: The int32 of every structure: numbers of atoms, classes, groups.
        names: The metadata's ``classes``, ``groups`` and ``properties``.
    """
    for content in (*columns, json.dumps({key: names[key] for key in ("classes", "groups", "properties")}).encode()):
        blocks.update(content)
    return blocks.hexdigest()


class _Columns:
    """What a file holds of every structure beside its record."""

    def __init__(self) -> None:
        self.structures = self.atoms = 0
        self.property_names: tuple[str, ...] = ()
        self.classes: dict[str, int] = {}
        self.groups: dict[str, int] = {}
        self._parts: list[list[np.ndarray]] = []

    def add(self, batch: StructureBatch) -> None:
        classes = [self.classes.setdefault(label, len(self.classes)) for label in batch.labels]
        groups = [self.groups.setdefault(group, len(self.groups)) for group in batch.groups]
        self._parts.append([np.asarray(column, "<i4") for column in (batch.natoms, classes, groups)])
        self.structures += len(batch)
        self.atoms += int(batch.natoms.sum())
        self.property_names = batch.property_names

    def names(self) -> dict[str, list[str]]:
        """What classes and groups are numbers of, and the properties' names."""
        return {"classes": list(self.classes), "groups": list(self.groups), "properties": list(self.property_names)}

    def values(self) -> list[bytes]:
        """Values of the reserved keys behind the metadata's."""
        return [np.concatenate(parts).tobytes() for parts in zip(*self._parts, strict=True)]


def _blocks(batches: Iterable[StructureBatch], columns: _Columns, statistics: Statistics) -> Iterator[bytes]:
    """Yields full blocks and a last one, and counts what they hold."""
    waiting: list[tuple[bytes, int]] = []
    for batch in batches:
        waiting += encode(batch, columns.structures)
        columns.add(batch)
        statistics.add(batch)
        while len(waiting) >= BLOCK:
            yield pack(waiting[:BLOCK])
            del waiting[:BLOCK]
    if waiting:
        yield pack(waiting)
