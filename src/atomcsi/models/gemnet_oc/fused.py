"""The chains of operations that GemNet-OC spends its time and memory on, each with a gradient of its own.

A chain of PyTorch's operations keeps every intermediate result until its gradient is known: 262 matrices of
(edges, 512) for GemNet-OC-S. The functions here keep what only a large matrix product could bring back, which makes
142, and compute again what costs one pass over memory. Every function has a plain counterpart, ``plain_*``, of which
it is the equal and which also gives its second derivatives, for forces that are gradients.

Weights have shape (out, in), as in ``torch.nn.Linear``. Under autocast everything is computed in its type, gradients
included.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

_silu_backward = torch.ops.aten.silu_backward
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
#: GemNet's activation is SiLU divided by this, which about keeps the variance of normal input (arXiv 2106.08903).
SILU_GAIN = 0.6
_INV_SQRT_2 = 2**-0.5


def in_compute_type(*tensors: Tensor) -> list[Tensor]:
    """Returns tensors in the type that autocast asks for, as they are without it."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [tensor.to(dtype) for tensor in tensors]


def times(a: Tensor, b: Tensor) -> Tensor:
    """Returns a b', shape (n, m), of shapes (n, k) and (m, k); without gradients.

    On CPUs PyTorch leaves float32 to MKL, which takes less than half of what AMD's processors can do, and only lower
    precisions to oneDNN. The latter's operator, which PyTorch's compiler uses for linear layers, is as precise.
    """
    if a.dtype == torch.float32 and a.device.type == "cpu" and _ONEDNN and a.numel():
        # It falls back to a loop for parts of matrices.
        a, b = (x if x.is_contiguous() or x.T.is_contiguous() else x.contiguous() for x in (a, b))
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return a @ b.T


def activated(x: Tensor) -> Tensor:
    """GemNet's activation: SiLU(x) / 0.6."""
    return F.silu(x).mul_(1 / SILU_GAIN)


def _second_order(plain: Callable[..., Tensor], inputs: tuple[Any, ...], gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of a plain counterpart that can be differentiated once more."""
    with torch.enable_grad():
        # One input may have been computed from another, as embeddings are from a basis that all blocks share. Views
        # of them have not, so that no input's gradient has another's in it.
        views = [x.view_as(x) if isinstance(x, Tensor) and x.requires_grad else x for x in inputs]
        wanted = [isinstance(x, Tensor) and x.requires_grad for x in views]
        found = iter(torch.autograd.grad(plain(*views), [*compress(views, wanted)], gradient, create_graph=True))
    return tuple(next(found) if is_wanted else None for is_wanted in wanted)


# ---- Linear layers -----------------------------------------------------------------------------


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """The product x weight', shape (rows, features)."""
    return _Linear.apply(*in_compute_type(x, weight))


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return times(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _second_order(F.linear, (x, weight), gradient)
        d_x, d_weight = ctx.needs_input_grad
        return times(gradient, weight.T) if d_x else None, times(gradient.T, x.T) if d_weight else None


# ---- Residual layers ---------------------------------------------------------------------------


def residual(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """(x + f(f(x first') second')) / sqrt(2), where f is GemNet's activation; shape (rows, features)."""
    return _Residual.apply(*in_compute_type(x, first, second))


def plain_residual(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """See :func:`residual`."""
    hidden = F.silu(x @ first.T) / SILU_GAIN
    return (x + F.silu(hidden @ second.T) / SILU_GAIN) * _INV_SQRT_2


class _Residual(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        z1 = times(x, first)
        # The gain goes into the weights, which are smaller than the activations.
        z2 = times(F.silu(z1), second / SILU_GAIN)
        ctx.save_for_backward(x, first, second, z1, z2)
        return torch.add(x, F.silu(z2), alpha=1 / SILU_GAIN).mul_(_INV_SQRT_2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, first, second, z1, z2 = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _second_order(plain_residual, (x, first, second), gradient)
        dz2 = _silu_backward(gradient, z2)
        hidden = F.silu(z1)
        gain = _INV_SQRT_2 / SILU_GAIN
        d_second = times(dz2.T, hidden.T).mul_(gain / SILU_GAIN)
        dz1 = _silu_backward(times(dz2, second.T * (gain / SILU_GAIN)), z1)
        return times(dz1, first.T).add_(gradient, alpha=_INV_SQRT_2), times(dz1.T, x.T), d_second


# ---- Modulation by a basis ---------------------------------------------------------------------


def modulate(x: Tensor, basis: Tensor, weight: Tensor) -> Tensor:
    """X times (basis weight'), element by element; shape (rows, features)."""
    return _Modulate.apply(*in_compute_type(x, basis, weight))


def plain_modulate(x: Tensor, basis: Tensor, weight: Tensor) -> Tensor:
    """See :func:`modulate`."""
    return x * (basis @ weight.T)


class _Modulate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, basis: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, basis, weight)
        return times(basis, weight).mul_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, basis, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _second_order(plain_modulate, (x, basis, weight), gradient)
        return _modulation_gradients(x, basis, weight, gradient)


def _modulation_gradients(x: Tensor, basis: Tensor, weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    factor = gradient * x
    d_basis, d_weight = times(factor, weight.T), times(factor.T, basis.T)
    return times(basis, weight).mul_(gradient), d_basis, d_weight


def modulated_sum(x: Tensor, basis: Tensor, weight: Tensor, target: Tensor, size: int) -> Tensor:
    """Sums :func:`modulate` over rows with the same target, in float32 at least; shape (size, features)."""
    return _ModulatedSum.apply(*in_compute_type(x, basis, weight), target, size)


def plain_modulated_sum(x: Tensor, basis: Tensor, weight: Tensor, target: Tensor, size: int) -> Tensor:
    """See :func:`modulated_sum`."""
    return _sum_by(plain_modulate(x, basis, weight), target, size)


def _sum_by(rows: Tensor, target: Tensor, size: int) -> Tensor:
    if rows.dtype in (torch.float16, torch.bfloat16):
        rows = rows.float()
    return rows.new_zeros(size, rows.shape[1]).index_add(0, target, rows)


class _ModulatedSum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, basis: Tensor, weight: Tensor, target: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(x, basis, weight, target)
        ctx.size = size
        return _sum_by(times(basis, weight).mul_(x), target, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, basis, weight, target = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _second_order(plain_modulated_sum, (x, basis, weight, target, ctx.size), gradient)
        return (*_modulation_gradients(x, basis, weight, gradient.to(x.dtype).index_select(0, target)), None, None)


# ---- From atoms to edges -----------------------------------------------------------------------


def copied(rows: Tensor, index: Tensor) -> Tensor:
    """Rows of atoms at the edges that see them, ``rows[index]``; gradients are summed in float32 at least."""
    return _Copied.apply(rows, index)


class _Copied(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = len(rows)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return _sum_by(gradient, index, ctx.size).to(gradient.dtype), None


# ---- Messages ----------------------------------------------------------------------------------


def message(
    x: Tensor, dense: Tensor, basis: Tensor, modulation: Tensor, down: Tensor, source: Tensor | None = None
) -> Tensor:
    """f((f(x dense') [of each edge's source] * (basis modulation')) down'): what is sent along edges.

    Args:
        x: Embeddings of edges, or of atoms with ``source``, shape (rows, features).
        dense: Weight of shape (features, features).
        basis: Radial basis of the edges, shape (edges, basis).
        modulation: Weight of shape (features, basis).
        down: Weight of shape (channels, features).
        source: Atom that each edge comes from, shape (edges,); None where x has the rows of the edges.

    Returns:
        Shape (edges, channels).
    """
    return _Message.apply(*in_compute_type(x, dense, basis, modulation, down), source)


def plain_message(
    x: Tensor, dense: Tensor, basis: Tensor, modulation: Tensor, down: Tensor, source: Tensor | None
) -> Tensor:
    """See :func:`message`."""
    sent = F.silu(x @ dense.T) / SILU_GAIN
    if source is not None:
        sent = sent[source]
    return F.silu((sent * (basis @ modulation.T)) @ down.T) / SILU_GAIN


class _Message(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dense: Tensor, basis: Tensor, modulation: Tensor, down: Tensor, source: Tensor | None
    ) -> Tensor:
        z = times(x, dense)
        sent = F.silu(z)
        if source is not None:
            sent = sent.index_select(0, source)
        low = times(times(basis, modulation).mul_(sent), down / SILU_GAIN)
        ctx.save_for_backward(x, dense, basis, modulation, down, source, z, low)
        return activated(low)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, dense, basis, modulation, down, source, z, low = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _second_order(plain_message, (x, dense, basis, modulation, down, source), gradient)
        d_low = _silu_backward(gradient, low).mul_(1 / SILU_GAIN**2)
        sent = F.silu(z)
        if source is not None:
            sent = sent.index_select(0, source)
        factor = times(basis, modulation)
        d_product = times(d_low, down.T)
        d_down = times(d_low.T, (factor * sent).T)
        d_factor = sent.mul_(d_product)
        d_modulation, d_basis = times(d_factor.T, basis.T), times(d_factor, modulation.T)
        d_sent = d_product.mul_(factor)
        if source is not None:
            d_sent = _sum_by(d_sent, source, len(z)).to(z.dtype)
        dz = _silu_backward(d_sent, z)
        return times(dz, dense.T), times(dz.T, x.T), d_basis, d_modulation, d_down, None


def merge(edges: Tensor, dense: Tensor, opposite: Tensor, *updates: Tensor) -> Tensor:
    """f(edges dense') + sum over updates of [f(u own') + f(u other') of the opposite edge] / sqrt(2).

    Args:
        edges: Embeddings of edges, shape (edges, features).
        dense: Weight of shape (features, features).
        opposite: Position of each edge's opposite, shape (edges,).
        updates: For each interaction its result u, shape (edges, channels), and its weights own and other, of shape
            (features, channels).

    Returns:
        Shape (edges, features).
    """
    edges, dense, *updates = in_compute_type(edges, dense, *updates)
    return _Merge.apply(edges, dense, opposite, *updates)


def plain_merge(edges: Tensor, dense: Tensor, opposite: Tensor, *updates: Tensor) -> Tensor:
    """See :func:`merge`."""
    total = F.silu(edges @ dense.T)
    for u, own, other in zip(*[iter(updates)] * 3, strict=True):
        total = total + (F.silu(u @ own.T) + F.silu(u[opposite] @ other.T)) * _INV_SQRT_2
    return total / SILU_GAIN


class _Merge(Function):
    @staticmethod
    def forward(ctx: Any, edges: Tensor, dense: Tensor, opposite: Tensor, *updates: Tensor) -> Tensor:
        z = times(edges, dense)
        ctx.save_for_backward(edges, dense, opposite, z, *updates)
        total = F.silu(z)
        for u, own, other in zip(*[iter(updates)] * 3, strict=True):
            total.add_(F.silu(times(u, own), inplace=True), alpha=_INV_SQRT_2)
            total.add_(F.silu(times(u.index_select(0, opposite), other), inplace=True), alpha=_INV_SQRT_2)
        return total.mul_(1 / SILU_GAIN)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        edges, dense, opposite, z, *updates = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _second_order(plain_merge, (edges, dense, opposite, *updates), gradient)
        found: list[Tensor] = []
        scale = _INV_SQRT_2 / SILU_GAIN
        for u, own, other in zip(*[iter(updates)] * 3, strict=True):
            swapped = u.index_select(0, opposite)
            d_own = _silu_backward(gradient, times(u, own))
            d_other = _silu_backward(gradient, times(swapped, other))
            d_u = times(d_own, own.T).add_(times(d_other, other.T).index_select(0, opposite)).mul_(scale)
            found += [d_u, times(d_own.T, u.T).mul_(scale), times(d_other.T, swapped.T).mul_(scale)]
        dz = _silu_backward(gradient, z)
        d_edges, d_dense = times(dz, dense.T / SILU_GAIN), times(dz.T, edges.T).mul_(1 / SILU_GAIN)
        return d_edges, d_dense, None, *found
