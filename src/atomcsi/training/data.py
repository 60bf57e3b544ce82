"""Which structures a training sees, and with which labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from torch.utils.data import Dataset

from atomcsi.catalogue import Graph
from atomcsi.errors import InputError
from atomcsi.structure import MAX_ATOMIC_NUMBER, Structure
from atomcsi.structure_batch import FORCES, StructureBatch
from atomcsi.structure_lmdb import StructureLMDB
from atomcsi.targets import LABELS, NOISE


class LabelledStructures(Dataset[Structure], Sequence[Structure]):
    """A seeded draw of a split's structures with the label that is trained on.

    Args:
        store: The split.
        target: ``forces``, ``energy``, the property that takes the energy's place, or ``noise``, which needs no label.
        limit: How many structures at most; all if None.
        seed: Seed of the draw.
        indices: Positions of the structures, where they are chosen instead of drawn.
        graph: Graph of the structures; the model's own if None.

    Raises:
        InputError: The structures do not have that label.
    """

    def __init__(
        self,
        store: StructureLMDB,
        *,
        target: str,
        limit: int | None = None,
        seed: int = 0,
        indices: np.ndarray | None = None,
        graph: Graph | None = None,
    ) -> None:
        self.store, self.target, self.graph = store, target, graph
        if indices is None:
            population = len(store)
            size = population if limit is None else min(limit, population)
            indices = np.random.default_rng(seed).choice(population, size, replace=False)
        self.indices = np.sort(indices)
        known = {"energy": "energy_std", "forces": "force_rms"}
        has = known[target] in store.metadata if target in known else target in store.metadata["properties"]
        if target != NOISE and not has:
            raise InputError(store.path, f"has no {target} to train on", mend="see the task's target")

    def __len__(self) -> int:
        """Number of structures drawn."""
        return len(self.indices)

    def __getitem__(self, position: int) -> Structure:
        """Returns a structure whose ``energy`` is the target if that is a property."""
        structure = self.store[int(self.indices[position])]
        if self.target in LABELS:
            return structure
        return replace(structure, energy=structure.properties[self.target], forces=None)

    def __getitems__(self, positions: Sequence[int]) -> StructureBatch:
        """Returns several such structures; what PyTorch's loader calls for a batch."""
        batch = self.store.read_batch(self.indices[np.asarray(positions)])
        if self.target in LABELS:
            return batch
        values = batch.properties[:, batch.property_names.index(self.target)]
        return replace(batch, energy=values, flags=batch.flags & ~np.uint16(FORCES))

    def of_epoch(self, positions: Sequence[int], epoch: int) -> StructureBatch:
        """Returns several such structures; they are the same in every epoch."""
        return self.__getitems__(positions)

    def batches(self, size: int = 4096) -> Iterator[StructureBatch]:
        """Yields all structures in order."""
        for start in range(0, len(self), size):
            yield self.__getitems__(range(start, min(start + size, len(self))))

    @property
    def natoms(self) -> np.ndarray:
        """Number of atoms of each structure drawn, shape (structures,)."""
        return self.store.natoms[self.indices]

    @property
    def nedges(self) -> np.ndarray:
        """Number of edges of each structure at most, shape (structures,); all are periodic, or none, as the first.

        Raises:
            InputError: The graph is the model's own.
        """
        if self.graph is None:
            mend = "give the dataset a graph in datasets.yaml, or set max_atoms in place of max_edges"
            raise InputError(self.store.path, "has no graph of its own whose edges could be counted", mend=mend)
        return self.graph.edges_at_most(self.natoms, periodic=bool(np.any(self.store[int(self.indices[0])].pbc)))

    @property
    def reference(self) -> np.ndarray | None:
        """The linear reference that the config gives for the energy, eV by atomic number, shape (119,), or None."""
        metadata = self.store.metadata
        if self.target not in LABELS or "linear_reference" not in metadata["provenance"]:
            return None
        reference = np.zeros(MAX_ATOMIC_NUMBER + 1)
        for element, energy in metadata["linear_reference"].items():
            reference[int(element)] = energy
        return reference
