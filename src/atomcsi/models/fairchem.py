"""What fairchem's models share; import this before any of them."""

from __future__ import annotations

from torch import Tensor

from atomcsi.errors import AtomcsiError
from atomcsi.models import torch_extras
from atomcsi.models.batch import AtomBatch

torch_extras.install()


class FairchemBatch:
    """A batch under the names that fairchem's models read."""

    def __init__(self, batch: AtomBatch) -> None:
        self.pos, self.cell, self.natoms, self.batch = batch.positions, batch.cell, batch.natoms, batch.index
        self.atomic_numbers, self.tags = batch.numbers, batch.tags
        # One flag per direction for all structures: images are only looked for where some structure has any.
        self.pbc = batch.pbc.any(dim=0, keepdim=True)

    def __getitem__(self, mask: Tensor) -> str:
        """Describes some of the structures, for fairchem's log messages."""
        return f"{int(mask.sum())} structures"


def require_edges(distances: Tensor, cutoff: float) -> None:
    """Stops before fairchem fails on a batch without edges.

    Args:
        distances: Lengths of the batch's edges, shape (edges,).
        cutoff: Length of the longest edge in Angstrom.

    Raises:
        AtomcsiError: There are no edges.
    """
    if not len(distances):
        raise AtomcsiError(
            f"no two atoms of a batch are within the model's cutoff of {cutoff:g} Angstrom, so that it has "
            "nothing to work on; leave isolated atoms out"
        )
