"""Which atoms are neighbours in the graphs of GemNet-OC: the nearest ones, up to limits, and the same both ways."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from atomcsi.models.batch import AtomBatch
from atomcsi.models.neighbours import edges_within

#: Which neighbours are kept where there are more of them than the limit.
NeighborRule = Literal["fairchem", "jmp", "order-free"]
#: Digits behind the point, in Angstrom, by which distances differ that are not equal.
_DIGITS = 6
#: Neighbours at the limit's distance, up to this in Angstrom, are all kept by the rule "order-free".
_TIE = 1e-3


@dataclass(frozen=True, slots=True)
class EdgeArrays:
    """Directed edges while they are chosen; not in any order unless something says so.

    Attributes:
        source: Atom that each edge comes from, shape (edges,).
        target: Atom that it points to, shape (edges,).
        offset: Lattice vectors to the source's image that is meant, shape (edges, 3).
        base: More than the number of different offsets along a lattice vector, and of differences of two.
        natoms: Number of atoms in the batch.
    """

    source: np.ndarray
    target: np.ndarray
    offset: np.ndarray
    base: int
    natoms: int

    def __getitem__(self, chosen: np.ndarray) -> EdgeArrays:
        return replace(self, source=self.source[chosen], target=self.target[chosen], offset=self.offset[chosen])

    def opposite(self) -> EdgeArrays:
        """The same edges in the other direction."""
        return replace(self, source=self.target, target=self.source, offset=-self.offset)

    def image_of(self, atom: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """A number for an image of an atom, the larger the later in the order of atoms, then of offsets."""
        x, y, z = (offset + self.base // 2).T
        return ((atom * self.base + x) * self.base + y) * self.base + z

    @property
    def image(self) -> np.ndarray:
        """The number of each source's image, shape (edges,)."""
        return self.image_of(self.source, self.offset)

    def key_of(self, target: np.ndarray, image: np.ndarray) -> np.ndarray:
        """A number for an edge; one column of integers is sorted many times faster than several."""
        return target * (self.natoms * self.base**3) + image

    @property
    def key(self) -> np.ndarray:
        """The number of each edge, shape (edges,), in the order of targets, then of images."""
        return self.key_of(self.target, self.image)

    @property
    def rank(self) -> np.ndarray:
        """Position of each edge among those of its target, in the order of targets."""
        count = np.bincount(self.target)
        return np.arange(len(self.target)) - (np.cumsum(count) - count)[self.target]


@dataclass(frozen=True, slots=True)
class Candidates:
    """All edges within each structure's cutoff.

    Attributes:
        edges: In the order of targets, then of images.
        distance: Angstrom, shape (edges,).
        nearness: Position of each edge among those of its target by distance, then by image, shape (edges,).
    """

    edges: EdgeArrays
    distance: np.ndarray
    nearness: np.ndarray

    @classmethod
    def of(cls, batch: AtomBatch, cutoff: np.ndarray) -> Candidates:
        """Searches the neighbours within each structure's cutoff in Angstrom."""
        positions, cell = batch.positions.detach().double().cpu().numpy(), batch.cell.double().cpu().numpy()
        pbc, natoms = batch.pbc.cpu().numpy(), batch.natoms.tolist()
        targets, sources, distances, offsets = [], [], [], []
        first = 0
        for position, size in enumerate(natoms):
            own = positions[first : first + size]
            source, target, offset = edges_within(own, cell[position], pbc[position], cutoff[position])
            sources.append(source + first)
            targets.append(target + first)
            offsets.append(-offset)  # of the source
            distances.append(np.linalg.norm(own[source] - own[target] - offset @ cell[position], axis=1))
            first += size
        offset = np.concatenate(offsets)
        base = 4 * int(np.abs(offset).max(initial=0)) + 1  # differences of two offsets have a number too
        found = EdgeArrays(np.concatenate(sources), np.concatenate(targets), offset, base, first)
        order = np.argsort(found.key)
        edges = found[order]
        # Images of an atom are often at one distance, up to six in a hexagonal cell. If limits cut between them, what
        # is kept is an accident of rounding and of an unstable sort in fairchem and JMP; here, the order of the images.
        distance = np.concatenate(distances)[order].round(_DIGITS)
        nearness = np.empty_like(order)
        nearness[np.argsort(edges.target * (2 * cutoff.max()) + distance, kind="stable")] = edges.rank
        return cls(edges, distance, nearness)

    def nearest(self, limit: np.ndarray, *, ties: bool) -> EdgeArrays:
        """The nearest neighbours of each atom.

        Args:
            limit: Largest number of neighbours, at least 1, shape (atoms,).
            ties: Whether to keep all neighbours that are as near as the last one.
        """
        target = self.edges.target
        within = self.nearness < limit[target]
        if within.all():
            return self.edges
        if ties:
            last = self.nearness == limit[target] - 1
            reach = np.full(len(limit), np.inf)
            reach[target[last]] = self.distance[last] + _TIE
            within = self.distance <= reach[target]
        return self.edges[within]


def symmetric(nearest: EdgeArrays, rule: NeighborRule) -> tuple[EdgeArrays, np.ndarray]:
    """Returns edges of which each has its opposite, and the position of the opposite.

    One atom may be among the nearest of another without the reverse. The rule "order-free" keeps both directions if
    one is there. "fairchem" and "jmp" are what published weights were trained with: both directions are kept if the
    one is there that points to the later atom, so that results depend on the order of atoms where limits cut.
    """
    if rule != "order-free":
        sign = 1 if rule == "fairchem" else -1
        zero = nearest.image_of(np.zeros(1, int), np.zeros((1, 3), int))
        later = sign * (nearest.image_of(np.zeros_like(nearest.source), nearest.offset) - zero) > 0
        nearest = nearest[(nearest.source < nearest.target) | ((nearest.source == nearest.target) & later)]
    opposite = nearest.opposite()
    both = replace(
        nearest,
        source=np.concatenate([nearest.source, opposite.source]),
        target=np.concatenate([nearest.target, opposite.target]),
        offset=np.concatenate([nearest.offset, opposite.offset]),
    )
    keys, first = np.unique(both.key, return_index=True)
    edges = both[first]
    return edges, np.searchsorted(keys, edges.opposite().key)
