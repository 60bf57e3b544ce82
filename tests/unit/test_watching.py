"""What a training shows while it runs, and what it says it took."""

import json
import logging
import re
import sys
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
import torch
import yaml

from atomcsi.config import BackboneSpec, TrainSettings
from atomcsi.errors import AtomcsiError
from atomcsi.structure_lmdb import StructureLMDB, write_structures
from atomcsi.training import watching
from atomcsi.training.module import PotentialModule
from atomcsi.training.processes import Execution
from atomcsi.training.train import pretrain
from atomcsi.training.watching import PowerMeter, costs

ROOT = Path(__file__).parents[2]
TINY = BackboneSpec(**yaml.safe_load((ROOT / "tests/data/config/backbones/gemnet-oc-test.yaml").read_text()))


@pytest.fixture
def splits(toy_lmdb):
    return {name: toy_lmdb(n, name, seed) for name, n, seed in (("train", 16, 0), ("val", 6, 1))}


def run(splits, folder, **changes):
    settings = TrainSettings(structures=16, epochs=2, batch_size=4, learning_rate=1e-3, val_interval=0.5)
    pretrain(
        [splits["train"]], [splits["val"]], folder, backbone=TINY, settings=settings.model_copy(update=changes),
        seed=3, execution=Execution(device="cpu"),
    )  # fmt: skip


def test_progress_and_history(splits, tmp_path, monkeypatch, caplog):
    """The table is there while the training runs, and ends as the card's history."""
    seen = []

    def looks(self, trainer, module):
        original(self, trainer, module)
        seen.append(len(pd.read_csv(tmp_path / "a" / "history.csv")))

    original = watching.Records.on_validation_end
    monkeypatch.setattr(watching.Records, "on_validation_end", looks)
    monkeypatch.setattr(logging.getLogger("atomcsi"), "propagate", True)
    monkeypatch.setattr("atomcsi.progress.Progress.__init__.__kwdefaults__", {"total": None, "done": 0, "every": 0.0})
    with caplog.at_level(logging.INFO):
        run(splits, tmp_path / "a")
    card = json.loads((tmp_path / "a" / "model.json").read_text())
    assert seen == [1, 2, 3, 4]
    assert pd.read_csv(tmp_path / "a" / "history.csv").to_dict("records") == card["history"]
    line = r"pretrain train seed 3: 12 of 32 structures, [\d.e+]+/s, 0:00:\d\d left, epoch 0\.75 of 2, loss [\d.]+"
    assert re.search(line, caplog.text)


def test_costs_by_hand(splits, tmp_path):
    run(splits, tmp_path / "a")
    card = json.loads((tmp_path / "a" / "model.json").read_text())
    assert card["costs"] == {
        "device": "cpu", "processes": 1, "gpu_hours": 0.0, "watts": 10.0, "watts_are": "assumed",
        "kwh": pytest.approx(card["seconds"] * 10 / 3.6e6),
    }  # fmt: skip


def test_costs_of_gpus(monkeypatch):
    """Four GPUs of 400 W for half an hour: 2 GPU-hours and 0.8 kWh."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    found = costs(1800.0, device=torch.device("cuda:0"), world=4, watts=400.0)
    assert (found["device"], found["gpu_hours"], found["watts_are"]) == ("a GPU", 2.0, "measured")
    assert found["kwh"] == pytest.approx(0.8)


def test_readings_of_the_meter(monkeypatch):
    monkeypatch.setattr(watching, "_EVERY", 0.0)
    module = type("Module", (), {"device": torch.device("cuda:0")})()
    meter = PowerMeter()
    for reading in (250_000, RuntimeError("no sensor"), 350_000):
        monkeypatch.setattr(torch.cuda, "power_draw", lambda _, now=reading: now if isinstance(now, int) else fail(now))
        meter.on_train_batch_end(None, module, None, None, 0)
    resumed = PowerMeter()
    resumed.load_state_dict(meter.state_dict())
    assert meter.watts == resumed.watts == 300.0
    assert PowerMeter().watts is None


def fail(error):
    raise error


class Board:
    """Stands in for Lightning's logger, which needs a package that is optional."""

    written: ClassVar[list] = []

    def __init__(self, folder, *, name, version, purge_step):
        Board.written.append((folder / name, purge_step))

    def log_metrics(self, metrics, step):
        Board.written.append((step, sorted(metrics)))

    def save(self):
        pass

    def finalize(self, status):
        Board.written.append(status)


def test_tensorboard_where_it_is_installed(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "TensorBoardLogger", Board)
    monkeypatch.setattr(watching, "find_spec", lambda name: sys if name == "tensorboard" else None)
    Board.written.clear()
    run(splits, tmp_path / "a", epochs=1)
    names = ["epoch", "learning_rate", "seconds", "train_loss", "val_loss"]
    assert Board.written == [(tmp_path / "a" / "tensorboard", 1), (2, names), (4, names), "done"]


def test_structures_with_a_loss_that_is_not_finite(splits, toy_structures, tmp_path, monkeypatch):
    """Those at fault are named, and only they."""

    def broken(self, batch):
        losses = original(self, batch)
        ethane = torch.stack([(batch.numbers[batch.index == i] == 8).sum() == 0 for i in range(len(batch))])
        return torch.where(ethane, torch.nan, losses)

    original = PotentialModule.losses
    monkeypatch.setattr(PotentialModule, "losses", broken)
    only = toy_structures(16, names=("CH3OH", "CH3OH", "CH3OH", "C2H6"))
    write_structures(tmp_path / "x.lmdb", only, provenance={"dataset": "x", "split": "train"})
    with pytest.raises(AtomcsiError) as caught:
        run(splits | {"train": StructureLMDB(tmp_path / "x.lmdb")}, tmp_path / "a")
    named = re.search(r"in step 1 the loss of (.*) is not finite \(lower learning_rate", str(caught.value))[1]
    assert named.split(", ") and all(int(name.removeprefix("toy/")) % 4 == 3 for name in named.split(", "))
