"""What every reader of a raw format offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from atomcsi.structure import Structure


class Reader(ABC):
    """Iterates over the structures of a raw dataset, in the source's own units, without holding them all.

    A subclass takes its format's options as keyword arguments after ``root``; the ``reader:`` entry of
    ``config/datasets.yaml`` names them. Whatever is wrong with a file ends in
    :class:`atomcsi.errors.InputError`, which names the file, the record and the mend. Formats that can be read in
    pieces say so with :meth:`pieces` and :meth:`read`: their conversion is parallel, and resumes where it stopped.

    Args:
        root: Folder that holds the dataset's downloaded and unpacked files.
        part: The part that the source itself calls train, validation and so on; None where it has no parts.
    """

    #: Names of the scalar properties that the format can give.
    properties: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, root: Path, *, part: str | None = None) -> None:
        self.root = Path(root)
        self.part = part

    def path(self, name: str) -> Path:
        """Path of a file or folder of the dataset; ``{part}`` in ``name`` stands for the part."""
        return self.root / name.replace("{part}", self.part or "")

    @abstractmethod
    def __iter__(self) -> Iterator[Structure]:
        """Yields the structures in the order of the source."""

    def pieces(self) -> Sequence[Any]:
        """Returns what can be read on its own, in the order of the source; by default the whole is one piece."""
        return [None]

    def read(self, pieces: Sequence[Any]) -> Iterator[Structure]:
        """Yields the structures of some of :meth:`pieces`; all of them together are what iteration yields."""
        return iter(self)
