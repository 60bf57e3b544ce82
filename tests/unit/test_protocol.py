"""The paper's protocol (section 1): order and size of batches, learning rates, precision."""

import itertools

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from atomcsi.catalogue import Graph
from atomcsi.errors import InputError
from atomcsi.models.potential import Potential, build_backbone
from atomcsi.project import load_project
from atomcsi.training.data import LabelledStructures
from atomcsi.training.denoising import NoisyStructures
from atomcsi.training.joined import JoinedStructures
from atomcsi.training.loading import Batches
from atomcsi.training.parameters import parameter_groups
from atomcsi.training.schedule import Schedule
from atomcsi.training.settings import TrainSettings

SIZES = np.random.default_rng(0).integers(1, 60, 101)


def settings(**changes) -> TrainSettings:
    values = {"structures": 101, "epochs": 4, "batch_size": 8, "learning_rate": 1e-3}
    return TrainSettings(**values | changes)


VARIANTS = [{}, {"max_atoms": 150}, {"bucket": 4}, {"bucket": 4, "max_atoms": 150}]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_order_depends_on_seed_and_epoch_only(changes):
    def order(seed, epoch):
        return np.concatenate(Batches(SIZES, settings(**changes), epochs=4, seed=seed).epoch(epoch)).tolist()

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 2)
    assert order(0, 3) != order(1, 3)
    assert sorted(order(0, 3)) == list(range(len(SIZES)))


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_steps_can_start_anywhere(changes):
    steps = [share.positions.tolist() for share in Batches(SIZES, settings(**changes), epochs=4, seed=5)]
    batches = Batches(SIZES, settings(**changes), epochs=4, seed=5)
    assert len(steps) == len(batches) == batches.ends[-1]
    ends = batches.ends.tolist()
    for start in {0, 1, ends[0] - 1, ends[0], ends[0] + 1, ends[2], ends[3] - 1, ends[3]}:
        rest = Batches(SIZES, settings(**changes), epochs=4, seed=5, start=start)
        assert [share.positions.tolist() for share in rest] == steps[start:]
    for end, begin in zip(ends, [0, *ends], strict=False):
        assert sorted(position for step in steps[begin:end] for position in step) == list(range(len(SIZES)))


def test_a_budget_of_atoms_is_kept_and_used():
    for bucket in (1, 8):
        found = Batches(SIZES, settings(max_atoms=150, bucket=bucket, batch_size=50), seed=0).epoch(0)
        atoms = [int(SIZES[members].sum()) for members in found]
        assert max(atoms) <= 150
        assert np.mean(atoms) > 120
    (whole,) = [members for members in Batches(np.array([999, 1]), settings(max_atoms=150)).epoch(0) if 0 in members]
    assert whole.tolist() == [0]  # alone, as it must be trained on too


def test_a_budget_of_edges_is_kept_beside_that_of_atoms(toy_lmdb):
    graph = Graph(cutoff=5, max_neighbors=30, max_neighbors_above={40: 10})
    molecules, crystals = (graph.edges_at_most(SIZES, periodic=periodic) for periodic in (False, True))
    # Every atom sees every other one, and in crystals images besides.
    assert molecules.tolist() == [n * min(n - 1, 10 if n > 40 else 30) for n in SIZES]
    assert crystals.tolist() == [n * (10 if n > 40 else 30) for n in SIZES]
    budgets = settings(max_atoms=150, max_edges=1500, batch_size=50)
    found = Batches(SIZES, budgets, nedges=molecules, seed=0).epoch(0)
    assert max(molecules[members].sum() for members in found) <= 1500
    assert max(SIZES[members].sum() for members in found) <= 150
    assert sorted(np.concatenate(found)) == list(range(len(SIZES)))
    for members, behind in itertools.pairwise(found):  # another one would not have fitted
        fuller = np.append(members, behind[0])
        assert molecules[fuller].sum() > 1500 or SIZES[fuller].sum() > 150

    store = toy_lmdb(12)
    structures = LabelledStructures(store, target="forces", graph=graph)
    (step,) = Batches.of(structures, settings(max_edges=10**6, batch_size=12))
    assert len(step.positions) == 12
    mixed = NoisyStructures(JoinedStructures([structures, structures]), sigma=0.1, seed=0)
    assert mixed.nedges.tolist() == 2 * structures.nedges.tolist()
    with pytest.raises(InputError, match=r"has no graph of its own .* set max_atoms in place of max_edges"):
        Batches.of(LabelledStructures(store, target="forces"), settings(max_edges=100))


def test_buckets_hold_structures_of_about_the_same_size():
    def spread(bucket):
        return np.mean([np.ptp(SIZES[members]) for members in Batches(SIZES, settings(bucket=bucket), seed=0).epoch(0)])

    assert spread(13) < 0.25 * spread(1)
    first = [SIZES[members].mean() for members in Batches(SIZES, settings(bucket=13), seed=0).epoch(0)]
    assert abs(np.corrcoef(first, np.arange(len(first)))[0, 1]) < 0.7  # not from small to large


@pytest.mark.parametrize(("world", "parts"), [(2, 1), (3, 1), (16, 1), (2, 3)])
def test_processes_share_each_step_without_duplicates(world, parts):
    whole = [share.positions for share in Batches(SIZES, settings(), epochs=2, seed=1)]
    own = [Batches(SIZES, settings(), epochs=2, seed=1, rank=r, world=world, parts=parts) for r in range(world)]
    assert {len(batches) for batches in own} == {len(whole) * parts}
    steps = [list(zip(*[iter(batches)] * parts, strict=True)) for batches in own]
    assert all([share.last for share in step] == [False] * (parts - 1) + [True] for step in steps[0])
    for members, shares in zip(whole, zip(*steps, strict=True), strict=True):
        step = [share for process in shares for share in process]
        counted = np.concatenate([share.positions[: share.counted] for share in step])
        assert sorted(counted) == sorted(members)
        assert {share.total for share in step} == {len(members)}
        assert min(len(share.positions) for share in step) >= 1


def test_plateau_as_pytorch_has_it():
    """Losses after the cosine; the learning rate is that of ``ReduceLROnPlateau``, to rounding."""
    rounded = settings(cosine_epochs=1, plateau_patience=2, final_factor=0.1)
    schedule = Schedule(rounded, steps=10)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.8, patience=2)
    schedule.validated(5, 0.1)  # within the cosine: does not count
    losses = 1 / np.arange(1, 40) + np.random.default_rng(0).normal(scale=0.02, size=39)
    for step, loss in enumerate(losses, start=10):
        schedule.validated(step, loss)
        theirs.step(loss)
        assert schedule.factor(step) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert schedule.scale < 0.8**2
    resumed = Schedule(rounded, steps=10)
    resumed.restore(schedule.state())
    assert resumed == schedule


def four_blocks(repository):
    """As deep as GemNet-OC-S, but small."""
    path = repository / "tests" / "data" / "config" / "backbones" / "gemnet-oc-test.yaml"
    entry = yaml.safe_load(path.read_text())
    return Potential(build_backbone(entry | {"settings": entry["settings"] | {"num_blocks": 4}}))


def test_learning_rates_by_depth(repository):
    """The factors of the paper."""
    project = load_project(path=repository / "config" / "paper.yaml", root=repository)
    assert project.backbones["gemnet-oc-s"].settings["num_blocks"] == 4
    potential = four_blocks(repository)
    task = project.tasks["qm9-u0"].finetune
    assert task.depth_factors.blocks == [0.35, 0.40, 0.55, 0.625] and task.depth_factors.embedding == 0.3
    groups = parameter_groups(potential, task)
    found = [group["lr"] / task.learning_rate for group in groups]
    assert found == pytest.approx([0.3, 0.35, 0.40, 0.55, 0.625, 1.0])
    parameters = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in parameters} == {id(p) for p in potential.parameters()}
    assert len(parameters) == len({id(p) for p in parameters})
    # Blocks have the same architecture.
    assert len({sum(p.numel() for p in group["params"]) for group in groups[1:5]}) == 1


def test_factors_for_another_number_of_blocks(repository):
    """Two factors for four blocks: constant outside the middles of the halves, linear between them."""
    groups = parameter_groups(
        four_blocks(repository), settings(learning_rate=1.0, depth_factors={"embedding": 0.3, "blocks": [0.4, 0.8]})
    )
    assert [group["lr"] for group in groups] == pytest.approx([0.3, 0.4, 0.5, 0.7, 0.8, 1.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cosine_epochs": 5}, "cosine_epochs is 5, but there are 4 epochs"),
        ({"plateau_patience": 3}, "plateau_patience needs cosine_epochs"),
        ({"val_interval": 1.5}, "val_interval"),
        ({"precision": "fp8"}, "precision"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValidationError, match=message):
        settings(**changes)
