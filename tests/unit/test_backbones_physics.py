"""What the laws of physics ask of every backbone whose batches have edges."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell, molecule
from scipy.spatial.transform import Rotation

from atomcsi.models.potential import Potential, build_backbone
from atomcsi.structure import Structure

#: Small models, of float64 where they allow it: what remains is rounding.
SETTINGS = {
    "dimenet-plus-plus": {
        "hidden_channels": 16,
        "out_emb_channels": 16,
        "num_blocks": 2,
        "int_emb_size": 8,
        "num_spherical": 4,
        "num_radial": 4,
        "cutoff": 4.0,
    },
    "painn": {"hidden_channels": 16, "num_layers": 2, "num_rbf": 12, "edge_channels": 16, "cutoff": 4.0},
    "schnet": {
        "hidden_channels": 16,
        "num_filters": 16,
        "num_interactions": 2,
        "num_gaussians": 12,
        "edge_channels": 16,
        "cutoff": 4.0,
    },
}
#: Relative to the largest entry; 2e-14 was seen. An edge lost, or a vector not turned, shows at 1e-2 and above.
FLOAT64 = 1e-11


def structure(atoms):
    return Structure(
        numbers=atoms.numbers,
        positions=atoms.positions,
        source="x",
        label="x",
        cell=atoms.cell[:] if atoms.pbc.any() else None,
        pbc=tuple(atoms.pbc),
    )


def rattled(atoms, seed=0):
    """Without symmetry, so that nothing is right by chance."""
    atoms.positions += np.random.default_rng(seed).normal(scale=0.05, size=atoms.positions.shape)
    return atoms


def make_layer():
    """A tilted cell smaller than the cutoff, periodic along two directions: atoms see images of themselves."""
    cell = [[2.9, 0.3, 0.0], [-0.4, 3.1, 0.2], [0.0, 0.0, 0.0]]
    return Atoms("CuOH", positions=[[0, 0, 0], [1.4, 1.2, 1.5], [0.4, 1.0, 2.6]], cell=cell, pbc=[1, 1, 0])


@pytest.fixture(params=sorted(SETTINGS))
def potential(request):
    torch.manual_seed(0)
    return Potential(build_backbone({"implementation": request.param, "settings": SETTINGS[request.param]})).double()


@pytest.fixture
def members():
    """A molecule, a layer and a crystal, to go into one batch."""
    return [rattled(molecule("CH3CH2OH")), make_layer(), rattled(bulk("NaCl", "rocksalt", a=5.6))]


def batch_of(potential, members):
    return replace(potential.backbone.collate(), dtype=torch.float64)([structure(atoms) for atoms in members])


def predict(potential, members):
    """Energies, direct forces, and minus the gradients of the energies."""
    batch = batch_of(potential, members)
    batch.positions.requires_grad_()
    found = potential(batch)
    (gradient,) = torch.autograd.grad(found.energy.sum(), batch.positions)
    return found.energy.detach().numpy(), found.forces.detach().numpy(), -gradient.numpy()


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=FLOAT64 * np.abs(other).max())


@pytest.mark.parametrize("mirror", [1, -1])
def test_rotation_and_reflection(potential, members, mirror):
    turn = mirror * Rotation.random(rng=np.random.default_rng(0)).as_matrix()
    energy, direct, gradient = predict(potential, members)
    for atoms in members:
        atoms.set_cell(atoms.cell[:] @ turn.T)
        atoms.positions = atoms.positions @ turn.T
    assert_close(predict(potential, members), (energy, direct @ turn.T, gradient @ turn.T))


def test_translation_also_by_lattice_vectors(potential, members):
    expected = predict(potential, members)
    for atoms in members:
        atoms.positions += [0.3, -1.2, 2.5]
        atoms.positions[::2] += atoms.pbc * 1 @ (np.array([1, -2, 1])[:, None] * atoms.cell[:])
    assert_close(predict(potential, members), expected)


def test_permutation(potential, members):
    energy, direct, gradient = predict(potential, members)
    ends = np.cumsum([len(atoms) for atoms in members])[:-1]
    orders = [np.random.default_rng(0).permutation(len(atoms)) for atoms in members]
    rows = np.concatenate([own[order] for own, order in zip(np.split(np.arange(len(direct)), ends), orders)])
    permuted = [atoms[order] for atoms, order in zip(members, orders)]
    assert_close(predict(potential, permuted), (energy, direct[rows], gradient[rows]))


def test_supercell(potential):
    """Twice the crystal has twice the energy, and the same forces."""
    crystal = rattled(bulk("NaCl", "rocksalt", a=5.6))
    energy, direct, gradient = predict(potential, [crystal])
    twice = make_supercell(crystal, [[1, 1, 0], [0, 1, 0], [0, 0, 2]])
    assert_close(predict(potential, [twice]), (2 * energy, np.tile(direct, (2, 1)), np.tile(gradient, (2, 1))))


def test_a_batch_equals_its_structures_singly(potential, members):
    singly = zip(*(predict(potential, [atoms]) for atoms in members), strict=True)
    assert_close(predict(potential, members), map(np.concatenate, singly))


def test_gradients_equal_finite_differences(potential, members):
    """Central differences of the energy along a random direction, edges found anew at each end."""
    gradient = predict(potential, members)[2]
    step, directions = 1e-4, np.random.default_rng(1).normal(size=gradient.shape)
    energies = []
    for sign in (1, -1):
        moved = [atoms.copy() for atoms in members]
        for atoms, own in zip(moved, np.split(directions, np.cumsum([len(atoms) for atoms in members])[:-1])):
            atoms.positions += sign * step * own
        energies.append(predict(potential, moved)[0].sum())
    expected = -(energies[0] - energies[1]) / (2 * step)
    assert (gradient * directions).sum() == pytest.approx(expected, rel=1e-6)


def test_energy_does_not_jump_at_the_cutoff(potential):
    """Two atoms less and more than the cutoff apart."""
    cutoff = potential.backbone.cutoff
    inside, outside = (
        predict(potential, [Atoms("CO", [[0, 0, 0], [0, 0, cutoff + shift]])]) for shift in (-1e-4, 1e-4)
    )
    assert inside[0] == pytest.approx(outside[0], abs=1e-6)
    np.testing.assert_allclose(inside[2], 0, atol=1e-3)


def test_gradients_of_perfect_crystals_can_be_trained_on(potential):
    """Collinear atoms, and equal distances: square roots at zero."""
    batch = batch_of(potential, [bulk("Cu", cubic=True), molecule("CO2")])
    batch.positions.requires_grad_()
    (gradient,) = torch.autograd.grad(potential(batch).energy.sum(), batch.positions, create_graph=True)
    gradient.square().sum().backward()
    assert gradient.isfinite().all()
    assert all(p.grad.isfinite().all() for p in potential.parameters() if p.grad is not None)


def test_isolated_atoms_have_energies(potential):
    alone, pair = Atoms("H"), molecule("H2")
    energy, direct, gradient = predict(potential, [alone, pair])
    assert_close(predict(potential, [alone])[:1], (energy[:1],))
    assert np.array_equal(direct[0], np.zeros(3)) and np.array_equal(gradient[0], np.zeros(3))


def test_every_parameter_learns(potential, members):
    found = potential(batch_of(potential, members))
    (found.energy.sum() + found.forces.square().sum()).backward()
    assert not [name for name, parameter in potential.named_parameters() if parameter.grad is None]
