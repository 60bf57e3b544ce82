"""The record of a structure, and the blocks that records are packed in: no pickle, readable from any language.

Everything is little-endian. A block holds the records of :data:`BLOCK` structures, the last block of a file fewer:
packed so, they fill LMDB's pages. It starts with one :data:`ENTRY` a structure: where its record starts in the block,
the record's length, and its checksum (uint32 each; the low half of the XXH3-64 with the structure's number as seed).

A record is a :data:`HEADER`: number of atoms (uint32), flags (uint16), length of the source's name (uint16), energy
(float64, eV); then, each if the file or the flag says so, properties (float64, as many as the file's metadata name),
cell (float32, 3 x 3, flag 16), positions (float32, atoms x 3), forces (float32, atoms x 3, flag 8), atomic numbers
(uint8, plus 128 where the atom is held: flag 64), tags (uint8, flag 32), source (UTF-8), zero bytes up to a multiple
of 4. Flags 1, 2 and 4 are the periodicity along the lattice vectors. Energies are float64: -17 617 eV in float32
would lose 2 meV.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from xxhash import xxh3_64_intdigest

from atomcsi.structure import Structure
from atomcsi.structure_batch import CELL, FIXED, FORCES, PBC, TAGS, StructureBatch

BLOCK = 256
ENTRY = struct.Struct("<III")
HEADER = struct.Struct("<IHHd")
#: The header as NumPy has it.
HEADER_TYPE = np.dtype([("natoms", "<u4"), ("flags", "<u2"), ("source", "<u2"), ("energy", "<f8")])
#: The bit of an atom's byte that says that it is held; the others are its atomic number.
HELD = 128
_PERIODICITIES = [tuple(bool(bits & bit) for bit in PBC) for bits in range(8)]


def checksum(record: bytes | memoryview, index: int) -> int:
    """Checksum of a structure's record, which no other structure's record has."""
    return xxh3_64_intdigest(record, index) & 0xFFFFFFFF


def encode(batch: StructureBatch, first: int) -> list[tuple[bytes, int]]:
    """Returns the records of structures (eV, Angstrom) with their checksums; ``first`` is the first one's number."""
    sources = [source.encode() for source in batch.sources]
    headers = np.empty(len(batch), HEADER_TYPE)
    headers["natoms"], headers["flags"], headers["energy"] = batch.natoms, batch.flags, batch.energy
    headers["source"] = [len(source) for source in sources]
    head, properties = headers.tobytes(), batch.properties.astype("<f8").tobytes()
    cell, positions, forces = (array.astype("<f4").tobytes() for array in (batch.cell, batch.positions, batch.forces))
    atoms, tags = (batch.numbers + batch.fixed * np.uint8(HELD)).tobytes(), batch.tags.tobytes()
    width, size = 8 * batch.properties.shape[1], HEADER.size
    stops = np.cumsum(batch.natoms)
    bounds = zip((stops - batch.natoms).tolist(), stops.tolist(), batch.flags.tolist(), sources, strict=True)
    records = []
    for i, (start, stop, flags, source) in enumerate(bounds):
        record = b"".join(
            (
                head[size * i : size * (i + 1)],
                properties[width * i : width * (i + 1)],
                cell[36 * i : 36 * (i + 1)] if flags & CELL else b"",
                positions[12 * start : 12 * stop],
                forces[12 * start : 12 * stop] if flags & FORCES else b"",
                atoms[start:stop],
                tags[start:stop] if flags & TAGS else b"",
                source,
            )
        )
        record += bytes(-len(record) % 4)
        records.append((record, checksum(record, first + i)))
    return records


def decode(record: bytes, label: str, group: str, property_names: Sequence[str]) -> Structure:
    """Returns the structure of a record; its arrays are views into ``record``."""
    natoms, flags, source_length, energy = HEADER.unpack_from(record)
    offset, properties = HEADER.size, {}
    if property_names:
        values = np.frombuffer(record, "<f8", len(property_names), offset)
        properties = dict(zip(property_names, values.tolist(), strict=True))
        offset += values.nbytes
    cell = forces = tags = fixed = None
    if flags & CELL:
        cell = np.frombuffer(record, "<f4", 9, offset).reshape(3, 3)
        offset += cell.nbytes
    positions = np.frombuffer(record, "<f4", 3 * natoms, offset).reshape(natoms, 3)
    offset += positions.nbytes
    if flags & FORCES:
        forces = np.frombuffer(record, "<f4", 3 * natoms, offset).reshape(natoms, 3)
        offset += forces.nbytes
    numbers = np.frombuffer(record, "u1", natoms, offset)
    offset += natoms
    if flags & FIXED:
        numbers, fixed = numbers & (HELD - 1), numbers >= HELD
    if flags & TAGS:
        tags = np.frombuffer(record, "u1", natoms, offset)
        offset += natoms
    return Structure(
        numbers=numbers,
        positions=positions,
        source=record[offset : offset + source_length].decode(),
        label=label,
        group=group,
        energy=energy,
        forces=forces,
        properties=properties,
        cell=cell,
        pbc=_PERIODICITIES[flags & sum(PBC)],
        tags=tags,
        fixed=fixed,
    )


def pack(records: Sequence[tuple[bytes, int]]) -> bytes:
    """Returns the block of what :func:`encode` returned."""
    sizes = [len(record) for record, _ in records]
    starts = accumulate(sizes, initial=len(records) * ENTRY.size)
    entries = [ENTRY.pack(start, size, check) for start, size, (_, check) in zip(starts, sizes, records, strict=False)]
    return b"".join([*entries, *(record for record, _ in records)])
