"""From structures on disk to batches of a model: which ones each step takes, and who reads them."""

from __future__ import annotations

import io
import pickle
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from atomcsi.errors import AtomcsiError
from atomcsi.models.base import Collate
from atomcsi.models.batch import AtomBatch
from atomcsi.training.settings import TrainSettings
from atomcsi.training.training_data import Drawn

#: Batches that a worker keeps ready.
_PREFETCH = 4


class Share(NamedTuple):
    """What one process takes at once of a step's structures.

    Attributes:
        positions: Positions of its structures, never empty: a process without one takes another's to keep in step.
        counted: How many of them count, 0 for another's.
        total: Structures of the step in all shares.
        last: Whether it is the process's last share of the step.
        epoch: The epoch that the step belongs to, counted from 0.
    """

    positions: np.ndarray
    counted: int
    total: int
    last: bool
    epoch: int = 0


@dataclass(slots=True, kw_only=True)
class LoadedBatch:
    """A share of a step, as a model takes it.

    Attributes:
        atoms: The structures with their labels.
        sources: Name of each structure's record in the raw data.
        share: Which of them count, and for what.
    """

    atoms: AtomBatch
    sources: Sequence[str]
    share: Share

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> LoadedBatch:
        """Returns the batch on another device."""
        atoms = self.atoms.to(device, non_blocking=non_blocking)
        return LoadedBatch(atoms=atoms, sources=self.sources, share=self.share)


#: What a loader yields: a batch, or from a worker a packed one or what went wrong.
Loaded = LoadedBatch | Tensor | AtomcsiError


class Batches(Sampler[Share]):
    """The steps of a training, each with its structures: a function of sizes, settings and seed alone.

    Every structure comes once an epoch. So that a resumed training sees what an uninterrupted one would have seen,
    an epoch's order depends on the seed and its number only, and the steps can start anywhere.

    Args:
        natoms: Number of atoms of each structure, shape (structures,).
        settings: Sizes of batches.
        nedges: Number of edges of each, shape (structures,); needed with ``max_edges``.
        epochs: How often each structure comes.
        seed: Seed of the order; None to keep that of the structures.
        start: Steps that an earlier run has done.
        rank: Which process this is.
        world: How many processes share each step.
        parts: In how many shares each process takes what it has of a step.
    """

    def __init__(
        self,
        natoms: np.ndarray,
        settings: TrainSettings,
        *,
        nedges: np.ndarray | None = None,
        epochs: int = 1,
        seed: int | None = None,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
    ) -> None:
        self._natoms, self._settings, self._epochs = np.asarray(natoms, np.int64), settings, epochs
        # Epochs are shuffled by seed + epoch: seeds 0, 1, 2 would share all but a few of their orders.
        self._seed = None if seed is None else int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._start, self._rank, self._world, self._parts = start, rank, world, parts
        #: What steps have a budget of, by structure, with the budget.
        self._budgets = [
            (np.asarray(sizes, np.int64), budget)
            for sizes, budget in ((natoms, settings.max_atoms), (nedges, settings.max_edges))
            if budget is not None
        ]

    @classmethod
    def of(cls, structures: Drawn, settings: TrainSettings, **options: Any) -> Batches:
        """Returns the steps of a training on structures; options as for the class.

        Raises:
            InputError: There is a budget of edges, but a dataset has no graph of its own.
        """
        nedges = None if settings.max_edges is None else structures.nedges
        return cls(structures.natoms, settings, nedges=nedges, **options)

    def __len__(self) -> int:
        """Number of shares in all, with those that an earlier run has done."""
        return int(self.ends[-1]) * self._parts

    @cached_property
    def ends(self) -> np.ndarray:
        """Number of steps until the end of each epoch, shape (epochs,)."""
        if not self._budgets:
            return np.arange(1, self._epochs + 1) * -(-len(self._natoms) // self._settings.batch_size)
        return np.cumsum([len(self.epoch(number)) for number in range(self._epochs)])

    def __iter__(self) -> Iterator[Share]:
        """Yields this process's shares of each step from ``start`` on."""
        first = int(np.searchsorted(self.ends, self._start, side="right"))
        for number in range(first, self._epochs):
            skip = self._start - (int(self.ends[number - 1]) if number else 0) if number == first else 0
            for members in self.epoch(number)[skip:]:
                for part in range(self._parts):
                    mine = members[self._rank + part * self._world :: self._world * self._parts]
                    last = part == self._parts - 1
                    yield Share(mine if len(mine) else members[:1], len(mine), len(members), last, number)

    def epoch(self, number: int) -> list[np.ndarray]:
        """Returns the positions of the structures of each step of an epoch, counted from 0."""
        generator = None if self._seed is None else torch.Generator().manual_seed(self._seed + number)
        order = np.arange(len(self._natoms))
        if generator is not None:
            order = torch.randperm(len(order), generator=generator).numpy()
        if self._settings.bucket == 1 or generator is None:
            return np.split(order, self._cuts(order))
        pools = np.arange(len(order)) // (self._settings.bucket * self._settings.batch_size)
        order = order[np.lexsort((self._natoms[order], pools))]
        batches = np.split(order, self._cuts(order))
        # Small and large ones in turn: a pool would start with its smallest.
        return [batches[position] for position in torch.randperm(len(batches), generator=generator)]

    def _cuts(self, order: np.ndarray) -> list[int]:
        """Where batches start, but for the first."""
        size = self._settings.batch_size
        if not self._budgets:
            return list(range(size, len(order), size))
        sums = [(np.concatenate([[0], np.cumsum(sizes[order])]), budget) for sizes, budget in self._budgets]
        cuts, start = [], 0
        while True:
            fitting = min(int(np.searchsorted(ends, ends[start] + budget, side="right")) - 1 for ends, budget in sums)
            start = min(max(fitting, start + 1), start + size)
            if start >= len(order):
                return cuts
            cuts.append(start)


def loader(structures: Drawn, batches: Sampler[Share], *, collate: Collate, workers: int = 0) -> DataLoader[Loaded]:
    """Returns what yields the structures of each step as a batch.

    Args:
        structures: The structures.
        batches: Which of them each step takes.
        collate: What turns structures into batches; it runs where they are read.
        workers: Processes that read ahead; with 0 batches are read when they are asked for. What they hand over is
            for :func:`unpacked`.
    """
    return DataLoader(
        _Reading(structures, collate),
        batch_sampler=batches,
        collate_fn=_as_it_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=_PREFETCH if workers else None,
        worker_init_fn=_leave_signals_to_parent,
        # Its own: PyTorch would draw a seed for workers from the global generator, whose state a training keeps.
        generator=torch.Generator(),
    )


def unpacked(batch: Loaded) -> LoadedBatch:
    """Returns the batch that a loader yielded, or raises the error that a worker met in its place."""
    if isinstance(batch, AtomcsiError):
        raise batch
    # Ours, from a process of ours.
    return pickle.loads(memoryview(batch.numpy())) if isinstance(batch, Tensor) else batch


class _Reading(Dataset[LoadedBatch]):
    """Whole batches, read and put together by whichever process asks for them."""

    def __init__(self, structures: Drawn, collate: Collate) -> None:
        self._structures, self._collate = structures, collate

    def __getitems__(self, share: Share) -> Loaded:
        if get_worker_info() is None:
            return self._batch(share)
        try:
            return _packed(self._batch(share))
        except AtomcsiError as error:
            # PyTorch would bury it in a traceback.
            return error

    def _batch(self, share: Share) -> LoadedBatch:
        structures = self._structures.of_epoch(share.positions, share.epoch)
        return LoadedBatch(atoms=self._collate(structures), sources=structures.sources, share=share)


def _packed(batch: LoadedBatch) -> Tensor:
    """Returns a batch as one tensor of bytes.

    A graph has dozens of tensors. PyTorch opens a file for each that goes from one process to another, which takes the
    receiver several milliseconds a batch.
    """
    buffer = io.BytesIO()
    _Packer(buffer, protocol=5).dump(batch)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)


class _Packer(pickle.Pickler):
    """Pickles tensors by content."""

    def reducer_override(self, thing: Any) -> Any:
        return (torch.from_numpy, (thing.numpy(),)) if isinstance(thing, Tensor) else NotImplemented


def _as_it_is(batch: Loaded) -> Loaded:
    return batch


def _leave_signals_to_parent(_: int) -> None:
    """Lets a worker survive signals that go to all processes of a job: the parent has a step to finish."""
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    # A second one is the parent's own: it ends workers that are left when it ends itself.
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
