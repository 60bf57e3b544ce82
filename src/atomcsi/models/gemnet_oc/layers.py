"""The layers of GemNet-OC."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atomcsi.errors import AtomcsiError
from atomcsi.models.gemnet_oc.fused import activated, linear, residual

#: Scale factors are about 0.1 to 20. What rounding leaves of sums that should be 0, such as those over quadruplets
#: where there are none, would be given factors from 1e7.
_LARGEST_FACTOR = 1e5


def initialised(weight: Tensor) -> Tensor:
    """Fills a weight with a random orthogonal matrix, scaled to zero mean and variance 1 / inputs in each row.

    GemNet's initialisation (arXiv 2106.08903, appendix). The inputs of a three-dimensional weight are its first two
    dimensions.
    """
    nn.init.orthogonal_(weight)
    axes, inputs = ((0, 1), weight[..., 0].numel()) if weight.dim() == 3 else ((1,), weight.shape[1])
    with torch.no_grad():
        variance, mean = torch.var_mean(weight, dim=axes, keepdim=True)
        return weight.sub_(mean).div_((variance + 1e-6).sqrt_()).mul_(inputs**-0.5)


class Dense(nn.Module):
    """A linear layer without bias, with or without GemNet's activation.

    Args:
        inputs: Features that enter.
        outputs: Features that leave.
        activation: Whether SiLU / 0.6 follows.
    """

    def __init__(self, inputs: int, outputs: int, *, activation: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.activation = activation
        initialised(self.linear.weight)

    @property
    def weight(self) -> Tensor:
        """Shape (outputs, inputs)."""
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        """Maps shape (rows, inputs) to (rows, outputs)."""
        x = linear(x, self.weight)
        return activated(x) if self.activation else x


class Residual(nn.Module):
    """Two dense layers with activations, added to their input; see :func:`~atomcsi.models.gemnet_oc.fused.residual`."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.dense_mlp = nn.Sequential(*(Dense(features, features, activation=True) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        """Maps shape (rows, features) to the same."""
        first, second = (dense.weight for dense in self.dense_mlp)
        return residual(x, first, second)


def mlp(inputs: int, features: int, residuals: int) -> nn.Sequential:
    """Residual layers, after a dense layer where the number of features changes."""
    first = [] if inputs == features else [Dense(inputs, features, activation=True)]
    return nn.Sequential(*first, *(Residual(features) for _ in range(residuals)))


class EdgeEmbedding(nn.Module):
    """A dense layer of both atoms of an edge and of the edge, with activation.

    Args:
        atom: Features of atoms.
        edge: Features of edges.
        outputs: Features that leave.
    """

    def __init__(self, atom: int, edge: int, outputs: int) -> None:
        super().__init__()
        self.atom, self.edge = atom, edge
        self.dense = Dense(2 * atom + edge, outputs, activation=True)

    def forward(self, atoms: Tensor, edges: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Returns shape (edges, outputs)."""
        of_source, of_target, of_edge = self.dense.weight.split([self.atom, self.atom, self.edge], dim=1)
        # Atoms are multiplied before they are copied to their edges, of which there are many more.
        embedded = linear(edges, of_edge)
        for end, weight in ((source, of_source), (target, of_target)):
            embedded = embedded.add_(F.embedding(end, linear(atoms, weight)))
        return activated(embedded)


class Scale(nn.Module):
    """A factor that keeps the variance of activations, fitted once to data and stored with the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale_factor", torch.tensor(1.0))
        self.fitting = False

    @torch.no_grad()
    def fit(self, x: Tensor, reference: Tensor) -> None:
        """Sets the factor that gives ``x`` the variance of ``reference``; both have shape (rows, channels).

        Raises:
            AtomcsiError: One of them does not vary.
        """
        factor = (_variance(reference) / _variance(x)).sqrt()
        if not 0 < factor < _LARGEST_FACTOR:
            raise AtomcsiError(
                "the scale factors of GemNet-OC cannot be fitted: some of its activations do not vary in the "
                "given structures; fit on more of them, or on larger ones"
            )
        self.scale_factor.copy_(factor)


def _variance(x: Tensor) -> Tensor:
    """Variance over rows, averaged over channels; 0 of a single row or none."""
    return x.float().var(dim=0).mean() if len(x) > 1 else x.new_zeros(())
