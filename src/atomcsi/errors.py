"""Errors that a user can mend, each with one message that says how."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import partial
from pathlib import Path


class AtomcsiError(Exception):
    """Base of every error whose message is meant for the user; commands print it without a traceback."""


class ConfigError(AtomcsiError):
    """A config entry is wrong: the message names file, line, field and, where possible, the likely meaning."""


class InputError(AtomcsiError):
    """A file, or a record in it, cannot be used.

    Args:
        path: The file at fault.
        problem: What is wrong with it.
        record: The record at fault, in the file's own naming; empty if the whole file is meant.
        mend: What the user can do about it.
    """

    def __init__(self, path: Path | str, problem: str, *, record: str = "", mend: str = "") -> None:
        self.path, self.problem, self.record, self.mend = str(path), problem, record, mend
        where = f"{path}: {record}" if record else f"{path}"
        super().__init__(f"{where}: {problem}" + (f" ({mend})" if mend else ""))

    def __reduce__(self) -> tuple[object, ...]:
        """Lets the error cross from a worker process to its parent."""
        return partial(InputError, record=self.record, mend=self.mend), (self.path, self.problem)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the known word closest to ``word``, else the list of known words."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if known else ""
