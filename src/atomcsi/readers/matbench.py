"""MatBench's structure tasks: crystals with one target each, as a data frame in ``.json.gz``.

``columns`` names ``structure`` and the target, ``data`` has a row ``[structure, target]`` per crystal, with the
structure as pymatgen writes it. The target's unit is the task's; ``is_metal`` is true or false. MatBench's folds go
by the rows' order, within true and false for ``is_metal``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from atomcsi.errors import InputError
from atomcsi.readers.base import Reader
from atomcsi.readers.crystals import crystal, items
from atomcsi.readers.raw import MEND_FILE, parsing
from atomcsi.structure import Structure


class MatbenchReader(Reader):
    """Reads the crystals of a task; the property has the name of the target's column, and 1 stands for true.

    Args:
        root: Folder of the dataset.
        part: Not used: the file has no parts.
        file: Path of the ``.json.gz`` below ``root``.
    """

    properties = frozenset(
        {"last phdos peak", "n", "exfoliation_en", "log10(G_VRH)", "log10(K_VRH)", "e_form", "gap pbe", "is_metal"}
    )

    def __init__(self, root: Path, *, part: str | None = None, file: str) -> None:
        super().__init__(root, part=part)
        self.file = self.path(file)

    def __iter__(self) -> Iterator[Structure]:
        """Yields the crystals in order as ``<row>``, from 1 as in MatBench's ids; the group is a class's name."""
        columns = next(items(self.file, "columns"), None)
        if not isinstance(columns, list) or len(columns) != 2 or columns[0] != "structure":
            raise InputError(self.file, f"has the columns {columns}, not a structure and its target", mend=MEND_FILE)
        target = columns[1]
        row = 0
        for row, entry in enumerate(items(self.file, "data.item"), 1):
            with parsing(self.file, f"row {row}", "has no structure and target"):
                structure, value = entry
                number = float(value)
            group = str(value) if isinstance(value, bool) else ""
            yield crystal(structure, self.file, str(row), properties={target: number}, group=group)
        if not row:
            raise InputError(self.file, "holds no rows", mend=MEND_FILE)
