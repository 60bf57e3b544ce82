"""What every backbone offers: features of atoms and edges that heads turn into energies and forces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from atomcsi.catalogue import Graph
from atomcsi.errors import ConfigError, InputError
from atomcsi.models.batch import AtomBatch, collate
from atomcsi.structure import Structure
from atomcsi.structure_batch import StructureBatch

#: Turns structures into a batch.
Collate = Callable[[Sequence[Structure] | StructureBatch], AtomBatch]


@dataclass(slots=True, kw_only=True)
class Features:
    """What a backbone says about a batch.

    Attributes:
        node: Invariant features of the atoms, shape (atoms, node_dim).
        edge: Computes invariant features of the directed edges, shape (edges, edge_dim); a third of some models'
            work, and only direct forces ask for it.
        edge_target: Atom that each edge points to, shape (edges,), integers.
        edge_direction: Unit vectors along the edges, from source to target, shape (edges, 3).
    """

    node: Tensor
    edge: Callable[[], Tensor]
    edge_target: Tensor
    edge_direction: Tensor


class Backbone(nn.Module, ABC):
    """A model of atoms without its heads; constructed from the ``settings`` of its YAML file as keywords.

    Attributes:
        node_dim: Features per atom.
        edge_dim: Features per edge.
        cutoff: Largest distance in Angstrom over which atoms see each other; batches need more vacuum than that.
    """

    node_dim: int
    edge_dim: int
    cutoff: float

    @abstractmethod
    def forward(self, batch: AtomBatch) -> Features:
        """Computes the features of a batch that :meth:`collate` made.

        Raises:
            AtomcsiError: The model has no answer for the batch; the message says why.
        """

    def collate(self, graphs: Sequence[Graph | None] = (None,)) -> Collate:
        """Returns what turns structures into batches of this backbone.

        It holds settings, no weights, and can be sent to the workers of a data loader.

        Args:
            graphs: The graph of each dataset that structures come from, by their ``StructureBatch.dataset``; the
                backbone's own where None.
        """
        return partial(collate, vacuum=self.cutoff + 1.0)

    def fit_scales(self, batches: Iterable[AtomBatch]) -> None:
        """Fits what must be known of the data before training starts; nothing by default.

        Args:
            batches: A few batches of training data, on the device of the model.
        """

    def drop_edges(self, probability: float) -> None:
        """Makes training leave out edges of the graph, each with this probability, drawn anew for each batch.

        Raises:
            ConfigError: The backbone cannot.
        """
        if probability:
            raise ConfigError(f"{type(self).__name__} cannot leave out edges (leave out edge_dropout)")

    def depth(self, parameter: str) -> int:
        """Says how deep in the network a parameter is: 0 in what embeds, 1 and so on in the interaction blocks.

        Args:
            parameter: Its name, as in ``named_parameters``.

        Raises:
            ConfigError: The backbone does not say; learning rates cannot be set by depth.
        """
        raise ConfigError(f"{type(self).__name__} does not say how deep its parameters are (leave out depth_factors)")

    def load_published(self, path: Path) -> None:
        """Loads weights from a checkpoint that others published, in their layout; nothing in it is run.

        Args:
            path: The checkpoint.

        Raises:
            InputError: The checkpoint is missing or damaged, is of another model, or none are known for this one.
        """
        problem = f"cannot be loaded: no layout of checkpoints is known for {type(self).__name__}"
        raise InputError(path, problem, mend="name the folder of a model that was pretrained here")
