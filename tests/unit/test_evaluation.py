"""Test errors in the task's unit, against errors that are put in by hand."""

from functools import partial

import numpy as np
import pytest
import torch

from atomcsi.config import TrainSettings
from atomcsi.errors import AtomcsiError
from atomcsi.models.batch import collate
from atomcsi.models.potential import Prediction
from atomcsi.structure_lmdb import StructureLMDB, write_structures
from atomcsi.training.data import LabelledStructures
from atomcsi.training.evaluation import classification_metrics, evaluate
from atomcsi.training.model_files import TrainedModel
from atomcsi.training.normalisation import Normaliser

SETTINGS = TrainSettings(structures=1, epochs=1, batch_size=3, learning_rate=1e-3)


class Answers(torch.nn.Module):
    """Answers with a function of the batch."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, batch):
        return self.answer(batch)


def model_of(answer, *, energy_scale=1.0, force_scale=1.0, scalar_loss="l1") -> TrainedModel:
    scales = [torch.tensor([value]).double() for value in (0.0, energy_scale, force_scale)]
    normaliser = Normaliser(torch.zeros(1, 119, dtype=torch.float64), *scales)
    card = {"settings": {"scalar_loss": scalar_loss}}
    return TrainedModel(Answers(answer), normaliser, torch.device("cpu"), partial(collate, vacuum=5.0), card)


def test_force_errors_by_hand(toy_lmdb):
    """Off by 0.25 eV/A in every component, on hydrogen by 0.5, tested in meV/A."""

    def off(batch):
        error = torch.where(batch.numbers == 1, 0.5, 0.25)[:, None]
        return Prediction(forces=(batch.forces + error) / 2.0)

    store = toy_lmdb(8)  # CH3OH, C2H6, CH3CHO and H2O2, twice each
    found = evaluate(
        model_of(off, force_scale=2.0), LabelledStructures(store, target="forces"), "meV/angstrom", SETTINGS
    )
    hydrogens, others = 2 * (4 + 6 + 4 + 2), 2 * (2 + 2 + 3 + 2)
    assert found["mae"] == pytest.approx((500 * hydrogens + 250 * others) / (hydrogens + others), rel=1e-5)
    assert found["labels"] == 3 * int(store.natoms.sum()) == 3 * (hydrogens + others)
    assert found["by_element"]["H"] == {"mae": pytest.approx(500.0, rel=1e-5), "labels": 3 * hydrogens}
    assert found["by_element"]["C"] == {"mae": pytest.approx(250.0, rel=1e-5), "labels": 3 * 10}
    assert found["by_class"]["H2O2"] == {"mae": pytest.approx(375.0, rel=1e-5), "labels": 24}
    assert list(found["by_class"]) == ["CH4O", "C2H6", "C2H4O", "H2O2"]


def test_energy_errors_by_hand(toy_lmdb):
    """Off by 2 eV times the number of the dataset's atoms; an element has the errors of the structures that hold it."""
    found = evaluate(
        model_of(lambda batch: Prediction(energy=(batch.energy + batch.natoms) / 4.0), energy_scale=4.0),
        LabelledStructures(toy_lmdb(4), target="energy"), "eV", SETTINGS,
    )  # fmt: skip
    assert (found["mae"], found["labels"]) == (pytest.approx((6 + 8 + 7 + 4) / 4), 4)
    assert found["by_element"]["O"] == {"mae": pytest.approx((6 + 7 + 4) / 3), "labels": 3}
    assert found["by_element"]["C"] == {"mae": pytest.approx((6 + 8 + 7) / 3), "labels": 3}


def test_one_class_needs_no_table(tmp_path, toy_structures):
    write_structures(tmp_path / "x.lmdb", toy_structures(3, names=("CH3OH",)), provenance={})
    structures = LabelledStructures(StructureLMDB(tmp_path / "x.lmdb"), target="energy")
    found = evaluate(model_of(lambda batch: Prediction(energy=batch.energy)), structures, "eV", SETTINGS)
    assert found["by_class"] == {}


def test_a_test_error_that_is_not_finite(toy_lmdb):
    broken = model_of(lambda batch: Prediction(forces=batch.forces * torch.nan))
    with pytest.raises(AtomcsiError, match="test error is not finite"):
        evaluate(broken, LabelledStructures(toy_lmdb(4), target="forces"), "meV/angstrom", SETTINGS)


def test_a_classifier(tmp_path, toy_structures):
    """Logits -1 and 1: probabilities 0.269 and 0.731, of which one in four is on the wrong side."""
    structures = toy_structures(4)
    for structure, label in zip(structures, (0.0, 1.0, 1.0, 1.0), strict=True):
        structure.properties = {"is_metal": label}
    write_structures(tmp_path / "x.lmdb", structures, property_names=["is_metal"], provenance={})
    logits = iter([torch.tensor([-1.0, 1.0, 1.0]), torch.tensor([-1.0])])
    found = evaluate(
        model_of(lambda _: Prediction(energy=next(logits)), scalar_loss="cross-entropy"),
        LabelledStructures(StructureLMDB(tmp_path / "x.lmdb"), target="is_metal"), "1", SETTINGS,
    )  # fmt: skip
    low, high = 1 / (1 + np.e), np.e / (1 + np.e)
    assert found["mae"] == pytest.approx((3 * low + high) / 4)
    assert found["accuracy"] == 0.75
    assert found["cross_entropy"] == pytest.approx(-(3 * np.log(high) + np.log(low)) / 4)
    # Of the three pairs of a metal and the one other, two are in order and one is a tie.
    assert found["roc_auc"] == pytest.approx(2.5 / 3)


def test_no_roc_of_one_class():
    assert classification_metrics(np.array([0.2, 0.9]), np.ones(2))["roc_auc"] is None
