"""Signals that ask a training to stop: it finishes its step, saves and says how to go on."""

from __future__ import annotations

import signal
import threading
from types import FrameType

#: What SLURM and Snakemake send before they kill.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Notes the signals that arrive from when it listens.

    Attributes:
        signal: Name of the last signal, empty if there was none.
    """

    def __init__(self) -> None:
        self.signal = ""

    def listen(self) -> None:
        """Takes over the signals; in the main thread only, as Python wants it."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
