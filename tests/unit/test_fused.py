"""The fused functions of GemNet-OC: equal to their plain counterparts, gradients included."""

from itertools import accumulate

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from atomcsi.models.gemnet_oc import fused

#: bfloat16 resolves 4e-3; a handful of products follow each other. 8e-3 was seen.
BFLOAT16 = 3e-2


def tensors(*shapes, dtype=torch.float64):
    """One seeded tensor of each shape, of a size that keeps activations near 1."""
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, dtype=torch.float64, generator=draw).to(dtype).mul_(0.7) for shape in shapes]


def residual(dtype):
    return fused.residual, fused.plain_residual, tensors((5, 4), (4, 4), (4, 4), dtype=dtype)


def linear(dtype):
    return fused.linear, F.linear, tensors((5, 4), (3, 4), dtype=dtype)


def modulate(dtype):
    return fused.modulate, fused.plain_modulate, tensors((5, 4), (5, 3), (4, 3), dtype=dtype)


def modulated_sum(dtype):
    """One target has no rows, one has several."""
    inputs = *tensors((5, 4), (5, 3), (4, 3), dtype=dtype), torch.tensor([0, 0, 2, 2, 2]), 4
    return fused.modulated_sum, fused.plain_modulated_sum, inputs


def message(dtype):
    inputs = *tensors((5, 4), (4, 4), (5, 3), (4, 3), (2, 4), dtype=dtype), None
    return fused.message, fused.plain_message, inputs


def message_of_atoms(dtype):
    """From three atoms along five edges; one atom sends nothing."""
    inputs = *tensors((3, 4), (4, 4), (5, 3), (4, 3), (2, 4), dtype=dtype), torch.tensor([0, 2, 2, 0, 2])
    return fused.message, fused.plain_message, inputs


def merge(dtype):
    edges, dense, *updates = tensors((4, 3), (3, 3), (4, 2), (3, 2), (3, 2), (4, 5), (3, 5), (3, 5), dtype=dtype)
    return fused.merge, fused.plain_merge, (edges, dense, torch.tensor([2, 3, 0, 1]), *updates)


CASES = [residual, linear, modulate, modulated_sum, message, message_of_atoms, merge]
every_function = pytest.mark.parametrize("case", CASES)


def with_gradients(inputs):
    return [x.clone().requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs]


def first_gradients(function, inputs):
    """The value, and gradients by all inputs of a weighted sum of it, taken without a graph."""
    inputs = with_gradients(inputs)
    value = function(*inputs)
    weights = torch.linspace(-1, 2, value.numel()).view_as(value).to(value.dtype)
    value.backward(weights)
    return [value.detach(), *(x.grad for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad)]


@every_function
def test_value_and_gradients_equal_the_plain_ones(case):
    function, plain, inputs = case(torch.float64)
    for found, expected in zip(first_gradients(function, inputs), first_gradients(plain, inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@every_function
def test_gradients_equal_finite_differences(case):
    """Those that are taken with a graph, and their gradients."""
    function, _, inputs = case(torch.float64)
    assert torch.autograd.gradcheck(function, with_gradients(inputs))
    assert torch.autograd.gradgradcheck(function, with_gradients(inputs))


@every_function
def test_inputs_may_be_computed_from_each_other(case):
    """As embeddings are from a basis that all blocks share: gradients with a graph are those without."""
    function, plain, inputs = case(torch.float64)
    leaves = [x for x in with_gradients(inputs) if isinstance(x, torch.Tensor) and x.requires_grad]

    def gradients(of, *, graph):
        chained = accumulate(leaves, lambda before, x: x + 0.1 * before.mean())
        arguments = [next(chained) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs]
        return torch.autograd.grad(of(*arguments).square().sum(), leaves, create_graph=graph)

    expected = gradients(plain, graph=False)
    for graph in (False, True):
        torch.testing.assert_close(gradients(function, graph=graph), expected, rtol=1e-12, atol=1e-12)


@every_function
def test_inputs_are_left_alone(case):
    """Results are computed in place where they can be, but never in place of an input."""
    function, _, inputs = case(torch.float64)
    before = [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]
    first_gradients(function, inputs)
    for x, y in zip(inputs, before, strict=True):
        assert x is y or torch.equal(torch.as_tensor(x), torch.as_tensor(y))


@every_function
def test_bfloat16_is_close_to_float32(case):
    function, plain, inputs = case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = first_gradients(function, inputs)
    for one, other in zip(found, first_gradients(plain, inputs), strict=True):
        assert (one.float() - other).abs().max() < BFLOAT16 * other.abs().max()


def test_sums_are_no_worse_than_float32_under_autocast():
    """The sum of many edges is where bfloat16 would lose most: 1 + 1 + ... stops at 256."""
    ones = torch.ones(1000, 1)
    with torch.autocast("cpu", torch.bfloat16):
        total = fused.modulated_sum(ones, ones, torch.ones(1, 1), torch.zeros(1000, dtype=torch.long), 1)
    assert total.dtype == torch.float32
    assert total.item() == 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", [7, 1, 0])
@pytest.mark.parametrize("layout_a", ["contiguous", "transposed", "columns", "expanded"])
@pytest.mark.parametrize("layout_b", ["contiguous", "transposed", "columns"])
def test_times_takes_every_layout(dtype, rows, layout_a, layout_b):
    """An integer-valued product is exact in every type and order of summation."""
    draw = np.random.default_rng(0)

    def matrix(n, layout):
        values = torch.as_tensor(draw.integers(-3, 4, (n, 6))).to(dtype)
        if layout == "transposed":
            return values.T.contiguous().T
        if layout == "columns":
            return torch.cat([values, values], dim=1)[:, 3:9]
        return values[:1].expand(n, 6) if layout == "expanded" else values

    a, b = matrix(rows, layout_a), matrix(5, layout_b)
    expected = np.asarray(a.double()) @ np.asarray(b.double()).T
    assert np.array_equal(fused.times(a, b).double().numpy(), expected)


def test_times_sums_over_nothing():
    assert torch.equal(fused.times(torch.ones(3, 0), torch.ones(2, 0)), torch.zeros(3, 2))


def test_activation_keeps_about_the_variance_of_normal_input():
    """GemNet's reason for the 0.6 (arXiv 2106.08903): E[SiLU(x)^2] of normal x is 0.3557, by numerical quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    values = fused.activated(torch.as_tensor(points)).numpy()
    assert (weights / weights.sum()) @ values**2 == pytest.approx(0.3557 / 0.6**2, rel=1e-3)
