"""HDF5 files that are written safely, and read without following them elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import h5py
import numpy as np
from numpy.typing import ArrayLike

from atomcsi.errors import InputError
from atomcsi.files import atomic_path

#: Values of a chunk; each chunk has a checksum.
_CHUNK = 1 << 17
#: Bytes of what HDF5 notes of its arrays; it grows by some tens of bytes a chunk.
_OVERHEAD = 1 << 18
_AGAIN = "delete it and run again"


@contextmanager
def new_hdf5(path: Path, size: int) -> Iterator[h5py.File]:
    """Yields an HDF5 file that becomes ``path`` if the block succeeds, see :func:`atomcsi.files.atomic_path`.

    It is in the format whose metadata have checksums (HDF5 1.10 and later).

    Args:
        path: The file.
        size: Bytes of the arrays that it will hold. The disk is asked for that room before anything is written: HDF5
            takes the process down when it closes a file on a full disk.

    Raises:
        AtomcsiError: The disk is full or fails, or the folder cannot be written.
    """
    size += size // 100 + _OVERHEAD
    with atomic_path(path) as temporary, temporary.open("w+b") as stream:
        _reserve(stream, size)
        stream.truncate(0)  # HDF5 wants to start with an empty file, and cuts off at the end what it did not need
        with h5py.File(stream, "w", libver="latest") as file:
            _reserve(stream, size)
            yield file


def _reserve(stream: IO[bytes], size: int) -> None:
    """Asks the disk for room, on systems that can."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(stream.fileno(), 0, size)


def add_checked(group: h5py.Group, name: str, values: ArrayLike) -> None:
    """Adds an array, of at least one value, whose checksums (Fletcher-32) are compared whenever it is read."""
    array = np.asarray(values)
    if array.dtype.kind == "U":
        array = np.char.encode(array, "utf-8")
        array = array.astype(h5py.string_dtype("utf-8", array.dtype.itemsize))
    add_checked_space(group, name, array.shape, array.dtype)[...] = array


def add_checked_space(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> h5py.Dataset:
    """Adds room for an array of which one row is written at a time, with checksums as :func:`add_checked`."""
    chunk = (*(1 for _ in shape[1:]), min(shape[-1], _CHUNK))
    return group.create_dataset(name, shape, dtype, chunks=chunk, fletcher32=True)


@contextmanager
def open_checked(path: Path, schema: str | None, *, what: str, mend: str) -> Iterator[h5py.File]:
    """Yields a file of ours to read from; errors of HDF5 while it is open tell of the file.

    Args:
        path: The file.
        schema: The schema that it must hold, as its attribute ``schema``; None for any of ours.
        what: What such a file is called.
        mend: What to do about a file that is none.

    Raises:
        InputError: The file is missing, damaged or of another schema.
    """
    try:
        with h5py.File(path, "r") as file:
            found = str(file.attrs.get("schema", ""))
            if not found.startswith((schema or "atomcsi").partition("/")[0]):
                raise InputError(path, f"is no {what} of atomcsi", mend=mend)
            if schema is not None and found != schema:
                raise InputError(path, f"holds '{found}' where '{schema}' is needed", mend=_AGAIN)
            yield file
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(path, described(error), mend=_AGAIN) from error


def described(error: Exception) -> str:
    """Says what an error of HDF5 means for the file that was read; it tells of checksums as of a filter that failed."""
    return "is damaged: a checksum is wrong" if "filter returned failure" in str(error) else f"cannot be read: {error}"


def refuse_foreign(item: h5py.Group | h5py.Dataset | None, file: h5py.File, path: Path, record: str) -> None:
    """Refuses what an HDF5 file does not hold itself: it could make any file of this machine part of the data.

    Args:
        item: A group or dataset that was found in the file; None for a link that leads nowhere.
        file: The file.
        path: The file's path.
        record: The item's name, for the error.

    Raises:
        InputError: The item is a link into another file, or a dataset that is stored in others.
    """
    outside = item is None or item.file.filename != file.filename
    if outside or (isinstance(item, h5py.Dataset) and (item.external or item.is_virtual)):
        raise InputError(path, "is a link out of the file", record=record, mend="fetch a file that holds its own data")
