import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from atomcsi.config import BackboneSpec, Task, TrainSettings
from atomcsi.errors import AtomcsiError, ConfigError, InputError
from atomcsi.files import write_json
from atomcsi.mixes import NamedMix
from atomcsi.mixtures import SCHEMA as MIXTURES_SCHEMA
from atomcsi.models.batch import AtomBatch, collate
from atomcsi.models.potential import Potential, Prediction, build_backbone
from atomcsi.structure_batch import StructureBatch, batches_of
from atomcsi.structure_lmdb import StructureLMDB, write_batches, write_structures
from atomcsi.training.data import LabelledStructures
from atomcsi.training.loading import Batches, LoadedBatch, loader
from atomcsi.training.module import PotentialModule
from atomcsi.training.normalisation import Normaliser
from atomcsi.training.processes import Execution
from atomcsi.training.schedule import Schedule
from atomcsi.training.train import finetune, pretrain

ROOT = Path(__file__).parents[2]
CPU = Execution(device="cpu")
TINY = BackboneSpec(**yaml.safe_load((ROOT / "tests/data/config/backbones/gemnet-oc-test.yaml").read_text()))


def settings(**changes) -> TrainSettings:
    values = {
        "structures": 16,
        "epochs": 3,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "clip_norm": 1.0,
        "warmup_steps": 2,
    }
    return TrainSettings(**values | changes)


class Constant(torch.nn.Module):
    """Predicts given numbers, whatever the batch."""

    def __init__(self, prediction: Prediction):
        super().__init__()
        self.prediction = prediction

    def forward(self, batch):
        return self.prediction


def normaliser_of(energy_scale=1.0, force_scale=1.0) -> Normaliser:
    """One without references."""
    scales = [torch.tensor([value]).double() for value in (0.0, energy_scale, force_scale)]
    return Normaliser(torch.zeros(1, 119, dtype=torch.float64), *scales)


def test_loss_by_hand(toy_structures):
    """Two structures; the mean over atoms comes before the mean over structures (paper, section 1)."""
    batch = collate(toy_structures(2), vacuum=5.0)  # CH3OH (6 atoms), C2H6 (8 atoms)
    normaliser = normaliser_of(energy_scale=2.0, force_scale=0.5)
    energy = (batch.energy / 2.0).float() + torch.tensor([3.0, -1.0])
    forces = batch.forces / 0.5
    forces[:6] += torch.tensor([3.0, 4.0, 0.0])  # length 5 on all atoms of the first
    forces[6] += torch.tensor([0.0, 0.0, 8.0])  # length 8 on one atom of the second
    module = PotentialModule(
        Constant(Prediction(energy=energy, forces=forces)), normaliser, settings(), None, None, structures=2
    )
    expected = [1.0 * 3 + 10.0 * 5, 1.0 * 1 + 10.0 * 8 / 8]
    assert module.losses(batch).tolist() == pytest.approx(expected, rel=1e-4)


def test_learning_rate_by_hand():
    """Linear from 0.2 to 1 in the warm-up, then a cosine to 0.1 (paper, section 1)."""
    schedule = Schedule(settings(warmup_steps=10), steps=110)
    found = [schedule.factor(step) for step in (0, 5, 10, 60, 110)]
    assert found == pytest.approx([0.2, 0.6, 1.0, 0.55, 0.1])


def test_normaliser_restores_energies(toy_structures):
    structures = toy_structures(40)
    normaliser = Normaliser.fit([StructureBatch.of(structures)])
    batch = collate(structures, vacuum=5.0)
    targets = normaliser.energy_target(batch)
    assert targets.std(unbiased=False).item() == pytest.approx(1.0, rel=1e-3)
    restored = normaliser.energy(targets, batch)
    np.testing.assert_allclose(restored, [s.energy for s in structures], atol=1e-4)
    assert normaliser.force_target(batch).square().mean().item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("target", ["energy", "gap"])
def test_a_batch_is_that_of_its_structures(tmp_path, toy_structures, target):
    structures = toy_structures(9)
    for number, structure in enumerate(structures):
        structure.properties = {"mu": 0.0, "gap": 10.0 + number}
    write_structures(tmp_path / "x.lmdb", structures, property_names=["mu", "gap"], provenance={})
    labelled = LabelledStructures(StructureLMDB(tmp_path / "x.lmdb"), target=target, limit=5, seed=1)
    batches = Batches(labelled.natoms, settings(batch_size=5))
    (loaded,) = loader(labelled, batches, collate=partial(collate, vacuum=5.0))
    assert isinstance(loaded, LoadedBatch) and loaded.share[1:] == (5, 5, True, 0)
    assert loaded.sources == [f"toy/{index}" for index in labelled.indices]
    expected = collate([labelled[position] for position in range(5)], vacuum=5.0)
    for name in AtomBatch.__slots__:
        torch.testing.assert_close(getattr(loaded.atoms, name), getattr(expected, name), rtol=0, atol=0, equal_nan=True)
    assert (loaded.atoms.forces is None) == (target == "gap")
    assert [len(batch) for batch in labelled.batches(3)] == [3, 2]


def test_a_published_reference_is_trained_with(tmp_path, toy_structures):
    reference = np.zeros(119)
    reference[[1, 6, 8]] = -10.0, -100.0, -200.0
    for provenance, expected in (({"linear_reference": "x.npz"}, [-10.0, -100.0, -200.0]), ({}, None)):
        path = tmp_path / "x.lmdb"
        write_batches(path, batches_of(toy_structures(9), 4), provenance=provenance, reference=reference)
        labelled = LabelledStructures(StructureLMDB(path), target="energy")
        if expected is None:
            assert labelled.reference is None
        else:
            normaliser = Normaliser.fit(labelled.batches(), labelled.reference)
            assert normaliser.reference[0, [1, 6, 8]].tolist() == expected
            assert normaliser.energy_scale == labelled.store.metadata["energy_std"]


@pytest.fixture
def splits(toy_lmdb):
    return {name: toy_lmdb(n, name, seed) for name, n, seed in (("train", 24, 0), ("val", 8, 1), ("test", 8, 2))}


def run_pretraining(splits, folder, **changes):
    pretrain(
        [splits["train"]], [splits["val"]], folder, backbone=TINY, settings=settings(**changes), seed=3, execution=CPU
    )
    return load_file(folder / "model.safetensors"), json.loads((folder / "model.json").read_text())


def losses(card):
    return [(record["train_loss"], record["val_loss"]) for record in card["history"]]


def test_pretraining_learns_and_says_what_it_did(splits, tmp_path):
    _, card = run_pretraining(splits, tmp_path / "a", epochs=50, learning_rate=1e-2)
    # Memorising sixteen structures: well below what predicting their mean gives, the loss at the start.
    assert card["history"][-1]["train_loss"] < 0.5 * card["history"][0]["train_loss"]
    assert (card["structures"], card["budget"], card["seed"], len(card["history"])) == (16, 800, 3, 50)
    assert card["best_epoch"] == 1 + int(np.argmin([val for _, val in losses(card)]))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "README.md",
        "history.csv",
        "model.json",
        "model.safetensors",
    ]


def test_same_seed_same_weights(splits, tmp_path):
    first, _ = run_pretraining(splits, tmp_path / "a")
    again, _ = run_pretraining(splits, tmp_path / "b")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_half_precision(splits, tmp_path):
    """Rounded to 8 bits, losses change, but little."""
    _, full = run_pretraining(splits, tmp_path / "full")
    weights, half = run_pretraining(splits, tmp_path / "half", precision="bfloat16")
    assert losses(half) != losses(full)
    np.testing.assert_allclose(losses(half), losses(full), rtol=0.02)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    with pytest.raises(AtomcsiError, match=r"float16 needs a GPU .*bfloat16"):
        run_pretraining(splits, tmp_path / "none", precision="float16")


def test_the_best_weights_are_kept(splits, tmp_path):
    """The validation loss of the model that is written, computed anew, is the lowest of its history."""
    weights, card = run_pretraining(splits, tmp_path / "a", epochs=12, learning_rate=0.1, val_interval=0.5)
    assert card["best_epoch"] < 12  # a learning rate at which the last weights are not the best
    validation = LabelledStructures(splits["val"], target="forces", limit=8, seed=3)
    normaliser = Normaliser.fit(LabelledStructures(splits["train"], target="forces").batches())
    potential = Potential(build_backbone(TINY.model_dump()))
    potential.load_state_dict(weights)
    module = PotentialModule(potential, normaliser, settings(), None, None, structures=1)
    loaded = loader(validation, Batches(validation.natoms, settings()), collate=potential.backbone.collate())
    found = np.mean([loss for batch in loaded for loss in module.losses(batch.atoms).tolist()])
    assert found == pytest.approx(min(val for _, val in losses(card)), rel=1e-5)


def task(target="forces", unit="meV/angstrom", **changes) -> Task:
    changes = {"energy_weight": 0} | changes
    return Task(title="a test", dataset="toy", target=target, unit=unit, finetune=settings(**changes))


@pytest.mark.parametrize("init", [True, False], ids=["pretrained", "scratch"])
@pytest.mark.parametrize(
    ("target", "unit", "weights"),
    [
        ("forces", "meV/angstrom", {"energy_weight": 0, "force_weight": 1}),
        ("forces", "meV/angstrom", {"energy_weight": 0, "force_weight": 1, "forces": "gradient"}),
        ("energy", "meV", {"energy_weight": 1, "force_weight": 0}),
    ],
)
def test_finetuning(splits, tmp_path, init, target, unit, weights):
    if init:
        run_pretraining(splits, tmp_path / "pre")
    finetune(
        splits, tmp_path / "fine", task=task(target, unit, **weights), task_name="toy",
        init=tmp_path / "pre" if init else None, backbone=TINY, seed=0, execution=CPU,
    )  # fmt: skip
    metrics = json.loads((tmp_path / "fine" / "metrics.json").read_text())
    assert (metrics["init"], metrics["structures"]) == ("train" if init else "scratch", 8)
    atoms = int(splits["test"].natoms.sum())
    assert metrics["labels"] == (3 * atoms if target == "forces" else 8)
    assert metrics["unit"] == unit and metrics["mae"] > 0


@pytest.mark.parametrize(("readout", "classes"), [("mean", False), ("max", True)], ids=["regression", "classes"])
def test_a_property_is_learned(toy_structures, tmp_path, readout, classes):
    """Which molecules hold oxygen, as a number or as a class: ethane is the only one that does not."""
    structures = toy_structures(32)
    for structure in structures:
        structure.properties = {"oxygen": float(8 in structure.numbers)}
    write_structures(tmp_path / "x.lmdb", structures, property_names=["oxygen"], provenance={"dataset": "x"})
    store = StructureLMDB(tmp_path / "x.lmdb")
    settings_ = {
        "scalar_loss": "cross-entropy" if classes else "mse",
        "epochs": 30,
        "learning_rate": 1e-2,
        "structures": 32,
    }
    oxygen = Task(
        dataset="x", target="oxygen", readout=readout, reference="none" if classes else "mean", unit="1",
        finetune=settings(force_weight=0, **settings_),
    )  # fmt: skip
    finetune({"train": store, "val": store, "test": store}, tmp_path / "fine", task=oxygen, task_name="oxygen",
             init=None, backbone=TINY, seed=0, execution=CPU)  # fmt: skip
    metrics = json.loads((tmp_path / "fine" / "metrics.json").read_text())
    assert metrics["mae"] < 0.15
    assert not classes or (metrics["accuracy"], metrics["roc_auc"]) == (1.0, 1.0)
    assert metrics["by_class"]["C2H6"]["labels"] == 8


def test_a_model_of_another_shape(splits, tmp_path):
    run_pretraining(splits, tmp_path / "pre")
    other = BackboneSpec(implementation="gemnet-oc", settings={**TINY.settings, "emb_size_atom": 24})
    with pytest.raises(InputError, match="does not fit the backbone"):
        finetune(splits, tmp_path / "fine", task=task(), task_name="toy", init=tmp_path / "pre",
                 backbone=other, seed=0, execution=CPU)  # fmt: skip


def test_damaged_weights(splits, tmp_path):
    run_pretraining(splits, tmp_path / "pre")
    weights = tmp_path / "pre" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read"):
        finetune(splits, tmp_path / "fine", task=task(), task_name="toy", init=tmp_path / "pre",
                 backbone=TINY, seed=0, execution=CPU)  # fmt: skip


def test_labels_and_structures_that_are_missing(splits, tmp_path):
    with pytest.raises(InputError, match="has no gap to train on"):
        LabelledStructures(splits["train"], target="gap")
    with pytest.raises(InputError, match="has 24 structures where 99 are to be trained on"):
        run_pretraining(splits, tmp_path / "a", structures=99)


def test_forces_without_energies(toy_structures, tmp_path):
    structures = toy_structures(16)
    for structure in structures:
        structure.energy = float("nan")
    store = store_of(tmp_path, "bare", structures)
    with pytest.raises(InputError, match=r"bare\.lmdb: has no energies to train on \(set energy_weight to 0"):
        run_pretraining({"train": store, "val": store}, tmp_path / "a")
    run_pretraining({"train": store, "val": store}, tmp_path / "a", energy_weight=0, epochs=1)


def store_of(tmp_path, name, structures):
    write_structures(tmp_path / f"{name}.lmdb", structures, provenance={"dataset": name, "split": "train"})
    return StructureLMDB(tmp_path / f"{name}.lmdb")


def test_a_rare_element_has_its_reference(toy_structures, tmp_path):
    """One training structure in twenty-five holds chlorine, and is not drawn; test energies still come out right."""
    chlorine = toy_structures(4, names=("CH3Cl",))
    train = store_of(tmp_path, "train", [*toy_structures(24), chlorine[0]])
    val, test = store_of(tmp_path, "val", toy_structures(8, 1)), store_of(tmp_path, "test", chlorine[1:])
    energy = task("energy", "eV", energy_weight=1, force_weight=0, structures=4, batch_size=2)
    seed = next(s for s in range(99) if 24 not in LabelledStructures(train, target="energy", limit=4, seed=s).indices)
    finetune({"train": train, "val": val, "test": test}, tmp_path / "fine", task=energy, task_name="toy", init=None,
             backbone=TINY, seed=seed, execution=CPU)  # fmt: skip
    # Atomic energies are -13.6 eV times Z: without its reference, the halogen alone would cost 231 eV.
    assert json.loads((tmp_path / "fine" / "metrics.json").read_text())["mae"] < 10


def test_an_element_that_the_train_split_lacks(splits, toy_structures, tmp_path):
    other = store_of(tmp_path, "other", toy_structures(4, names=("CH3Cl",)))
    energy = task("energy", "eV", energy_weight=1, force_weight=0)
    with pytest.raises(InputError, match=r"holds Cl, which .*train\.lmdb does not"):
        finetune(splits | {"test": other}, tmp_path / "fine", task=energy, task_name="toy", init=None, backbone=TINY,
                 seed=0, execution=CPU)  # fmt: skip
    assert not (tmp_path / "fine").exists()


def test_a_loss_that_is_not_finite(splits, tmp_path):
    with pytest.raises(AtomcsiError, match=r"in step \d the loss of toy/.* is not finite .lower learning_rate"):
        run_pretraining(splits, tmp_path / "a", learning_rate=1e30, clip_norm=None, warmup_steps=0)


def test_heads_are_fresh_and_the_backbone_is_kept(splits, tmp_path):
    from atomcsi.training.model_files import load_backbone

    weights, _ = run_pretraining(splits, tmp_path / "pre")
    backbone = build_backbone(TINY.model_dump())
    load_backbone(backbone, tmp_path / "pre")
    state = Potential(backbone).state_dict()
    assert all(torch.equal(state[name], weights[name]) for name in weights if name.startswith("backbone."))
    heads = [name for name in weights if name.startswith("heads.") and name.endswith("weight")]
    assert heads and not any(torch.equal(state[name], weights[name]) for name in heads)


class TestMixes:
    def mix(self, **entry):
        return NamedMix.model_validate({"name": "both", "mix": entry})

    def run(self, stores, folder, mix, **options):
        pretrain(
            list(stores), list(stores), folder, backbone=TINY, settings=settings(structures=10, val_structures=4),
            seed=3, mix=mix, execution=CPU, **options,
        )  # fmt: skip
        return load_file(folder / "model.safetensors"), json.loads((folder / "model.json").read_text())

    def test_a_mix_is_pretrained_on(self, toy_structures, tmp_path):
        """Each dataset has its heads and its own references, those of its whole split."""
        stores = [
            store_of(tmp_path, "first", toy_structures(12)),
            store_of(tmp_path, "second", toy_structures(20, 1, names=("CH3Cl", "H2O"))),
        ]
        weights, card = self.run(
            stores, tmp_path / "model", self.mix(kind="weighted", weights={"first": 1, "second": 4})
        )
        assert (card["dataset"], card["structures"], card["budget"]) == ("both", 10, 30)
        found = [(record["dataset"], record["structures"]) for record in card["datasets"]]
        assert found == [("first", 2), ("second", 8)]
        for record, store in zip(card["normalisation"], stores, strict=True):
            # Stored labels are float32.
            assert record["linear_reference"] == pytest.approx(store.metadata["linear_reference"], rel=1e-6)
            assert record["force_scale"] == pytest.approx(store.metadata["force_rms"], rel=1e-6)
        assert {name.split(".")[4] for name in weights if name.startswith("heads.energy")} == {"0", "1"}

    def test_only_what_the_mix_takes_is_kept(self, toy_structures, tmp_path):
        stores = [store_of(tmp_path, name, toy_structures(12, seed)) for seed, name in enumerate("abc")]
        found = {"best": {"structures": {"a": 6, "b": 0, "c": 4}}}
        write_json(tmp_path / "mixes.json", MIXTURES_SCHEMA, found)
        _, card = self.run(stores, tmp_path / "model", self.mix(kind="nearest"), mixtures=tmp_path / "mixes.json")
        assert [(record["dataset"], record["structures"]) for record in card["datasets"]] == [("a", 6), ("c", 4)]

    def test_mistakes(self, toy_structures, tmp_path):
        stores = [store_of(tmp_path, name, toy_structures(12, seed)) for seed, name in enumerate("ab")]
        with pytest.raises(ConfigError, match="2 datasets to pretrain on need a mix"):
            self.run(stores, tmp_path / "model", None)
        with pytest.raises(InputError, match=r"b\.lmdb: has 12 structures where 13 are to be trained on"):
            self.run(stores, tmp_path / "model", self.mix(kind="counted", structures={"a": 1, "b": 13}))
        assert not (tmp_path / "model").exists()
