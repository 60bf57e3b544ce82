"""Per-atom embeddings of a dataset's sample in HDF5, with the moments that CSI and its error bars need.

Layout: ``features`` (atoms, d) float32; ``numbers`` (atoms,); ``ptr`` (structures + 1,), the atoms of structure i
are ``ptr[i]:ptr[i + 1]``; ``index`` (structures,) in the LMDB file; ``multiplicity`` (structures,), how often the
sample holds it; ``source`` and ``class`` (structures,). The structures stand block by block, the blocks being random
shares of them for resampling: those of block k are ``blocks/ptr[k]:blocks/ptr[k + 1]``.

``moments/count``, ``moments/mean`` (d,) and ``moments/scatter`` are those of all atoms in float64, repetitions
counted; ``blocks/count``, ``blocks/mean`` and ``blocks/scatter`` have one more axis in front, for the block. A
scatter matrix is stored as its lower triangle, row by row, d (d + 1) / 2 numbers. Attributes: ``schema`` and
``provenance`` (JSON). All of it has checksums, which are compared on reading: arrays Fletcher-32, the rest HDF5's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from atomcsi.hdf5_file import add_checked, add_checked_space, open_checked, refuse_foreign
from atomcsi.moments import Moments
from atomcsi.sampling import Aggregation, apportion

SCHEMA = "atomcsi.embeddings/2"
_REDUCE = {"mean": np.add, "sum": np.add, "max": np.maximum}
#: Structures whose features are read at a time.
_READ = 256


class Embedding:
    """Read access to an embedding file, as rows of features: one per atom, or one per structure.

    Args:
        path: The HDF5 file.
        aggregation: ``flat``: every atom is a row, as in the paper; ``mean``, ``sum``, ``max``: every structure is,
            with its atoms' features aggregated.
        name: What the dataset is called; as in the file by default.

    Attributes:
        provenance: What was embedded and how.
        dim: Number of features, d.
        structures: Number of distinct structures.
        blocks: Number of blocks of structures for resampling.

    Raises:
        InputError: The file is missing, damaged or of another schema.
    """

    def __init__(self, path: Path | str, aggregation: Aggregation = "flat", name: str | None = None) -> None:
        self.path, self.aggregation = Path(path), aggregation
        with self._file() as file:
            for group in (file, file["moments"], file["blocks"]):
                for key, member in group.items():
                    refuse_foreign(member, file, self.path, key)
            self.provenance: dict[str, Any] = json.loads(file.attrs["provenance"])
            self.name: str = self.provenance["dataset"] if name is None else name
            self.dim: int = file["features"].shape[1]
            self.ptr: np.ndarray = file["ptr"][:]
            self.multiplicity: np.ndarray = file["multiplicity"][:]
            self._block_ptr: np.ndarray = file["blocks/ptr"][:]
        self.structures, self.blocks = len(self.multiplicity), len(self._block_ptr) - 1

    @property
    def flat(self) -> bool:
        """Whether a row is an atom."""
        return self.aggregation == "flat"

    @cached_property
    def moments(self) -> Moments:
        """Moments of all rows."""
        if self.flat:
            with self._file() as file:
                group = file["moments"]
                if group["count"][()] != self.provenance["atoms"]:
                    raise ValueError("the number of atoms is not that of its provenance")
                return Moments(int(group["count"][()]), group["mean"][:], unpacked(group["scatter"][:]))
        return Moments.merged(map(self.block_moments, range(self.blocks)), self.dim)

    def block_moments(self, block: int) -> Moments:
        """Moments of one block's rows; not kept, for they may be large."""
        if self.flat:
            with self._file() as file:
                group = file["blocks"]
                return Moments(int(group["count"][block]), group["mean"][block], unpacked(group["scatter"][block]))
        members = self.row_blocks == block
        return Moments.of(self._aggregated[members], self.row_weights[members])

    def resampled(self, times: np.ndarray) -> Moments:
        """Moments of the rows with each structure counted ``times`` times, shape (structures,), integers."""
        if not self.flat:
            return Moments.of(self._aggregated, times)
        weights, found = np.repeat(times, np.diff(self.ptr)), Moments.zero(self.dim)
        for start, rows in self._slices():
            own = weights[start : start + len(rows)]
            # Most structures are not in a small sample.
            found += Moments.of(rows[own > 0], own[own > 0])
        return found

    @cached_property
    def row_weights(self) -> np.ndarray:
        """How often each row counts, shape (rows,), integers."""
        return np.repeat(self.multiplicity, np.diff(self.ptr)) if self.flat else self.multiplicity

    @cached_property
    def row_blocks(self) -> np.ndarray:
        """Block of each row, shape (rows,)."""
        of_structures = np.repeat(np.arange(self.blocks), np.diff(self._block_ptr))
        return np.repeat(of_structures, np.diff(self.ptr)) if self.flat else of_structures

    @cached_property
    def numbers(self) -> np.ndarray:
        """Atomic number of every atom, shape (atoms,)."""
        with self._file() as file:
            return file["numbers"][:]

    @cached_property
    def classes(self) -> np.ndarray:
        """Class of every structure, shape (structures,), text."""
        with self._file() as file:
            return file["class"].asstr()[:]

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Features of the rows at ``indices`` (ascending), shape (indices, d), float32."""
        if not self.flat:
            return self._aggregated[indices]
        found = np.empty((len(indices), self.dim), np.float32)
        # Read in slices: HDF5 is slow at picking single rows, and the whole may not fit into memory.
        for start, rows in self._slices():
            low, high = np.searchsorted(indices, [start, start + len(rows)])
            found[low:high] = rows[indices[low:high] - start]
        return found

    def sample(self, rows: int, seed: int) -> np.ndarray:
        """Draws at most ``rows`` of the rows, without repetition; returns their indices, ascending.

        Of every block its share is drawn, one row at least, so that no block is without rows.
        """
        generator = np.random.default_rng(seed)
        sizes = np.bincount(self.row_blocks, minlength=self.blocks)
        quotas = apportion(sizes, min(rows, int(sizes.sum()))).clip(1)
        starts = np.cumsum(sizes) - sizes
        drawn = [
            start + generator.choice(size, quota, replace=False)
            for start, size, quota in zip(starts, sizes, quotas, strict=True)
        ]
        return np.sort(np.concatenate(drawn))

    @cached_property
    def _aggregated(self) -> np.ndarray:
        ufunc, parts = _REDUCE[self.aggregation], []
        for start, rows in self._slices():
            first, stop = np.searchsorted(self.ptr, [start, start + len(rows)])
            parts.append(ufunc.reduceat(rows, self.ptr[first:stop] - start, axis=0, dtype=np.float32))
        found = np.concatenate(parts)
        return found / np.diff(self.ptr)[:, None].astype(np.float32) if self.aggregation == "mean" else found

    def _slices(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the features of some structures at a time, with the index of the first atom."""
        with self._file() as file:
            for structure in range(0, self.structures, _READ):
                start, stop = self.ptr[structure], self.ptr[min(structure + _READ, self.structures)]
                yield int(start), file["features"][start:stop]

    def _file(self) -> AbstractContextManager[h5py.File]:
        return open_checked(self.path, SCHEMA, what="embedding file", mend="see `atomcsi compare --help`")


class EmbeddingWriter:
    """Writes an embedding file in one pass over the features, whose number of rows memory does not depend on.

    Args:
        file: The open HDF5 file.
        ptr: First atom of every structure and the end, shape (structures + 1,); the structures stand block by block.
        block_ptr: First structure of every block and the end, shape (blocks + 1,).
        multiplicity: How often each structure counts, shape (structures,).
        dim: Features per atom.
    """

    def __init__(
        self, file: h5py.File, *, ptr: np.ndarray, block_ptr: np.ndarray, multiplicity: np.ndarray, dim: int
    ) -> None:
        self._file, self._dim, self._written = file, dim, 0
        self._weights = np.repeat(multiplicity, np.diff(ptr))
        self._ends = ptr[block_ptr[1:]].tolist()
        self._block, self._total = Moments.zero(dim), Moments.zero(dim)
        shape, blocks = (int(ptr[-1]), dim), len(block_ptr) - 1
        chunks = (min(shape[0], max(1, (1 << 20) // (4 * dim))), dim)
        file.create_dataset("features", shape, "<f4", chunks=chunks, compression="gzip", compression_opts=1,
                            shuffle=True, fletcher32=True)  # fmt: skip
        for name, values in (("ptr", ptr), ("multiplicity", multiplicity), ("blocks/ptr", block_ptr)):
            add_checked(file, name, values)
        for name, size in (("count", ()), ("mean", (dim,)), ("scatter", (dim * (dim + 1) // 2,))):
            add_checked_space(file, f"blocks/{name}", (blocks, *size), "<i8" if name == "count" else "<f8")

    @staticmethod
    def size(ptr: np.ndarray, block_ptr: np.ndarray, dim: int) -> int:
        """Bytes that it writes at most; for the arguments see the class."""
        moments = 8 * len(block_ptr) * (1 + dim + dim * (dim + 1) // 2)
        return 4 * int(ptr[-1]) * dim + moments + 2 * ptr.nbytes + block_ptr.nbytes

    def append(self, rows: np.ndarray) -> None:
        """Appends the features of the next atoms, shape (atoms, dim)."""
        start, stop = self._written, self._written + len(rows)
        self._file["features"][start:stop] = rows
        while start < stop:
            end = min(self._ends[0], stop)
            self._block += Moments.of(rows[start - self._written : end - self._written], self._weights[start:end])
            if end == self._ends[0]:
                self._close_block()
            start = end
        self._written = stop

    def finish(self, provenance: dict[str, Any]) -> None:
        """Writes what is known only when all features are there."""
        group = self._file.create_group("moments")
        group["count"] = self._total.count
        add_checked(group, "mean", self._total.mean)
        add_checked(group, "scatter", packed(self._total.scatter))
        self._file.attrs["schema"] = SCHEMA
        self._file.attrs["provenance"] = json.dumps({**provenance, "atoms": self._total.count})

    def _close_block(self) -> None:
        group = self._file["blocks"]
        position = len(group["count"]) - len(self._ends)
        group["count"][position], group["mean"][position] = self._block.count, self._block.mean
        group["scatter"][position] = packed(self._block.scatter)
        self._total += self._block
        self._block = Moments.zero(self._dim)
        self._ends.pop(0)


def packed(matrix: np.ndarray) -> np.ndarray:
    """Returns the lower triangle of a symmetric (d, d) matrix, row by row."""
    return np.concatenate([row[: i + 1] for i, row in enumerate(matrix)])


def unpacked(triangle: np.ndarray) -> np.ndarray:
    """Returns the symmetric (d, d) matrix of :func:`packed`."""
    dim = round((np.sqrt(8 * len(triangle) + 1) - 1) / 2)
    matrix, start = np.empty((dim, dim)), 0
    for i in range(dim):
        row = triangle[start : start + i + 1]
        matrix[i, : i + 1] = matrix[: i + 1, i] = row
        start += i + 1
    return matrix
