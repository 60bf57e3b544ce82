"""Where a training runs: devices, processes that share its steps, and how often it is saved."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import Tensor

from atomcsi.errors import AtomcsiError
from atomcsi.files import holds_plan, resume_folder
from atomcsi.jobs import process_rank

#: Seconds that processes wait for the first one.
_PATIENCE = 600


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and how a training runs; its result depends on it by rounding at most.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        devices: GPUs, or processes on the CPU, that share each step on a node.
        nodes: Nodes.
        parts: In how many parts a device computes its share of a step, one after the other, to need less memory.
        workers: Processes that read ahead, for each device.
        checkpoint_minutes: Minutes between checkpoints; 0 to write one each step.
    """

    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    parts: int = 1
    workers: int = 0
    checkpoint_minutes: float = 10.0

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.devices * self.nodes

    @property
    def on_gpu(self) -> bool:
        """Whether it trains on GPUs."""
        return self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())

    def trainer_options(self) -> dict[str, Any]:
        """Keyword arguments of Lightning's trainer.

        Raises:
            AtomcsiError: There are not as many GPUs.
        """
        if self.on_gpu and torch.cuda.device_count() < self.devices:
            raise AtomcsiError(f"{self.devices} GPUs are asked for, but there are {torch.cuda.device_count()}")
        options = {
            "accelerator": "gpu" if self.on_gpu else "cpu",
            "devices": self.devices,
            "num_nodes": self.nodes,
            "use_distributed_sampler": False,
            "accumulate_grad_batches": self.parts,
        }
        if self.world > 1:
            # Outputs of a backbone that no head reads have no gradient in a step.
            options["strategy"] = DDPStrategy(
                find_unused_parameters=True, cluster_environment=self._environment(), process_group_backend=None
            )
        elif SLURMEnvironment.detect():
            options["plugins"] = [LightningEnvironment()]
        return options

    def _environment(self) -> LightningEnvironment | SLURMEnvironment | TorchElasticEnvironment:
        """Who starts the processes: torchrun, srun with a task for each, or Lightning."""
        if TorchElasticEnvironment.detect():
            return TorchElasticEnvironment()
        if SLURMEnvironment.detect() and int(os.environ.get("SLURM_NTASKS", 1)) == self.world:
            # What is to be done at a signal is said in atomcsi.training.preemption.
            return SLURMEnvironment(auto_requeue=False)
        if self.nodes > 1:
            raise AtomcsiError(
                f"{self.nodes} nodes need a process for each device, started by torchrun or by srun with"
                f" --ntasks={self.world} --ntasks-per-node={self.devices}"
            )
        return LightningEnvironment()


#: What fits most trainings: one GPU, or one process where there is none.
ONE_DEVICE = Execution()


def shared_folder(folder: Path, plan: Mapping[str, Any]) -> Path:
    """Returns :func:`~atomcsi.files.resume_folder`, which the first process prepares for all.

    Raises:
        AtomcsiError: The first process does not.
    """
    if process_rank() == 0:
        return resume_folder(folder, plan)
    end = time.monotonic() + _PATIENCE
    while not holds_plan(folder, plan):
        if time.monotonic() > end:
            raise AtomcsiError(f"{folder}: the first process has not prepared it within {_PATIENCE} s")
        time.sleep(0.1)
    return folder


def summed(sums: Tensor, strategy: Strategy) -> list[float]:
    """Adds up what each process has, in float64."""
    return strategy.reduce(sums.to(strategy.root_device), reduce_op="sum").tolist()


def gathered(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the state of every process, by rank."""
    if not dist.is_initialized():
        return [state]
    states: list[dict[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(states, state)
    return states
