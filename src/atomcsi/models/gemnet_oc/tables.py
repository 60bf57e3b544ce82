"""Rows of edges as tables of one block of rows per atom, and back.

Each edge has one slot, so that both ways are copies, and the gradient of each is the other: no sums, which are slow,
as in the gradient of PyTorch's indexing.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function


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


def to_table(rows: Tensor, slot: Tensor, blocks: int, width: int) -> Tensor:
    """Returns rows, shape (edges, *shape), in their slots of zeros, shape (blocks, width, *shape)."""
    if len(rows) == blocks * width:  # every slot is taken, in order
        return rows.reshape(blocks, width, *rows.shape[1:])
    return _ToTable.apply(rows, slot, blocks * width).view(blocks, width, *rows.shape[1:])


def to_rows(table: Tensor, slot: Tensor) -> Tensor:
    """Returns what is in the slots of a table, shape (blocks, width, *shape), as rows, shape (edges, *shape)."""
    flat = table.reshape(-1, *table.shape[2:])
    return flat if len(slot) == len(flat) else _ToRows.apply(flat, slot)


def swap(rows: Tensor, opposite: Tensor) -> Tensor:
    """Returns the row of each edge's opposite; the gradient's is the same permutation."""
    return _Swap.apply(rows, opposite)


class _Swap(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, opposite: Tensor) -> Tensor:
        ctx.save_for_backward(opposite)
        return rows.index_select(0, opposite)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (opposite,) = ctx.saved_tensors
        return _Swap.apply(gradient, opposite), None
