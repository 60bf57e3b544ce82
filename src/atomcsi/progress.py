"""Progress of a step: one line now and then, on the terminal and in the job's log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sized
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")
S = TypeVar("S", bound=Sized)
logger = logging.getLogger(__name__)


class Progress:
    """Logs how far a step is, how fast, and when it will end.

    Lines rather than a bar: several jobs share one terminal, and logs of clusters are files.

    Args:
        step: What runs, such as ``embed ani1x-mini``.
        total: How many units there are; None if unknown.
        unit: What is counted.
        done: Units that an earlier, interrupted run has done.
        every: Seconds between lines.
    """

    def __init__(self, step: str, *, total: int | None = None, unit: str, done: int = 0, every: float = 5.0) -> None:
        self.step, self.total, self.unit, self.done, self.every = step, total, unit, done, every
        self._start = self._last = time.monotonic()
        self._resumed_at = done
        if done:
            logger.info("%s: resumes at %d of %s %s", step, done, total, unit)

    def advance(self, units: int = 1, note: str = "") -> None:
        """Counts ``units`` as done; logs a line if the last one is old enough."""
        self.done += units
        now = time.monotonic()
        if now - self._last >= self.every:
            self._last = now
            logger.info("%s", self.line(note))

    def line(self, note: str = "") -> str:
        """Returns the current state in words."""
        rate = (self.done - self._resumed_at) / max(time.monotonic() - self._start, 1e-9)
        words = [f"{self.step}: {self.done}"]
        if self.total:
            words[0] += f" of {self.total}"
        words[0] += f" {self.unit}"
        words.append(f"{rate:.3g}/s")
        if self.total and rate > 0:
            words.append(f"{_clock((self.total - self.done) / rate)} left")
        if note:
            words.append(note)
        return ", ".join(words)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yields ``items``, each counted as one unit, and logs the end."""
        for item in items:
            yield item
            self.advance()
        self.finish()

    def counting(self, batches: Iterable[S]) -> Iterator[S]:
        """Yields ``batches``, each counted as as many units as it is long."""
        for batch in batches:
            yield batch
            self.advance(len(batch))

    def finish(self, note: str = "") -> None:
        """Logs that the step is done and what it took."""
        words = f"{self.step}: done, {self.done} {self.unit} in {_clock(time.monotonic() - self._start)}"
        logger.info("%s", f"{words}, {note}" if note else words)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
