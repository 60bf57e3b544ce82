"""Trainings that are cut off, at any moment and in any way, and end as if nothing had happened."""

import json
import logging
import multiprocessing
import os
import re
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from atomcsi.cli import main
from atomcsi.config import BackboneSpec, TrainSettings
from atomcsi.errors import AtomcsiError, InputError
from atomcsi.models.batch import collate
from atomcsi.structure_lmdb import StructureLMDB, write_structures
from atomcsi.training import checkpoints, fit
from atomcsi.training.data import LabelledStructures
from atomcsi.training.loading import Batches, loader, unpacked
from atomcsi.training.module import PotentialModule
from atomcsi.training.processes import Execution
from atomcsi.training.train import pretrain

ROOT = Path(__file__).parents[2]
TINY = BackboneSpec(**yaml.safe_load((ROOT / "tests/data/config/backbones/gemnet-oc-test.yaml").read_text()))
#: Twelve steps, four an epoch, a validation every other step; a plateau from the second epoch on.
SETTINGS = TrainSettings(
    structures=15, epochs=3, batch_size=4, learning_rate=1e-3, warmup_steps=2, clip_norm=1.0, val_interval=0.5,
    cosine_epochs=1, plateau_patience=0, ema_decay=0.9,
)  # fmt: skip
STEPS = 12


@pytest.fixture(scope="module")
def splits(tmp_path_factory, toy_structures):
    found = {}
    for name, n, seed in (("train", 16, 0), ("val", 6, 1)):
        path = tmp_path_factory.mktemp("data") / f"{name}.lmdb"
        write_structures(path, toy_structures(n, seed), provenance={"dataset": name, "split": name})
        found[name] = StructureLMDB(path)
    return found


@pytest.fixture(autouse=True, scope="module")
def noisy():
    """Trains with noise from the global generator, as a backbone with dropout would."""
    original = PotentialModule.losses
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PotentialModule, "losses", lambda self, batch: original(self, batch) * (1 + torch.rand(())))
        yield


def run(splits, folder, minutes=0.0, parts=1, workers=0, **changes):
    pretrain(
        [splits["train"]], [splits["val"]], folder, backbone=TINY, settings=SETTINGS.model_copy(update=changes), seed=3,
        execution=Execution(device="cpu", checkpoint_minutes=minutes, parts=parts, workers=workers),
    )  # fmt: skip


def outcome(folder):
    """Everything that a training gives but the time it took."""
    card = json.loads((folder / "model.json").read_text())
    curve = [{name: value for name, value in record.items() if name != "seconds"} for record in card["history"]]
    assert not (folder / "checkpoints").exists()
    return (
        curve,
        card["best_epoch"],
        {name: t.numpy().tobytes() for name, t in load_file(folder / "model.safetensors").items()},
    )


@pytest.fixture(scope="module")
def whole(splits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(splits, folder)
    return outcome(folder)


def at_step(monkeypatch, step, action):
    """Lets something happen within a step, counted from 1; returns the steps that were begun."""
    original, begun = PotentialModule.training_step, []

    def acts(self, batch, batch_index):
        begun.append(self.step + 1)
        if self.step + 1 == step:
            action()
        return original(self, batch, batch_index)

    monkeypatch.setattr(PotentialModule, "training_step", acts)
    return begun


def power_cut():
    raise AtomcsiError("the power is out")


def in_child(function, *arguments):
    """Runs a function in a process of its own; returns how that ended."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def test_history_of_an_uninterrupted_training(whole):
    curve, _, _ = whole
    assert [record["step"] for record in curve] == [2, 4, 6, 8, 10, 12]
    assert [record["epoch"] for record in curve] == [pytest.approx(x) for x in (8 / 15, 1, 23 / 15, 2, 38 / 15, 3)]
    assert [type(record["epoch"]) for record in curve] == [float, int] * 3


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_cut_off_in_a_step(splits, tmp_path, monkeypatch, whole, step):
    with monkeypatch.context() as patch, pytest.raises(AtomcsiError, match="power"):
        at_step(patch, step, power_cut)
        run(splits, tmp_path / "cut")
    begun = at_step(monkeypatch, 0, None)
    run(splits, tmp_path / "cut")
    assert begun == list(range(step, STEPS + 1))
    assert outcome(tmp_path / "cut") == whole


@pytest.mark.parametrize("step", [3, 4, 8])
def test_between_checkpoints_little_is_lost(splits, tmp_path, monkeypatch, whole, step):
    """Validations are saved, and steps after them repeated."""
    with monkeypatch.context() as patch, pytest.raises(AtomcsiError, match="power"):
        at_step(patch, step, power_cut)
        run(splits, tmp_path / "cut", minutes=60.0)
    begun = at_step(monkeypatch, 0, None)
    run(splits, tmp_path / "cut", minutes=60.0)
    assert begun[0] == 2 * ((step - 1) // 2) + 1
    assert outcome(tmp_path / "cut") == whole


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("step", [1, 6, 9, STEPS])
def test_asked_to_stop(splits, tmp_path, monkeypatch, whole, name, step):
    """The step is finished and saved, whatever the time between checkpoints."""
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: os.kill(os.getpid(), getattr(signal, name)))
        with pytest.raises(AtomcsiError, match=rf"stopped by {name}; run again to go on at step {step + 1}$"):
            run(splits, tmp_path / "cut", minutes=60.0)
    assert signal.getsignal(getattr(signal, name)) == signal.SIG_DFL
    begun = at_step(monkeypatch, 0, None)
    run(splits, tmp_path / "cut", minutes=60.0)
    assert begun == list(range(step + 1, STEPS + 1))
    assert outcome(tmp_path / "cut") == whole


@pytest.mark.parametrize("step", [1, 5, 12])
def test_killed(splits, tmp_path, monkeypatch, whole, step):
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert in_child(run, splits, tmp_path / "cut") == -signal.SIGKILL
    begun = at_step(monkeypatch, 0, None)
    run(splits, tmp_path / "cut")
    assert begun == list(range(step, STEPS + 1))
    assert outcome(tmp_path / "cut") == whole


def test_killed_while_it_saves(splits, tmp_path, monkeypatch, whole):
    def dies(content, path):
        original(content, path)
        if path.name.startswith(".last.ckpt.") and content["training"]["step"] == 7:
            path.write_bytes(path.read_bytes()[:1000])
            os.kill(os.getpid(), signal.SIGKILL)

    original = torch.save
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", dies)
        assert in_child(run, splits, tmp_path / "cut") == -signal.SIGKILL
    begun = at_step(monkeypatch, 0, None)
    run(splits, tmp_path / "cut")
    assert begun == list(range(7, STEPS + 1))
    assert outcome(tmp_path / "cut") == whole


def test_killed_before_it_saves_the_best_validation(splits, tmp_path, monkeypatch, whole):
    """It is repeated and comes out worse, as rounding may have it: the weights are those of the best that counts."""
    best = min(whole[0], key=lambda record: record["val_loss"])["step"]

    def worse(self):
        if self.step == best:
            self._validated[0] *= 10
        return record(self)

    def dies(self, checkpoint, path, **options):
        if checkpoint["training"]["step"] == best:
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, checkpoint, path, **options)

    record, save = PotentialModule.record_validation, checkpoints.AtomicCheckpoints.save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.AtomicCheckpoints, "save_checkpoint", dies)
        assert in_child(run, splits, tmp_path / "cut") == -signal.SIGKILL
    monkeypatch.setattr(PotentialModule, "record_validation", worse)
    begun = at_step(monkeypatch, 0, None)
    run(splits, tmp_path / "cut")
    assert begun == list(range(best, STEPS + 1))
    run(splits, tmp_path / "uncut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "uncut")
    assert outcome(tmp_path / "cut")[1] != whole[1]


@pytest.mark.parametrize("step", [1, 7, STEPS])
def test_another_process_writes_into_the_same_folder(splits, tmp_path, monkeypatch, whole, step):
    """Such as one that outlived its run; it is of another course."""
    with monkeypatch.context() as patch, pytest.raises(AtomcsiError, match="power"):
        at_step(patch, 9, power_cut)
        run(splits, tmp_path / "other", learning_rate=2e-3)
    foreign = (tmp_path / "other" / "checkpoints" / "last.ckpt").read_bytes()

    def interferes():
        for name in ("last.ckpt", "previous.ckpt", "best.ckpt"):
            (tmp_path / "shared" / "checkpoints" / name).write_bytes(foreign)

    at_step(monkeypatch, step, interferes)
    run(splits, tmp_path / "shared")
    assert outcome(tmp_path / "shared") == whole


def test_another_process_replaces_the_checkpoint_that_was_found(splits, tmp_path, monkeypatch, whole):
    late = (cut_off(splits, tmp_path / "late", 9) / "last.ckpt").read_bytes()
    last = cut_off(splits, tmp_path / "cut", 5) / "last.ckpt"
    original = fit.PowerMeter

    def replaces():
        last.write_bytes(late)
        return original()

    monkeypatch.setattr(fit, "PowerMeter", replaces)
    begun = at_step(monkeypatch, 0, None)
    run(splits, tmp_path / "cut")
    assert begun == list(range(9, STEPS + 1))
    assert outcome(tmp_path / "cut") == whole


@pytest.mark.parametrize("done", [False, True], ids=["cut-off", "done"])
def test_a_checkpoint_of_before_it_held_the_best_weights(splits, tmp_path, monkeypatch, caplog, whole, done):
    """They are beside it."""
    with monkeypatch.context() as patch, pytest.raises(AtomcsiError, match="power"):
        if done:
            patch.setattr(fit.TrainedModel, "__init__", lambda *_: power_cut())
        else:
            at_step(patch, 8, power_cut)
        run(splits, tmp_path / "cut")
    work = tmp_path / "cut" / "checkpoints"
    checkpoint = torch.load(work / "last.ckpt")
    torch.save(checkpoint.pop("best_weights"), work / "best.ckpt")
    torch.save(checkpoint, work / "last.ckpt")
    monkeypatch.setattr(logging.getLogger("atomcsi"), "propagate", True)
    run(splits, tmp_path / "cut")
    assert "best.ckpt: does not say which validation its weights are of" in caplog.text
    assert outcome(tmp_path / "cut") == whole


def test_the_command_says_how_to_go_on(splits, tmp_path, monkeypatch, whole):
    """Exit code 1, which makes Snakemake retry; the same command again ends as if nothing had happened."""
    arguments = [
        "pretrain", "--train", splits["train"].path, "--val", splits["val"].path, "--out", tmp_path / "cut",
        "--backbone", TINY.model_dump_json(), "--settings", SETTINGS.model_dump_json(), "--seed", 3,
        "--device", "cpu", "--log", tmp_path / "log",
    ]  # fmt: skip
    arguments = [str(argument) for argument in arguments]
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert in_child(main, arguments) == 1
    message = (tmp_path / "log").read_text().splitlines()[-1]
    assert message.endswith("error: pretrain train seed 3: stopped by SIGTERM; run again to go on at step 6")
    assert in_child(main, arguments) == 0
    assert outcome(tmp_path / "cut") == whole


def test_reading_ahead_changes_nothing(splits, tmp_path, monkeypatch, whole):
    """Signals go to all processes of a job; workers leave them to the training, which stops when its step is done."""

    def to_all():
        for process in [*multiprocessing.active_children(), multiprocessing.current_process()]:
            os.kill(process.pid, signal.SIGTERM)

    with monkeypatch.context() as patch:
        at_step(patch, 7, to_all)
        with pytest.raises(AtomcsiError, match="stopped by SIGTERM; run again to go on at step 8"):
            run(splits, tmp_path / "cut", workers=2)
    begun = at_step(monkeypatch, 0, None)
    run(splits, tmp_path / "cut", workers=2)
    assert begun[0] == 8
    assert outcome(tmp_path / "cut") == whole


def test_a_killed_worker(splits, tmp_path, monkeypatch, whole, ledger):
    """As the kernel does when memory runs out."""
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL))
        message = r"in step \d, a process that reads ahead was killed, .* \(lower workers=1.*; run again to go on"
        with pytest.raises(AtomcsiError, match=message):
            run(splits, tmp_path / "cut", workers=1)
    run(splits, tmp_path / "cut", workers=0)
    assert outcome(tmp_path / "cut") == whole
    ledger.add("DataLoader worker killed, as for want of memory", "one message at once; goes on at that step", lost=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read(toy_structures, tmp_path, workers):
    """The message is the reader's own, not a traceback of PyTorch's."""
    path = tmp_path / "damaged.lmdb"
    write_structures(path, toy_structures(16), provenance={})
    content = bytearray(path.read_bytes())
    content[content.index(b"toy/5")] ^= 1
    path.write_bytes(content)
    structures = LabelledStructures(StructureLMDB(path), target="forces")
    batches, make = Batches(structures.natoms, SETTINGS), partial(collate, vacuum=4.0)
    with pytest.raises(InputError, match=r"damaged\.lmdb: structure 5: .* checksum is wrong"):
        for batch in list(loader(structures, batches, collate=make, workers=workers)):
            unpacked(batch)


def test_out_of_memory(splits, tmp_path, monkeypatch):
    """Goes on in smaller parts, which give the same but for rounding."""

    def full():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    with monkeypatch.context() as patch:
        at_step(patch, 6, full)
        message = (
            r"in step 6, out of memory; 4 structures of \d+ atoms in a batch \(raise parts=1: .*run again to go on"
        )
        with pytest.raises(AtomcsiError, match=message):
            run(splits, tmp_path / "cut")
    with monkeypatch.context() as patch:
        at_step(patch, 7, full)
        with pytest.raises(AtomcsiError, match=r"in step 7, out of memory; a single structure, \S+, of \d+ atoms"):
            run(splits, tmp_path / "cut", parts=4)
    begun = at_step(monkeypatch, 0, None)
    run(splits, tmp_path / "cut", parts=3)
    assert begun == [step for step in range(7, STEPS + 1) for _ in range(3)]
    curve, _, _ = outcome(tmp_path / "cut")
    assert [record["step"] for record in curve] == [2, 4, 6, 8, 10, 12]


def cut_off(splits, folder, step):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AtomcsiError, match="power"):
        at_step(patch, step, power_cut)
        run(splits, folder)
    return folder / "checkpoints"


def damage(path):
    """Changes one byte in the middle, where weights are."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_no_dead_end(splits, tmp_path, monkeypatch, whole, caplog):
    damage(cut_off(splits, tmp_path / "cut", 7) / "last.ckpt")
    monkeypatch.setattr(logging.getLogger("atomcsi"), "propagate", True)
    begun = at_step(monkeypatch, 0, None)
    run(splits, tmp_path / "cut")
    assert re.search(r"last\.ckpt: .* checksum .* is wrong; going on from the one before it", caplog.text)
    assert begun[0] == 6
    assert outcome(tmp_path / "cut") == whole


def test_checkpoints_that_are_all_damaged(splits, tmp_path):
    work = cut_off(splits, tmp_path / "cut", 7)
    damage(work / "last.ckpt")
    (work / "previous.ckpt").write_bytes((work / "previous.ckpt").read_bytes()[:1000])
    with pytest.raises(InputError, match=r"previous\.ckpt: is no readable checkpoint: .* \(delete .*checkpoints and"):
        run(splits, tmp_path / "cut")
    with pytest.raises(InputError, match=r"last\.ckpt: .* the checksum of .*/data/\d+ is wrong"):
        checkpoints.read_checkpoint(work / "last.ckpt")


def test_a_checkpoint_with_code(tmp_path, ledger):
    torch.save({"training": os.system}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match="is no readable checkpoint"):
        checkpoints.read_checkpoint(tmp_path / "last.ckpt")
    ledger.add("checkpoint with code", "refused by name; nothing was run")


def test_changed_settings_start_afresh(splits, tmp_path):
    cut_off(splits, tmp_path / "a", 9)
    for name in ("a", "b"):
        run(splits, tmp_path / name, learning_rate=2e-3)
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
