"""What a training that fails for want of memory, or of a process, tells its user."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from atomcsi.errors import AtomcsiError
from atomcsi.training.module import PotentialModule
from atomcsi.training.processes import Execution

#: What PyTorch says where it has no error of its own.
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED")
_DEAD_WORKER = re.compile(r"DataLoader worker \(pid")
_DEAD_PROCESS = re.compile(r"Connection closed by peer|Connection reset by peer|NCCL|gloo", re.IGNORECASE)


@contextmanager
def explained(module: PotentialModule, execution: Execution) -> Iterator[None]:
    """Turns what a lack of memory, or the death of a process, looks like into one message that says what to do.

    Raises:
        AtomcsiError: There is too little memory, or a process has died.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _too_large(module, execution) from error
    except RuntimeError as error:
        if _NO_MEMORY.search(str(error)):
            raise _too_large(module, execution) from error
        if _DEAD_WORKER.search(str(error)):
            raise _worker_died(module, execution) from error
        if execution.world > 1 and _DEAD_PROCESS.search(str(error)):
            raise _stopped(module, "another process that shares the steps has ended (see its own message)") from error
        raise
    except (ConnectionError, EOFError) as error:
        # A worker that dies while it hands over a batch.
        if execution.workers == 0:
            raise
        raise _worker_died(module, execution) from error


def _worker_died(module: PotentialModule, execution: Execution) -> AtomcsiError:
    return _stopped(
        module,
        f"a process that reads ahead was killed, probably for want of memory (lower workers={execution.workers}, or"
        " give the job more memory)",
    )


def _too_large(module: PotentialModule, execution: Execution) -> AtomcsiError:
    batch = module.batch
    size = "" if batch is None else f"; {len(batch.atoms)} structures of {len(batch.atoms.numbers)} atoms in a batch"
    mend = f"raise parts={execution.parts}: a step is then computed in more, smaller parts, with the same result"
    if batch is not None and len(batch.atoms) == 1:
        size = f"; a single structure, {batch.sources[0]}, of {len(batch.atoms.numbers)} atoms"
        mend = "use a device with more memory, or a smaller backbone"
    return _stopped(module, f"out of memory{size} ({mend})")


def _stopped(module: PotentialModule, problem: str) -> AtomcsiError:
    return AtomcsiError(
        f"{module.progress.step}: in step {module.step + 1}, {problem}; run again to go on from the last checkpoint"
    )
