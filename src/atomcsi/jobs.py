"""What a Snakemake script needs around its one library call."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atomcsi.errors import AtomcsiError

#: Parameters of mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@contextmanager
def job(log: str | Path | None = None) -> Iterator[None]:
    """Runs a step with progress on the terminal and everything in its log file.

    An error that the user can mend ends the process with one message; any other error also leaves its traceback
    in the log, and only its last line on the terminal if there is a log to read. Of several processes that share a
    step, the first one tells of progress, and all of errors.

    Args:
        log: The step's log file.
    """
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    handlers: list[logging.Handler] = [terminal]
    if log:
        try:
            Path(log).parent.mkdir(parents=True, exist_ok=True)
            if process_rank() == 0:
                Path(log).write_text("", encoding="utf-8")
            file = logging.FileHandler(log, mode="a", encoding="utf-8")
        except OSError as error:
            sys.exit(f"error: {log}: cannot be written: {error.strerror}")
        file.setFormatter(logging.Formatter("%(asctime)s  %(name)s  %(message)s"))
        handlers.append(file)
    logger = logging.getLogger("atomcsi")
    logger.setLevel(logging.INFO if process_rank() == 0 else logging.ERROR)
    logger.handlers[:] = handlers
    logger.propagate = False
    try:
        yield
    except AtomcsiError as error:
        logger.error("error: %s", error)
        sys.exit(1)
    except MemoryError:
        logger.error("error: out of memory (lower the batch size or give the job more memory)")
        sys.exit(1)
    except Exception as error:
        logger.error("error: %s: %s%s", type(error).__name__, error, f" (traceback in {log})" if log else "")
        if log:
            with Path(log).open("a", encoding="utf-8") as stream:
                traceback.print_exc(file=stream)
        else:
            traceback.print_exc()
        sys.exit(1)
    finally:
        for handler in handlers:
            handler.close()


def process_rank() -> int:
    """This process's number among those that share a step, as torchrun, Lightning or srun tell it; 0 if alone."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name])
    return 0


def set_threads(threads: int) -> None:
    """Limits every numerical library to the threads that Snakemake granted; call before they are used."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Lets this process keep memory that it frees, where the C library is glibc; call before large arrays are made.

    Networks without gradients free and allocate the same megabytes all the time. glibc would return each to the
    system, which then has to clear its pages again: up to a third of the time. See mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
