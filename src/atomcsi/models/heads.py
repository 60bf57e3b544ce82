"""Heads: from a backbone's features to scalars of structures and forces on atoms, one head per dataset of a mix."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from atomcsi.errors import ConfigError, did_you_mean
from atomcsi.models.base import Backbone, Features
from atomcsi.models.batch import AtomBatch

#: How the numbers of atoms become that of their structure: extensive ones add up, intensive ones are a mean or maximum.
Readout = Literal["sum", "mean", "max"]


class ScalarHead(nn.Module):
    """Energies, or another scalar of a structure, read out of numbers of its atoms.

    Args:
        backbone: Whose features it reads.
        readout: How atoms become structures.
        datasets: Datasets of the mix.
        hidden: Width of its two hidden layers.

    Raises:
        ConfigError: The readout is not known.
    """

    def __init__(self, backbone: Backbone, *, readout: Readout = "sum", datasets: int = 1, hidden: int = 64) -> None:
        super().__init__()
        if readout not in get_args(Readout):
            raise ConfigError(f"unknown readout '{readout}'{did_you_mean(readout, get_args(Readout))}")
        self.readout = readout
        self.of_atoms = _OnePerDataset(backbone.node_dim, hidden, datasets)

    def forward(self, features: Features, batch: AtomBatch) -> Tensor:
        """Returns a number per structure, shape (structures,)."""
        atoms = self.of_atoms(features.node, batch.dataset[batch.index])
        # Summed in the type of the positions: under autocast, atoms are in half precision.
        atoms = atoms.to(batch.positions.dtype)
        structures = batch.positions.new_zeros(len(batch))
        if self.readout == "max":
            return structures.scatter_reduce(0, batch.index, atoms, "amax", include_self=False)
        total = structures.index_add(0, batch.index, atoms)
        return total / batch.natoms if self.readout == "mean" else total


class ForceHead(nn.Module):
    """Forces as sums over edges, each along its edge; not the gradient of an energy.

    Args:
        backbone: Whose features it reads.
        datasets: Datasets of the mix.
        hidden: Width of its two hidden layers.
    """

    def __init__(self, backbone: Backbone, *, datasets: int = 1, hidden: int = 64) -> None:
        super().__init__()
        self.of_edges = _OnePerDataset(backbone.edge_dim, hidden, datasets)

    def forward(self, features: Features, batch: AtomBatch) -> Tensor:
        """Returns forces, shape (atoms, 3)."""
        dataset = batch.dataset[batch.index[features.edge_target]]
        edges = self.of_edges(features.edge(), dataset).to(features.edge_direction.dtype)
        directed = edges[:, None] * features.edge_direction
        return directed.new_zeros(len(batch.numbers), 3).index_add(0, features.edge_target, directed)


class _OnePerDataset(nn.Module):
    """A network per dataset, each with one output; every row takes that of the dataset that it belongs to.

    All of them see all rows: so every weight has a gradient in every batch, which training on several GPUs counts on,
    and no row waits for the device to say how many there are of each dataset.
    """

    def __init__(self, inputs: int, hidden: int, datasets: int) -> None:
        super().__init__()
        self.mlps = nn.ModuleList(_mlp(inputs, hidden) for _ in range(datasets))

    def forward(self, rows: Tensor, dataset: Tensor) -> Tensor:
        """Returns a number per row, shape (rows,), of rows of shape (rows, inputs) with their ``dataset`` (rows,)."""
        answers = torch.cat([mlp(rows) for mlp in self.mlps], dim=1)
        return answers.gather(1, dataset[:, None]).squeeze(1)


def _mlp(inputs: int, hidden: int) -> nn.Sequential:
    """Two hidden layers and one output, small at first so that training starts near the mean of the targets."""
    last = nn.Linear(hidden, 1)
    nn.init.normal_(last.weight, std=0.1 * hidden**-0.5)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)
