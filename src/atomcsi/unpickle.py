"""Reads foreign pickles without running what they name.

A pickle may call any function that it can name. Here it can name only the few constructors that data are made of,
and gets inert stand-ins for them: neither torch nor torch_geometric is imported. Everything else ends in an
:class:`~atomcsi.errors.InputError` that says what the pickle asked for.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from atomcsi.errors import InputError

_numpy_scalar = np.float64().__reduce__()[0]

#: Name of a tensor's storage class in torch -> its elements, little-endian.
_STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}
_STORAGE_MAGIC = 0x1950A86A20F9469CFC6C


class _Dtype:
    """Stands for a dtype of plain numbers or text, of which a pickle can choose the byte order and nothing else.

    A dtype of NumPy believes the state that it is given: with an object for a field, bytes of the pickle would
    become pointers.
    """

    __slots__ = ("dtype",)

    def __init__(self, name: str) -> None:
        # A copy, for NumPy's own dtype objects are shared.
        self.dtype = np.dtype(str(name), copy=True)
        if self.dtype.kind not in "biufcSU":
            raise pickle.UnpicklingError(f"it holds values of the type {self.dtype}, not plain numbers or text")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, order, *structure = state
        if any(part is not None for part in structure[:3]):
            raise pickle.UnpicklingError("it gives fields to a plain number")
        self.dtype = self.dtype.newbyteorder(order)


class _PlainUnpickler(pickle.Unpickler):
    """Builtin values and NumPy scalars.

    The stand-ins are types of C and bound methods, for a pickle can set attributes on whatever it can name, and
    these do not let it. Nor does it ever hold a dtype of NumPy, see :class:`_Dtype`.
    """

    def find_class(self, module: str, name: str) -> Any:
        stand_in = self.stand_in(module, name)
        if stand_in is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not on the list of harmless names")
        return stand_in

    def stand_in(self, module: str, name: str) -> Callable[..., Any] | None:
        """Returns what stands for a global that the pickle names, or None to refuse it."""
        if (module, name) == ("numpy", "dtype"):
            return self._dtype
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "scalar":
            return self._scalar
        return None

    def _dtype(self, name: str, *_: object) -> _Dtype:
        return _Dtype(name)

    def _scalar(self, dtype: _Dtype, content: bytes) -> np.generic:
        return _numpy_scalar(dtype.dtype, content)


class _DataUnpickler(_PlainUnpickler):
    """Also ``torch_geometric.data.Data`` as plain namespaces, and tensors as NumPy arrays."""

    def stand_in(self, module: str, name: str) -> Callable[..., Any] | None:
        return {
            "torch_geometric.data.data.Data": SimpleNamespace,
            "torch_geometric.data.data.DataEdgeAttr": SimpleNamespace,
            "torch_geometric.data.data.DataTensorAttr": SimpleNamespace,
            "torch_geometric.data.storage.GlobalStorage": SimpleNamespace,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch.storage._load_from_bytes": self._storage,
            "collections.OrderedDict": OrderedDict,
        }.get(f"{module}.{name}") or super().stand_in(module, name)

    def load(self) -> Any:
        return _attributes(super().load())

    def _storage(self, content: bytes) -> np.ndarray:
        """Reads a storage as torch puts it into a pickle: five pickles, then the length and the elements."""
        stream = io.BytesIO(content)
        magic, _version, _system, storage, _keys = (_StorageUnpickler(stream).load() for _ in range(5))
        if magic != _STORAGE_MAGIC:
            raise pickle.UnpicklingError("it holds a tensor in a layout that is not torch's")
        _, dtype, _key, _device, _length, view = storage
        if dtype not in _STORAGES.values() or view is not None:
            raise pickle.UnpicklingError("it holds a tensor without elements of its own")
        length = int.from_bytes(stream.read(8), "little")
        return np.frombuffer(content, dtype, count=length, offset=stream.tell())

    def _tensor(
        self, storage: np.ndarray, offset: int, shape: Sequence[int], strides: Sequence[int], *_: object
    ) -> np.ndarray:
        # NumPy checks that shape and strides stay inside the buffer, but takes -1 for a length that it infers later.
        if min((0, *shape)) < 0:
            raise pickle.UnpicklingError(f"it holds a tensor of the shape {shape}")
        size = storage.itemsize
        return np.ndarray(shape, storage.dtype, storage, offset * size, [step * size for step in strides])


class _StorageUnpickler(pickle.Unpickler):
    """The header of a storage, in which the storage itself is a persistent id."""

    def find_class(self, module: str, name: str) -> str:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not a tensor's storage")

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _load(unpickler: type[pickle.Unpickler], source: Path | bytes, path: Path | str | None, record: str) -> Any:
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    where = path or ("pickle" if isinstance(source, bytes) else source)
    try:
        return unpickler(io.BytesIO(content)).load()
    except Exception as error:  # damaged pickles raise nearly anything
        problem = f"is no pickle that can be read safely: {' '.join(str(error).split())}"
        raise InputError(where, problem, record=record, mend="use the dataset's official file") from error


def load_plain(source: Path | bytes, *, path: Path | str | None = None, record: str = "") -> Any:
    """Unpickles builtin values (numbers, text, containers) and NumPy scalars.

    Args:
        source: The file, or the pickle itself.
        path: The file that an error names if ``source`` is the pickle itself.
        record: The record that an error names.

    Raises:
        InputError: The pickle names anything else, or is damaged.
    """
    return _load(_PlainUnpickler, source, path, record)


def load_pyg_data(source: Path | bytes, *, path: Path | str | None = None, record: str = "") -> Any:
    """Unpickles a ``torch_geometric.data.Data`` of any release into a dictionary of its attributes.

    Arguments and errors are those of :func:`load_plain`.

    Returns:
        Attribute -> NumPy array (read-only) for a tensor, else the value itself; attributes that are None are
        left out. A pickled list of Data gives the list of their dictionaries.
    """
    return _load(_DataUnpickler, source, path, record)


def _attributes(value: Any) -> Any:
    if isinstance(value, list):
        return [_attributes(item) for item in value]
    if not isinstance(value, SimpleNamespace):
        return value
    # Before PyTorch Geometric 2.0, the attributes were those of the object itself.
    attributes = vars(value)["_store"]._mapping if "_store" in vars(value) else vars(value)
    return {name: item for name, item in attributes.items() if item is not None}
