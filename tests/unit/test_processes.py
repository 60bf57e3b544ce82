"""Trainings that several processes share: on the CPU, with gloo."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from atomcsi.config import BackboneSpec, TrainSettings
from atomcsi.errors import AtomcsiError
from atomcsi.training.module import PotentialModule
from atomcsi.training.processes import Execution
from atomcsi.training.train import pretrain

ROOT = Path(__file__).parents[2]
TINY = BackboneSpec(**yaml.safe_load((ROOT / "tests/data/config/backbones/gemnet-oc-test.yaml").read_text()))
#: Batches of 8, 8 and 1: in the last step one of two processes has nothing of its own.
SETTINGS = TrainSettings(structures=17, epochs=2, batch_size=8, learning_rate=1e-3, clip_norm=1.0, val_interval=0.5)


@pytest.fixture
def splits(toy_lmdb):
    return {name: toy_lmdb(n, name, seed) for name, n, seed in (("train", 20, 0), ("val", 7, 1))}


def run(splits, folder, world=1, parts=1, **changes):
    pretrain(
        [splits["train"]], [splits["val"]], folder, backbone=TINY, settings=SETTINGS.model_copy(update=changes), seed=3,
        execution=Execution(device="cpu", devices=world, parts=parts, checkpoint_minutes=0.0),
    )  # fmt: skip


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def as_torchrun(rank, world, port, queue, function, arguments):
    """Calls a function in a process with the environment that torchrun gives it."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    try:
        queue.put((rank, function(*arguments)))
    except AtomcsiError as error:
        queue.put((rank, str(error)))


def in_processes(world, function, *arguments):
    """What a function returns in each of several processes."""
    context, port = multiprocessing.get_context("fork"), free_port()
    queue = context.Queue()
    processes = [
        context.Process(target=as_torchrun, args=(rank, world, port, queue, function, arguments))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    return [found[rank] for rank in range(world)]


def gradients(splits, folder, world, parts=1, changes=None):
    """Trains, with changed settings, and returns the gradients of every step, before they are clipped."""
    found = []

    def keep(self, optimizer):
        found.append({name: p.grad.numpy().copy() for name, p in self.named_parameters() if p.grad is not None})

    PotentialModule.on_before_optimizer_step = keep
    try:
        run(splits, folder, world, parts, **changes or {})
    finally:
        del PotentialModule.on_before_optimizer_step
    return found


def curve(folder):
    history = json.loads((folder / "model.json").read_text())["history"]
    return [[record[name] for name in ("step", "epoch", "train_loss", "val_loss")] for record in history]


def check_gradients(found, expected):
    """Equal in every step, to 1e-5 of the largest."""
    assert len(found) == len(expected) == 6
    for step, (mine, whole) in enumerate(zip(found, expected, strict=True)):
        scale = max(np.abs(gradient).max() for gradient in whole.values())
        for name in whole:
            np.testing.assert_allclose(mine[name], whole[name], rtol=0, atol=1e-5 * scale, err_msg=f"{step}: {name}")


@pytest.mark.parametrize(
    "changes",
    [{}, {"forces": "gradient"}, {"denoise_sigma": 0.2, "energy_weight": 0.0}],
    ids=["direct", "gradient", "denoising"],
)
def test_two_processes_have_the_gradients_of_one(splits, tmp_path, changes):
    """The same structures, shared by two processes; in the first step to rounding, later to what Adam makes of it."""
    one = gradients(splits, tmp_path / "one", 1, changes=changes)
    two = in_processes(2, gradients, splits, tmp_path / "two", 2, 1, changes)
    assert len(one) == len(two[0]) == len(two[1]) == 6
    for step in range(6):
        scale = max(np.abs(gradient).max() for gradient in one[step].values())
        for name, expected in one[step].items():
            np.testing.assert_allclose(
                two[0][step][name], expected, rtol=0, atol=1e-5 * scale, err_msg=f"{step}: {name}"
            )
            np.testing.assert_array_equal(two[0][step][name], two[1][step][name])
    np.testing.assert_allclose(curve(tmp_path / "two"), curve(tmp_path / "one"), rtol=1e-5)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "README.md",
        "history.csv",
        "model.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("world", [1, 2])
def test_parts_have_the_gradients_of_the_whole(splits, tmp_path, world):
    """Steps of 8, 8 and 1 structures in three parts, some of them empty."""
    one = gradients(splits, tmp_path / "one", 1)
    parts = in_processes(world, gradients, splits, tmp_path / "parts", world, 3)[0]
    check_gradients(parts, one)
    np.testing.assert_allclose(curve(tmp_path / "parts"), curve(tmp_path / "one"), rtol=1e-5)


def stopped(splits, folder, step, number):
    """Trains in two processes, the second of which gets a signal in a step."""
    original = PotentialModule.training_step

    def acts(self, batch, batch_index):
        if self.step + 1 == step and self.global_rank == 1:
            os.kill(os.getpid(), number)
        return original(self, batch, batch_index)

    PotentialModule.training_step = acts
    run(splits, folder, 2)


def weights(folder):
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "model.safetensors").items()}


def test_all_processes_stop_and_go_on_together(splits, tmp_path):
    in_processes(2, run, splits, tmp_path / "whole", 2)
    first, second = in_processes(2, stopped, splits, tmp_path / "cut", 3, signal.SIGTERM)
    assert first.endswith("stopped by a signal to another process; run again to go on at step 4")
    assert second.endswith("stopped by SIGTERM; run again to go on at step 4")
    in_processes(2, run, splits, tmp_path / "cut", 2)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_another_number_of_processes_goes_on(splits, tmp_path):
    """Not to the bit, but with all structures and sums."""
    run(splits, tmp_path / "whole")
    in_processes(2, stopped, splits, tmp_path / "cut", 4, signal.SIGTERM)
    run(splits, tmp_path / "cut")
    np.testing.assert_allclose(curve(tmp_path / "cut"), curve(tmp_path / "whole"), rtol=1e-4)


@pytest.mark.slow
def test_the_command_starts_its_processes(splits, tmp_path):
    command = [
        sys.executable, "-m", "atomcsi.cli", "pretrain", "--train", splits["train"].path, "--val", splits["val"].path,
        "--out", tmp_path / "two", "--backbone", TINY.model_dump_json(), "--settings", SETTINGS.model_dump_json(),
        "--seed", "3", "--device", "cpu", "--devices", "2", "--log", tmp_path / "log",
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    run(splits, tmp_path / "one")
    np.testing.assert_allclose(curve(tmp_path / "two"), curve(tmp_path / "one"), rtol=1e-4)
    lines = defaultdict(int)
    for line in (tmp_path / "log").read_text().splitlines():
        lines[line.split("  ", 2)[-1].split(",")[0]] += 1
    assert lines["pretrain train seed 3: done"] == 1


def test_more_gpus_than_there_are():
    with pytest.raises(AtomcsiError, match="99 GPUs are asked for, but there are"):
        Execution(device="cuda", devices=99).trainer_options()


def test_nodes_without_anybody_to_start_processes(monkeypatch):
    for name in ("SLURM_NTASKS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(AtomcsiError, match="started by torchrun or by srun with --ntasks=8 --ntasks-per-node=4"):
        Execution(device="cpu", devices=4, nodes=2).trainer_options()


def test_generators_differ_between_processes(splits, tmp_path):
    """Dropout must not drop the same in all processes."""
    assert len({tuple(found) for found in in_processes(2, draws, splits, tmp_path / "two")}) == 2


def draws(splits, folder):
    found, original = [], PotentialModule.training_step

    def acts(self, batch, batch_index):
        found.append(torch.rand(()).item())
        return original(self, batch, batch_index)

    PotentialModule.training_step = acts
    run(splits, folder, 2, epochs=1)
    return found
