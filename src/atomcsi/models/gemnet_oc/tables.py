"""Rows of edges as tables of one block of rows per atom, and back.

Atoms have different numbers of edges, and a table is as wide as the largest. So that little of it is empty, atoms are
sorted by their number of edges and cut into a few groups, each with a table of its own.

Each edge has one slot, so that both ways are copies, and the gradient of each is the other: no sums, which are slow,
as in the gradient of PyTorch's indexing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from atomcsi.models.gemnet_oc.graph import Edges


class _ToTable(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, slot: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(slot)
        return rows.new_zeros(size, *rows.shape[1:]).index_copy_(0, slot, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slot,) = ctx.saved_tensors
        return _ToRows.apply(gradient, slot), None, None


class _ToRows(Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, slot: Tensor) -> Tensor:
        ctx.save_for_backward(slot)
        ctx.size = len(table)
        return table.index_select(0, slot)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slot,) = ctx.saved_tensors
        return _ToTable.apply(gradient, slot, ctx.size), None


def placed(rows: Tensor, slot: Tensor, size: int) -> Tensor:
    """Returns rows, shape (edges, *shape), at their slots of zeros, shape (size, *shape)."""
    return _ToTable.apply(rows, slot, size)


def picked(table: Tensor, slot: Tensor) -> Tensor:
    """Returns what is in slots of a flat table, shape (size, *shape), no slot twice, shape (edges, *shape)."""
    return _ToRows.apply(table, slot)


def split(flat: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Returns a flat table, shape (size, *shape), as blocks of shape (atoms, width, *shape)."""
    parts = flat.split([atoms * width for atoms, width in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def to_tables(rows: Tensor, edges: Edges) -> list[Tensor]:
    """Returns rows, shape (edges, *shape), as one table per group of atoms, shape (atoms, width, *shape)."""
    return split(placed(rows, edges.slot, sum(atoms * width for atoms, width in edges.shapes)), edges.shapes)


def to_rows(tables: Sequence[Tensor], edges: Edges) -> Tensor:
    """Returns what is in the slots of tables, the reverse of :func:`to_tables`."""
    return picked(torch.cat([table.flatten(0, 1) for table in tables]), edges.slot)
