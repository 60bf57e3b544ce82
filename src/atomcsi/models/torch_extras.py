"""Pure-torch stand-ins for the few functions of torch_scatter and torch_sparse that fairchem imports.

Both packages must be compiled for every torch version, which takes longer than installing everything else here;
fairchem's GemNet-OC and EquiformerV2 only need what is below. Real installations are used where they exist.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_REDUCTIONS = {"sum": "sum", "add": "sum", "mean": "mean", "min": "amin", "max": "amax"}


def scatter(
    src: Tensor, index: Tensor, dim: int = -1, dim_size: int | Tensor | None = None, reduce: str = "sum"
) -> Tensor:
    """Reduces the slices of ``src`` along ``dim`` that have the same index.

    Args:
        src: Values, any shape.
        index: Target of each slice, shape (src.shape[dim],).
        dim: Dimension to reduce.
        dim_size: Size of the result along ``dim``; the largest index plus one by default.
        reduce: ``sum`` (or ``add``), ``mean``, ``min`` or ``max``.

    Returns:
        The shape of ``src`` with ``dim_size`` along ``dim``; 0 where an index has no slice.
    """
    if dim_size is None:
        dim_size = int(index.max()) + 1 if index.numel() else 0
    size = list(src.shape)
    size[dim] = int(dim_size)
    if _REDUCTIONS[reduce] == "sum":  # much faster than scatter_reduce, forward and backward
        return src.new_zeros(size).index_add(dim, index, src)
    shape = [1] * src.dim()
    shape[dim] = -1
    index = index.view(shape).expand_as(src)
    return src.new_zeros(size).scatter_reduce(dim, index, src, _REDUCTIONS[reduce], include_self=False)


def segment_coo(src: Tensor, index: Tensor, dim_size: int | Tensor | None = None, reduce: str = "sum") -> Tensor:
    """Reduces rows of ``src`` with the same (sorted) index; see :func:`scatter`."""
    return scatter(src, index, 0, dim_size, reduce)


def segment_csr(src: Tensor, indptr: Tensor, reduce: str = "sum") -> Tensor:
    """Reduces ``src[indptr[i]:indptr[i + 1]]`` to row ``i`` of the result, shape (len(indptr) - 1, ...)."""
    counts = indptr.diff()
    index = torch.repeat_interleave(torch.arange(len(counts), device=src.device), counts)
    return scatter(src[indptr[0] : indptr[-1]], index, 0, len(counts), reduce)


class SparseTensor:
    """A sparse matrix in coordinate form, sorted by row and column, that may hold entries more than once.

    Args:
        row: Row of each entry, shape (entries,).
        col: Column of each entry, shape (entries,).
        value: Entries, shape (entries,).
        sparse_sizes: Number of rows and columns.
    """

    def __init__(self, row: Tensor, col: Tensor, value: Tensor, sparse_sizes: tuple[int, int]) -> None:
        order = torch.argsort(row * sparse_sizes[1] + col, stable=True)
        self._row, self._col, self._value, self._sizes = row[order], col[order], value[order], sparse_sizes

    @property
    def storage(self) -> SparseTensor:
        """The object with ``row()``, ``col()`` and ``value()``: this one."""
        return self

    def row(self) -> Tensor:
        """Row of each entry, shape (entries,)."""
        return self._row

    def col(self) -> Tensor:
        """Column of each entry, shape (entries,)."""
        return self._col

    def value(self) -> Tensor:
        """Entries, shape (entries,)."""
        return self._value

    def coo(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, columns and entries."""
        return self._row, self._col, self._value

    def sparse_sizes(self) -> tuple[int, int]:
        """Number of rows and columns."""
        return self._sizes

    def set_value_(self, value: Tensor, layout: str = "coo") -> SparseTensor:
        """Replaces the entries, given in the order of :meth:`coo`."""
        self._value = value
        return self

    def __getitem__(self, rows: Tensor) -> SparseTensor:
        """Stacks the given rows, which may repeat, to a new matrix of ``len(rows)`` rows."""
        counts = torch.bincount(self._row, minlength=self._sizes[0])
        starts = counts.cumsum(0) - counts
        sizes = counts[rows]
        row = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), sizes)
        within = torch.arange(len(row), device=rows.device) - (sizes.cumsum(0) - sizes)[row]
        entry = starts[rows][row] + within
        return SparseTensor(row, self._col[entry], self._value[entry], (len(rows), self._sizes[1]))


def install() -> None:
    """Makes ``torch_scatter`` and ``torch_sparse`` importable; does nothing for one that is installed."""
    # torch_geometric asks for both when it is imported and would take the stand-ins for complete packages.
    import torch_geometric.typing  # noqa: F401

    _register("torch_scatter", scatter=scatter, segment_coo=segment_coo, segment_csr=segment_csr)
    _register("torch_sparse", SparseTensor=SparseTensor)


def _register(name: str, **contents: Any) -> None:
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    module = ModuleType(name, "Stand-in of atomcsi.models.torch_extras.")
    module.__spec__ = ModuleSpec(name, loader=None)  # find_spec of other packages raises where it is None
    vars(module).update(contents)
    sys.modules[name] = module
