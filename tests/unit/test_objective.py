"""Every loss, by hand and as what a training goes by."""

import numpy as np
import pytest
import torch
from ase.build import molecule

from atomcsi.config import TrainSettings
from atomcsi.models.batch import collate
from atomcsi.models.potential import Potential
from atomcsi.models.schnet import SchNet
from atomcsi.structure import Structure
from atomcsi.structure_batch import StructureBatch
from atomcsi.targets import Target
from atomcsi.training.module import PotentialModule
from atomcsi.training.normalisation import Normaliser
from atomcsi.training.objective import force_loss, scalar_loss


def test_losses_by_hand():
    found, target = torch.tensor([0.0, 3.0]), torch.tensor([1.0, 1.0])
    assert scalar_loss("l1", found, target).tolist() == [1.0, 2.0]
    assert scalar_loss("mse", found, target).tolist() == [1.0, 4.0]
    entropy = scalar_loss("cross-entropy", found, target)
    assert entropy.tolist() == pytest.approx([np.log(2), np.log(1 + np.exp(-3))])
    water = molecule("H2O")
    batch = collate(
        [Structure(numbers=water.numbers, positions=water.positions, source="x", label="x")], vacuum=5.0
    )  # fmt: skip
    off = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    for kind, expected in (("norm", 6 / 3), ("l1", 8 / 9), ("mse", 26 / 9)):
        assert force_loss(kind, off, torch.zeros(3, 3), batch).item() == pytest.approx(expected)


def label(structure: Structure) -> None:
    """Repulsion of all pairs, 20 exp(-r) eV: forces that are the slope of the energy, as gradients need them."""
    vectors = structure.positions[:, None] - structure.positions
    lengths = np.linalg.norm(vectors, axis=-1) + np.eye(len(structure))
    pairs = 20 * np.exp(-lengths) * (1 - np.eye(len(structure)))
    structure.energy = float(pairs.sum() / 2)
    structure.forces = (pairs[..., None] * vectors / lengths[..., None]).sum(axis=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"scalar_loss": "l1", "force_weight": 0},
        {"scalar_loss": "mse", "force_weight": 0},
        {"scalar_loss": "cross-entropy", "force_weight": 0},
        {"force_loss": "norm", "energy_weight": 0},
        {"force_loss": "l1", "energy_weight": 0},
        {"force_loss": "mse", "energy_weight": 0},
        {"force_loss": "norm", "energy_weight": 1, "force_weight": 10, "forces": "gradient"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_loss_is_overfitted(toy_structures, changes):
    """32 structures: the loss falls to a tenth of what it starts with, by what the training itself minimises."""
    structures = toy_structures(32)
    for structure in structures:
        label(structure)
    settings = TrainSettings(structures=32, epochs=1, batch_size=32, learning_rate=1e-2, **changes)
    classes = settings.scalar_loss == "cross-entropy"
    if classes:
        for number, structure in enumerate(structures):
            structure.energy = float(number % 2)  # by heart, for nothing tells these classes
    labels = StructureBatch.of(structures)
    target = Target(target="class", reference="none") if classes else Target()
    gradient = settings.forces == "gradient"
    normaliser = Normaliser.fit([labels], target=target, gradient=gradient)
    torch.manual_seed(0)
    backbone = SchNet(hidden_channels=48, num_filters=48, num_interactions=2, edge_channels=48, cutoff=5.0)
    heads = [name for name, weight in (("energy", settings.energy_weight), ("forces", settings.force_weight)) if weight]
    module = PotentialModule(
        Potential(backbone, heads=heads, forces=settings.forces), normaliser, settings, None, None, 32
    )
    batch = backbone.collate()(labels)
    steps = 250
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, steps)
    curve = []
    for _ in range(steps):
        loss = module.losses(batch).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        curve.append(loss.item())
    assert curve[-1] < 0.1 * curve[0]
