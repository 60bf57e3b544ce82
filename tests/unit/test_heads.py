"""Heads on a backbone whose features are known, and forces as gradients."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from atomcsi.errors import ConfigError
from atomcsi.models.base import Backbone, Features
from atomcsi.models.batch import collate
from atomcsi.models.heads import ForceHead, ScalarHead
from atomcsi.models.potential import Potential
from atomcsi.structure import Structure
from atomcsi.structure_batch import StructureBatch
from atomcsi.training.normalisation import Normaliser


class Pairs(Backbone):
    """Features of atoms: sums over their neighbours in the structure of functions of the distance."""

    node_dim, edge_dim, cutoff = 4, 1, 5.0

    def forward(self, batch):
        target, source = torch.nonzero(batch.index[:, None] == batch.index, as_tuple=True)
        target, source = target[target != source], source[target != source]
        vector = batch.positions[target] - batch.positions[source]
        length = vector.norm(dim=1, keepdim=True)
        powers = torch.exp(-length * torch.arange(1, 5, dtype=length.dtype))
        node = powers.new_zeros(len(batch.numbers), 4).index_add(0, target, powers)
        return Features(node=node, edge=lambda: length, edge_target=target, edge_direction=vector / length)


def structure(atoms: Atoms, seed=0) -> Structure:
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(seed).normal(scale=0.05, size=atoms.positions.shape)
    cell = atoms.cell.array if atoms.pbc.any() else None
    return Structure(
        numbers=atoms.numbers, positions=atoms.positions, source="x", label="x", cell=cell, pbc=tuple(atoms.pbc)
    )


def batch_of(structures, dataset=None, dtype=torch.float32):
    batch = StructureBatch.of(structures)
    batch.dataset = dataset
    return collate(batch, vacuum=6.0, dtype=dtype)


@pytest.fixture
def molecules():
    return [structure(molecule(name)) for name in ("CH3OH", "H2O", "C2H6")]


def features_of(batch, node):
    edges = torch.zeros(0, dtype=torch.long)
    return Features(node=node, edge=lambda: torch.zeros(0, 1), edge_target=edges, edge_direction=torch.zeros(0, 3))


@pytest.mark.parametrize("readout", ["sum", "mean", "max"])
def test_readouts(molecules, readout):
    batch = batch_of(molecules)
    head = ScalarHead(Pairs(), readout=readout)
    node = torch.randn(len(batch.numbers), 4, generator=torch.Generator().manual_seed(0))
    atoms = head.of_atoms.mlps[0](node).squeeze(1).split(batch.natoms.tolist())
    expected = torch.stack([getattr(numbers, readout)() for numbers in atoms])
    torch.testing.assert_close(head(features_of(batch, node), batch), expected)


def test_unknown_readout():
    with pytest.raises(ConfigError, match="unknown readout 'median'"):
        ScalarHead(Pairs(), readout="median")


def test_every_dataset_has_its_heads(molecules):
    """A batch of a mix gives what batches of one dataset give, each with that dataset's weights alone."""
    dataset = np.array([1, 0, 2])
    torch.manual_seed(0)
    mix = Potential(Pairs(), datasets=3)
    found = mix(batch_of(molecules, dataset))
    forces = found.forces.split([len(each) for each in molecules])
    for position, which in enumerate(dataset):
        single = Potential(Pairs())
        for name, part in (("energy", "of_atoms"), ("forces", "of_edges")):
            weights = getattr(mix.heads[name], part).mlps[which].state_dict()
            getattr(single.heads[name], part).mlps[0].load_state_dict(weights)
        alone = single(batch_of(molecules[position : position + 1]))
        torch.testing.assert_close(found.energy[position], alone.energy[0])
        torch.testing.assert_close(forces[position], alone.forces)


def test_every_head_has_gradients_in_every_batch(molecules):
    """DistributedDataParallel waits for those of all parameters."""
    mix = Potential(Pairs(), datasets=2)
    found = mix(batch_of(molecules, np.zeros(3, int)))
    (found.energy.sum() + found.forces.sum()).backward()
    assert all(parameter.grad is not None for parameter in mix.parameters())


def finite_differences(potential, structures, step=1e-4):
    """Minus the slope of the energy along every coordinate, shape (atoms, 3)."""
    forces = []
    for each in structures:
        for atom, axis in np.ndindex(len(each), 3):
            energies = []
            for shift in (step, -step):
                positions = each.positions.copy()
                positions[atom, axis] += shift
                moved = Structure(
                    numbers=each.numbers, positions=positions, source="x", label="x", cell=each.cell, pbc=each.pbc
                )
                energies.append(potential(batch_of([moved], dtype=torch.float64)).energy.item())
            forces.append(-(energies[0] - energies[1]) / (2 * step))
    return torch.tensor(forces, dtype=torch.float64).reshape(-1, 3)


def test_gradient_forces_are_finite_differences():
    structures = [structure(molecule("H2O")), structure(bulk("Cu", cubic=True))]
    torch.manual_seed(1)
    potential = Potential(Pairs(), forces="gradient").double().eval()
    batch = batch_of(structures, dtype=torch.float64)
    with torch.no_grad():
        found = potential(batch)
        expected = finite_differences(potential, structures)
    largest = found.forces.abs().max()
    assert largest > 1e-5
    assert (found.forces - expected).abs().max() < 1e-5 * largest
    assert not found.energy.requires_grad


def test_gradient_forces_can_be_trained_on(molecules):
    """The loss of forces has a gradient by every weight that energies depend on, through the derivative."""
    potential = Potential(Pairs(), heads=("forces",), forces="gradient").train()
    assert list(potential.heads) == ["energy"]
    potential(batch_of(molecules)).forces.square().sum().backward()
    # What is added to all energies alike has no slope.
    assert [name for name, p in potential.named_parameters() if p.grad is None] == [
        "heads.energy.of_atoms.mlps.0.4.bias"
    ]


def test_gradient_of_an_isolated_atom():
    found = Potential(Pairs(), forces="gradient").eval()(batch_of([structure(Atoms("He"))]))
    assert found.forces.tolist() == [[0.0, 0.0, 0.0]]


def test_forces_and_energy_share_a_scale(toy_structures):
    """Predicted energies in eV then have the predicted forces in eV/Angstrom as their slope."""
    batches = [StructureBatch.of(toy_structures(20))]
    gradient, direct = Normaliser.fit(batches, gradient=True), Normaliser.fit(batches)
    assert gradient.energy_scale == gradient.force_scale == direct.force_scale
    assert direct.energy_scale != direct.force_scale


def test_references_of_intensive_targets(toy_structures):
    from atomcsi.targets import Target

    structures = toy_structures(7)
    energies = np.array([s.energy for s in structures])
    found = Normaliser.fit([StructureBatch.of(structures)], target=Target(target="gap", reference="mean"))
    assert found.mean.item() == pytest.approx(energies.mean())
    assert found.energy_scale.item() == pytest.approx(energies.std(), rel=1e-6)
    targets = found.energy_target(collate(structures, vacuum=5.0))
    assert targets.mean().item() == pytest.approx(0, abs=1e-5)
    bare = Normaliser.fit([StructureBatch.of(structures)], target=Target(target="is_metal", reference="none"))
    np.testing.assert_allclose(bare.energy_target(collate(structures, vacuum=5.0)), energies, rtol=1e-6)


def test_a_normaliser_of_a_mix(toy_structures):
    """Each structure is normalised by its own dataset's; JSON brings it back without loss."""
    import json

    first, second = toy_structures(8), toy_structures(8, 1, names=("CH3Cl", "H2O"))
    parts = [Normaliser.fit([StructureBatch.of(each)]) for each in (first, second)]
    mix = Normaliser.from_records(json.loads(json.dumps(Normaliser.join(parts).records())))
    batch = batch_of([*first, *second], np.repeat([0, 1], 8))
    for position, members in enumerate((first, second)):
        alone, rows = collate(members, vacuum=6.0), slice(8 * position, 8 * position + 8)
        assert torch.equal(mix.energy_target(batch)[rows], parts[position].energy_target(alone))
        found = mix.force_target(batch)[torch.repeat_interleave(batch.dataset, batch.natoms) == position]
        assert torch.equal(found, parts[position].force_target(alone))


def test_force_head_by_hand(molecules):
    batch = batch_of(molecules[1:2])
    head = ForceHead(Pairs())
    features = Pairs()(batch)
    lengths = head.of_edges.mlps[0](features.edge())
    expected = torch.stack(
        [(lengths * features.edge_direction)[features.edge_target == atom].sum(0) for atom in range(3)]
    )
    torch.testing.assert_close(head(features, batch), expected)
