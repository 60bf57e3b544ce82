"""Pretraining on noise: which noise, that it is learned, and what its models are good for."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file

from atomcsi.config import BackboneSpec, TrainSettings
from atomcsi.errors import InputError
from atomcsi.models.potential import build_backbone
from atomcsi.structure_lmdb import StructureLMDB, write_structures
from atomcsi.training.data import LabelledStructures
from atomcsi.training.denoising import NoisyStructures
from atomcsi.training.joined import JoinedStructures
from atomcsi.training.model_files import load_backbone, load_model
from atomcsi.training.processes import Execution
from atomcsi.training.train import pretrain

ROOT = Path(__file__).parents[2]
TINY = BackboneSpec(**yaml.safe_load((ROOT / "tests/data/config/backbones/gemnet-oc-test.yaml").read_text()))


def draw(store, n=None):
    return LabelledStructures(store, target="noise", limit=n, seed=0)


def test_the_target_points_back_to_where_atoms_belong(toy_lmdb):
    structures = draw(toy_lmdb(40))
    noisy = NoisyStructures(structures, sigma=0.2, seed=1)
    clean, found = structures.of_epoch(range(40), 0), noisy.of_epoch(range(40), 0)
    np.testing.assert_allclose(found.positions + 0.2 * found.forces, clean.positions, atol=1e-6)
    # 750 components of spread 1: its error is 1/sqrt(2 * 750), that of their mean 1/sqrt(750).
    assert found.forces.size == 750
    assert found.forces.std() == pytest.approx(1, abs=4 / 1500**0.5)
    assert found.forces.mean() == pytest.approx(0, abs=4 / 750**0.5)


def test_noise_depends_on_seed_epoch_and_structure_only(toy_lmdb):
    first, second = draw(toy_lmdb(6, "a")), draw(toy_lmdb(9, "b", 1))
    noisy = NoisyStructures(JoinedStructures([first, second]), sigma=0.2, seed=1)
    whole, part = noisy.of_epoch(range(15), 3), noisy.of_epoch([12, 2], 3)
    forces = np.split(whole.forces, np.cumsum(whole.natoms)[:-1])
    np.testing.assert_array_equal(part.forces, np.concatenate([forces[2], forces[12]]))
    assert part.dataset.tolist() == [0, 1]
    assert not np.array_equal(noisy.of_epoch([12, 2], 4).forces, part.forces)
    other = NoisyStructures(noisy.structures, sigma=0.2, seed=2)
    assert not np.array_equal(other.of_epoch([12, 2], 3).forces, part.forces)


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory, toy_structures):
    structures = toy_structures(24, 0, ("CH3OH", "C2H6"))
    for structure in structures:
        structure.energy, structure.forces = float("nan"), None
    path = tmp_path_factory.mktemp("data") / "x.lmdb"
    write_structures(path, structures, provenance={"dataset": "bare"})
    return StructureLMDB(path)


def settings(**changes):
    values = {"structures": 24, "batch_size": 4, "learning_rate": 1e-2, "energy_weight": 0, "force_weight": 1}
    return TrainSettings(**values | {"epochs": 25, "denoise_sigma": 0.3, "ema_decay": 0.9} | changes)


def run(store, folder, **changes):
    pretrain([store], [store], folder, backbone=TINY, settings=settings(**changes), seed=3,
             execution=Execution(device="cpu"))  # fmt: skip
    return json.loads((folder / "model.json").read_text())


def test_noise_is_learned_without_labels(unlabelled, tmp_path):
    """The start is what predicting nothing costs, the mean length of a normal vector in space: sqrt(8 / pi) = 1.60."""
    card = run(unlabelled, tmp_path / "a")
    curve = [record["val_loss"] for record in card["history"]]
    assert 1.3 < curve[0] < 1.7
    assert min(curve) < 0.8 * curve[0]
    assert (card["target"], card["heads"]) == ("noise", ["forces"])
    load_backbone(build_backbone(TINY.model_dump()), tmp_path / "a")
    with pytest.raises(InputError, match=r"model.json: tells of a model that was pretrained to denoise \(finetune it"):
        load_model(tmp_path / "a")


def test_same_seed_same_weights(unlabelled, tmp_path):
    for name in "ab":
        run(unlabelled, tmp_path / name, epochs=2)
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all((first[name] == again[name]).all() for name in first)


def test_settings_that_contradict_each_other():
    for changes in ({"energy_weight": 1}, {"forces": "gradient"}):
        with pytest.raises(ValidationError, match="denoise_sigma needs energy_weight 0 and direct forces"):
            settings(**changes)
