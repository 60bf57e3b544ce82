"""How far predictions are from their targets, per structure: what is averaged over a batch and minimised."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from atomcsi.models.batch import AtomBatch

#: Losses of scalars, shape (structures,); of classes for predictions that are logits.
_SCALAR: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda found, target: (found - target).abs(),
    "mse": lambda found, target: (found - target).square(),
    "cross-entropy": lambda found, target: functional.binary_cross_entropy_with_logits(found, target, reduction="none"),
}
#: Losses of forces, shape (atoms,).
_FORCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "norm": lambda found, target: torch.linalg.vector_norm(found - target, dim=-1),
    "l1": lambda found, target: (found - target).abs().mean(dim=-1),
    "mse": lambda found, target: (found - target).square().mean(dim=-1),
}


def scalar_loss(kind: str, found: Tensor, target: Tensor) -> Tensor:
    """Loss of scalars, shape (structures,).

    Args:
        kind: ``l1``, ``mse``, or ``cross-entropy`` of logits and classes 0 and 1.
        found: Predictions, shape (structures,).
        target: What they should be, shape (structures,).
    """
    return _SCALAR[kind](found, target)


def force_loss(kind: str, found: Tensor, target: Tensor, batch: AtomBatch) -> Tensor:
    """Loss of forces, averaged over the atoms of each structure, shape (structures,).

    Args:
        kind: ``norm``: the length of the error (paper, section 1); ``l1`` or ``mse``: its components' mean absolute
            or squared error.
        found: Predictions, shape (atoms, 3).
        target: What they should be, shape (atoms, 3).
        batch: The atoms.
    """
    atoms = _FORCES[kind](found, target)
    return atoms.new_zeros(len(batch)).index_add(0, batch.index, atoms) / batch.natoms
