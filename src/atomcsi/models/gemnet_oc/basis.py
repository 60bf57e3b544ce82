"""Distances and angles of GemNet-OC, as one matrix per atom.

GemNet-OC's interactions (Gasteiger et al., arXiv 2204.02782, section 4) are sums over the edges b -> a around an atom,

    out[ca, i] = sum_b C[ca, i, b] x[ba]        with   C[ca, i, b] = sum_l R[ca, i, l] P_l(cos cab),

where R is a learned function of the distance d_ca that all blocks share, and P_l are Legendre polynomials. So C is
computed once per batch and not once per block, and nothing is stored per triplet but C itself: edges around one atom
are rows of one table, and the cosines of all their angles one product of unit vectors with themselves.

Quadruplets c -> a <- b <- d also have the dihedral angle t between the planes cab and abd. As a polynomial of cos(t)
is a sum of cos(k t), and t is the difference of two azimuths around the axis ab, azimuths of c and of d separate:

    P_m(cos(t_c - t_d)) = sum_k a_mk [cos(k t_c) cos(k t_d) + sin(k t_c) sin(k t_d)].

The sum over d is hence done once per edge b -> a, for 13 functions of t_d where m < 7, before any c is looked at:
the number of quadruplets plays no role. What must not be in the sum, d = c, is subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.polynomial import chebyshev, legendre
from torch import Tensor, nn

from atomcsi.models.gemnet_oc.graph import Edges, GemNetBatch
from atomcsi.models.gemnet_oc.tables import to_tables

#: Sine of the angle at a below which c, a and b count as collinear and their plane as undefined.
_COLLINEAR = 1e-5


class RadialBasis(nn.Module):
    """Gaussians of distances times an envelope that takes them to zero smoothly at the cutoff.

    Args:
        number: How many Gaussians.
        reach: Distance in Angstrom that they are spread over.
    """

    def __init__(self, number: int, reach: float) -> None:
        super().__init__()
        self.reach = reach
        self.register_buffer("offset", torch.linspace(0.0, 1.0, number), persistent=False)
        self.coefficient = -0.5 * (number - 1) ** 2

    def forward(self, distance: Tensor, cutoff: Tensor | float) -> Tensor:
        """Expands distances.

        Args:
            distance: Angstrom, shape (edges,).
            cutoff: Where the envelope ends, in Angstrom, shape (edges,) or one for all.

        Returns:
            Shape (edges, number).
        """
        gaussians = (distance[:, None] / self.reach - self.offset).square_().mul_(self.coefficient).exp_()
        return gaussians * envelope(distance / cutoff)[:, None]


def envelope(x: Tensor) -> Tensor:
    """DimeNet's polynomial envelope (arXiv 2003.03123, equation 8) with p = 5: 1 at 0, 0 from 1 on, twice smooth."""
    value = 1 + x**5 * (-21 + x * (35 - 15 * x))
    return torch.where(x < 1, value, torch.zeros_like(x))


def polynomials(cosine: Tensor, number: int) -> Tensor:
    """Legendre polynomials of degrees 0 to ``number`` - 1, normalised as Y_l0: one more dimension, the last but one."""
    found = [torch.ones_like(cosine), cosine]
    for degree in range(2, number):
        found.append(((2 * degree - 1) * cosine * found[-1] - (degree - 1) * found[-2]) / degree)
    return torch.stack([p * _norm(degree) for degree, p in enumerate(found[:number])], dim=-2)


def _norm(degree: int) -> float:
    return ((2 * degree + 1) / (4 * np.pi)) ** 0.5


@cache
def dihedral_coefficients(number: int) -> np.ndarray:
    """What takes products of azimuth functions to normalised Legendre polynomials of the dihedral's cosine.

    Returns:
        Shape (number, 2 * number): for degree m the factors a_mk of the 2 * number - 1 functions that
        :func:`azimuth_functions` gives, and P_m(0), the value where a plane is undefined.
    """
    table = np.zeros((number, 2 * number))
    for degree in range(number):
        series = legendre.leg2poly([0.0] * degree + [_norm(degree)])
        for k, factor in enumerate(chebyshev.poly2cheb(series)):
            table[degree, [2 * k - 1, 2 * k] if k else [0]] = factor
        table[degree, -1] = series[0]
    return table


def azimuth_functions(x: Tensor, y: Tensor, number: int) -> Tensor:
    """Returns 1, cos(t), sin(t), cos(2t), ... of the azimuth t of vectors, ``number`` - 1 frequencies, and a flag.

    Args:
        x: First component of the vectors, any shape; their length is a sine.
        y: Second component.
        number: Of Legendre polynomials of the dihedral's cosine.

    Returns:
        One more dimension, the last but one, of size 2 * number: the functions, then 0; or, where the vectors are too
        short for an azimuth, zeros, then 1.
    """
    square = x.square() + y.square()
    defined = square > _COLLINEAR**2
    # Not the square root of 0, whose derivative is infinite.
    length = torch.where(defined, square, torch.ones_like(square)).sqrt()
    cosine, sine = x / length, y / length
    found = [torch.ones_like(x), cosine, sine]
    for _ in range(2, number):
        c, s = found[-2:]
        found += [c * cosine - s * sine, s * cosine + c * sine]
    functions = torch.stack(found[: 2 * number - 1], dim=-2)
    functions = torch.where(defined[..., None, :], functions, torch.zeros_like(functions))
    return torch.cat([functions, (~defined)[..., None, :].to(functions.dtype)], dim=-2)


def perpendicular(direction: Tensor) -> Tensor:
    """Returns two unit vectors at right angles to each unit vector and to each other, shape (edges, 3, 2).

    Which two is arbitrary: only differences of azimuths around the direction matter.
    """
    smallest = direction.detach().abs().argmin(dim=1, keepdim=True)
    axis = torch.zeros_like(direction).scatter_(1, smallest, 1.0)
    first = torch.linalg.cross(direction, axis)
    first = first / torch.linalg.vector_norm(first, dim=1, keepdim=True)
    return torch.stack([first, torch.linalg.cross(direction, first)], dim=2)


@dataclass(slots=True)
class Vectors:
    """Edges in space.

    Attributes:
        distance: Angstrom, shape (edges,).
        direction: Unit vectors from source to target, shape (edges, 3).
    """

    distance: Tensor
    direction: Tensor

    @classmethod
    def of(cls, edges: Edges, batch: GemNetBatch) -> Vectors:
        """Computes them from the positions; gradients flow."""
        positions = batch.positions
        difference = positions[edges.target] - positions[edges.source] - edges.shift.to(positions.dtype)
        distance = torch.linalg.vector_norm(difference, dim=1)
        return cls(distance, difference / distance[:, None])


def cosines(out: Tensor, into: Tensor) -> Tensor:
    """Cosines of angles around atoms, of unit vectors (atoms, n, 3) and (atoms, m, 3), shape (atoms, n, m)."""
    return (out @ into.transpose(1, 2)).clamp(-1, 1)


def different(out: Edges, into: Edges) -> list[Tensor]:
    """Which pairs of edges around an atom come from different atoms or images, by group, shape (atoms, n, m).

    False where a row of either table has no edge.
    """
    tables = (to_tables(edges.image + 1, edges) for edges in (out, into))
    pairs = ((n[:, :, None], m[:, None, :]) for n, m in zip(*tables, strict=True))
    return [(n != m) & (n > 0) & (m > 0) for n, m in pairs]
