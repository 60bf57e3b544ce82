"""What the laws of physics ask of every backbone whose batches have edges."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell, molecule
from scipy.spatial.transform import Rotation

from atomcsi.models.dimenet_plus_plus import triplets
from atomcsi.models.equiformer_v2 import EquiformerV2, EquiformerV2Blocks, SmoothRotation, edge_frames
from atomcsi.models.fairchem import FairchemBatch
from atomcsi.models.potential import Potential, build_backbone
from atomcsi.structure import Structure

# isort: split
from fairchem.core.models.equiformer_v2.so3 import SO3_Rotation
from fairchem.core.models.painn.painn import PaiNNBackbone
from fairchem.core.models.schnet import SchNetWrap

#: Small models, taken in float64: what remains is rounding.
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
    "equiformer-v2": {
        "num_layers": 2,
        "sphere_channels": 16,
        "attn_hidden_channels": 8,
        "num_heads": 2,
        "attn_alpha_channels": 8,
        "attn_value_channels": 8,
        "ffn_hidden_channels": 16,
        "lmax": 2,
        "edge_channels": 16,
        "cutoff": 4.0,
        "max_neighbors": 100,
    },
    "gemnet-oc": {
        "num_blocks": 2,
        "emb_size_atom": 16,
        "emb_size_edge": 24,
        "emb_size_trip_in": 8,
        "emb_size_trip_out": 8,
        "emb_size_quad_in": 8,
        "emb_size_quad_out": 8,
        "emb_size_aint_in": 8,
        "emb_size_aint_out": 8,
        "emb_size_sbf": 8,
        "num_radial": 12,
        "num_spherical": 5,
        "num_global_out_layers": 1,
        "cutoff": 4.0,
        "max_neighbors": 12,
        "max_neighbors_qint": 5,
        "max_neighbors_aeaint": 8,
        "neighbor_rule": "order-free",
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
#: Those whose edges fade out at the cutoff, and of which mirror images are alike.
SMOOTH = sorted(set(SETTINGS) - {"equiformer-v2"})
#: Relative to the largest entry. Rounding: 2e-14 was seen. EquiformerV2's activations on a grid of angles, besides,
#: know its axes: 1e-5 was seen. An edge lost, or a vector not turned, shows at 1e-2 and above.
ROUNDING, GRID = 1e-11, 1e-4


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


@pytest.fixture(scope="module", params=sorted(SETTINGS))
def potential(request):
    torch.manual_seed(0)
    model = Potential(build_backbone({"implementation": request.param, "settings": SETTINGS[request.param]}))
    return model.eval().double()


smooth = pytest.mark.parametrize("potential", SMOOTH, indirect=True)


@pytest.fixture
def members():
    """A molecule, a layer and a crystal, to go into one batch."""
    return [rattled(molecule("CH3CH2OH")), make_layer(), rattled(bulk("NaCl", "rocksalt", a=5.6))]


def batch_of(potential, members, dtype=torch.float64):
    return replace(potential.backbone.collate(), dtype=dtype)([structure(atoms) for atoms in members])


def predict(potential, members):
    """Energies, and forces, shape (2, atoms, 3): direct ones, and minus the gradients of the energies."""
    batch = batch_of(potential, members)
    batch.positions.requires_grad_()
    found = potential(batch)
    (gradient,) = torch.autograd.grad(found.energy.sum(), batch.positions)
    return found.energy.detach().numpy(), torch.stack([found.forces.detach(), -gradient]).numpy()


def assert_close(found, expected, tolerance=ROUNDING):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


def turned(members, turn):
    for atoms in members:
        atoms.set_cell(atoms.cell[:] @ turn.T)
        atoms.positions = atoms.positions @ turn.T
    return members


def test_rotation(potential, members):
    turn = Rotation.random(rng=np.random.default_rng(0)).as_matrix()
    energy, forces = predict(potential, members)
    tolerance = GRID if isinstance(potential.backbone, EquiformerV2) else ROUNDING
    assert_close(predict(potential, turned(members, turn)), (energy, forces @ turn.T), tolerance)


@smooth
def test_reflection(potential, members):
    mirror = np.diag([1.0, -1.0, 1.0])
    energy, forces = predict(potential, members)
    assert_close(predict(potential, turned(members, mirror)), (energy, forces @ mirror.T))


@pytest.mark.parametrize("potential", ["equiformer-v2"], indirect=True)
def test_mirror_images_differ_for_equiformer_v2(potential, members):
    """Its convolutions about an edge are those of SO(2), not of O(2): what its documentation says is so."""
    mirror = np.diag([1.0, -1.0, 1.0])
    forces = predict(potential, members)[1]
    difference = predict(potential, turned(members, mirror))[1] - forces @ mirror.T
    assert np.abs(difference).max() > 100 * GRID * np.abs(forces).max()


def test_translation_also_by_lattice_vectors(potential, members):
    expected = predict(potential, members)
    for atoms in members:
        atoms.positions += [0.3, -1.2, 2.5]
        atoms.positions[::2] += (atoms.pbc * [1, -2, 1]) @ atoms.cell[:]
    assert_close(predict(potential, members), expected)


def test_permutation(potential, members):
    energy, forces = predict(potential, members)
    orders = [np.random.default_rng(0).permutation(len(atoms)) for atoms in members]
    first = np.cumsum([0, *(len(atoms) for atoms in members[:-1])])
    rows = np.concatenate([start + order for start, order in zip(first, orders, strict=True)])
    permuted = [atoms[order] for atoms, order in zip(members, orders, strict=True)]
    assert_close(predict(potential, permuted), (energy, forces[:, rows]))


def test_supercell(potential):
    """Twice the crystal has twice the energy, and the same forces."""
    crystal = rattled(bulk("NaCl", "rocksalt", a=5.6))
    energy, forces = predict(potential, [crystal])
    twice = make_supercell(crystal, [[1, 1, 0], [0, 1, 0], [0, 0, 2]])
    assert_close(predict(potential, [twice]), (2 * energy, np.tile(forces, (1, 2, 1))))


def test_a_batch_equals_its_structures_singly(potential, members):
    energies, forces = zip(*(predict(potential, [atoms]) for atoms in members), strict=True)
    expected = np.concatenate(energies), np.concatenate(forces, axis=1)
    assert_close(predict(potential, members), expected)


def test_gradients_equal_finite_differences(potential, members):
    """Central differences of the energy along a random direction, edges found anew at each end."""
    gradient = predict(potential, members)[1][1]
    step, direction = 1e-6, np.random.default_rng(1).normal(size=gradient.shape)
    ends = np.cumsum([len(atoms) for atoms in members])[:-1]
    energies = []
    for sign in (1, -1):
        moved = [atoms.copy() for atoms in members]
        for atoms, own in zip(moved, np.split(direction, ends), strict=True):
            atoms.positions += sign * step * own
        energies.append(predict(potential, moved)[0].sum())
    expected = -(energies[0] - energies[1]) / (2 * step)
    assert (gradient * direction).sum() == pytest.approx(expected, rel=1e-6)


@smooth
def test_energy_does_not_jump_at_the_cutoff(potential):
    """Two atoms a little less, and a little more, than the cutoff apart."""
    cutoff = potential.backbone.cutoff
    inside, outside = (
        predict(potential, [Atoms("CO", [[0, 0, 0], [0, 0, cutoff + shift]])]) for shift in (-1e-4, 1e-4)
    )
    assert inside[0] == pytest.approx(outside[0], abs=1e-6)
    np.testing.assert_allclose(inside[1][1], 0, atol=1e-3)


def test_gradients_can_be_trained_on_for_perfect_crystals(potential):
    """Collinear atoms, and equal distances: square roots at zero."""
    model = copy.deepcopy(potential)
    batch = batch_of(model, [bulk("Cu", cubic=True), molecule("CO2")])
    batch.positions.requires_grad_()
    (gradient,) = torch.autograd.grad(model(batch).energy.sum(), batch.positions, create_graph=True)
    gradient.square().sum().backward()
    assert gradient.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@smooth
def test_isolated_atoms_have_energies(potential):
    alone, pair = Atoms("H"), molecule("H2")
    energy, forces = predict(potential, [alone, pair])
    assert_close(predict(potential, [alone])[:1], (energy[:1],))
    assert not forces[:, 0].any()


def test_depths_have_no_gaps(potential):
    """Each parameter belongs to what embeds or to one of the two blocks, and none of these is without."""
    names = [name for name, _ in potential.backbone.named_parameters()]
    blocks = 2
    assert {potential.backbone.depth(name) for name in names} == set(range(blocks + 1))


def test_every_parameter_learns(potential, members):
    model = copy.deepcopy(potential)
    found = model(batch_of(model, members))
    (found.energy.sum() + found.forces.square().sum()).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_half_precision_leaves_geometry_alone(potential, members):
    """Under autocast, features change by the digits of bfloat16; edges by none."""
    model = copy.deepcopy(potential).float()
    batch = batch_of(model, members, torch.float32)
    with torch.no_grad():
        expected = model.backbone(batch)
        with torch.autocast("cpu", torch.bfloat16):
            found = model.backbone(batch)
            edge = found.edge()
    assert torch.equal(found.edge_direction, expected.edge_direction)
    for one, other in ((found.node, expected.node), (edge, expected.edge())):
        assert (one.float() - other).norm() < 0.05 * other.norm()


@pytest.mark.parametrize("potential", ["painn"], indirect=True)
def test_painn_equals_fairchem(potential, members):
    """The same weights in fairchem's own class, on edges that it finds itself."""
    ours = copy.deepcopy(potential.backbone).float()
    theirs = PaiNNBackbone(
        hidden_channels=16, num_layers=2, num_rbf=12, cutoff=4.0, max_neighbors=100, num_elements=118
    )
    names = {
        "embedding": "atom_emb",
        "radial": "radial_basis",
        "messages": "message_layers",
        "updates": "update_layers",
    }
    state = {
        ".".join([names[name.split(".")[0]], *name.split(".")[1:]]): tensor
        for name, tensor in ours.state_dict().items()
        if not name.startswith("edges.")
    }
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith(("out_", "upd_out_scalar_scale")) for name in missing)
    # fairchem wants flags of periodicity for the whole batch: without the molecule, which has none.
    batch = replace(ours.collate(), dtype=torch.float32)([structure(atoms) for atoms in members[1:2]])
    with torch.no_grad():
        expected = theirs(FairchemBatch(batch))["node_embedding"]
        np.testing.assert_allclose(ours(batch).node, expected, rtol=0, atol=1e-5 * expected.abs().max())


@pytest.mark.parametrize("potential", ["schnet"], indirect=True)
def test_schnet_equals_fairchem(potential, members):
    ours = copy.deepcopy(potential.backbone).float()
    theirs = SchNetWrap(
        regress_forces=False, otf_graph=True, hidden_channels=16, num_filters=16, num_gaussians=12, cutoff=4.0
    )
    theirs.embedding, theirs.distance_expansion, theirs.interactions = ours.embedding, ours.radial, ours.interactions
    batch, seen = ours.collate()([structure(atoms) for atoms in members]), []
    theirs.lin1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        theirs(FairchemBatch(batch))
        np.testing.assert_allclose(ours(batch).node, seen[0], rtol=0, atol=1e-5 * seen[0].abs().max())


@pytest.mark.parametrize("potential", ["equiformer-v2"], indirect=True)
def test_equiformer_v2_equals_fairchem(potential, members):
    """The same blocks on edges that fairchem finds itself, as the extractor uses them."""
    ours = copy.deepcopy(potential.backbone).float()
    batch = batch_of(potential, members, torch.float32)
    theirs = EquiformerV2Blocks(
        **{name: value for name, value in SETTINGS["equiformer-v2"].items() if name not in ("lmax", "cutoff")},
        lmax_list=[2],
        max_radius=4.0,
        grid_resolution=18,
        max_num_elements=119,
        norm_type="layer_norm_sh",
        attn_activation="silu",
        ffn_activation="silu",
        use_grid_mlp=True,
        regress_forces=False,
    ).eval()
    theirs.load_state_dict(ours.blocks.state_dict())
    with torch.no_grad():
        expected = theirs(FairchemBatch(batch))["node_embedding"].embedding[:, 0]
        found = ours(batch).node
    np.testing.assert_allclose(found, expected, rtol=0, atol=GRID * expected.abs().max())


def test_rotations_equal_fairchem():
    """Of coefficients to degree 6, along random directions and the axes."""
    vectors = torch.cat([torch.randn(50, 3, generator=torch.manual_seed(0)), torch.eye(3), -torch.eye(3)])
    frames, y = edge_frames(vectors), torch.tensor([[0.0], [1.0], [0.0]])
    np.testing.assert_allclose(frames @ vectors[:, :, None], vectors.norm(dim=1)[:, None, None] * y, atol=1e-6)
    ours, theirs = SmoothRotation(6), SO3_Rotation(6)
    ours.set_wigner(frames)
    theirs.set_wigner(frames)
    np.testing.assert_allclose(ours.wigner, theirs.wigner, atol=1e-5)
    np.testing.assert_allclose(ours.wigner_inv, theirs.wigner_inv, atol=1e-5)


@pytest.mark.parametrize("potential", ["dimenet-plus-plus"], indirect=True)
def test_triplets_equal_loops(potential, members):
    batch = batch_of(potential, members)
    edges = list(zip(batch.source.tolist(), batch.target.tolist(), batch.offset.numpy(), strict=True))
    expected = {
        (a, b)
        for b, (source, end, onward) in enumerate(edges)
        for a, (start, target, offset) in enumerate(edges)
        if target == source and not (start == end and not (offset + onward).any())
    }
    first, second = (part.tolist() for part in triplets(batch))
    assert len(first) == len(expected)
    assert set(zip(first, second, strict=True)) == expected
