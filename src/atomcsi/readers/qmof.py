"""QMOF: some 20 000 metal-organic frameworks, relaxed at PBE-D3(BJ), as two lists in JSON.

``qmof.json`` has for every framework ``qmof_id`` and ``outputs.pbe``, in eV; ``qmof_structure_data.json`` has, in the
same order, ``qmof_id`` and ``structure`` as pymatgen writes it. Energies are those of the relaxed structures, so
there are no forces.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from atomcsi.errors import InputError
from atomcsi.readers.base import Reader
from atomcsi.readers.crystals import crystal, items
from atomcsi.readers.raw import MEND_FILE, MEND_RECORD, parsing
from atomcsi.structure import Structure


class QmofReader(Reader):
    """Reads the frameworks with their PBE band gap (eV) and the energy as ``energy_total`` (eV).

    Args:
        root: Folder of the dataset.
        part: Not used: the files have no parts.
        targets: Path of ``qmof.json`` below ``root``.
        structures: Path of ``qmof_structure_data.json`` below ``root``.
    """

    properties = frozenset({"bandgap", "energy_total"})

    def __init__(
        self,
        root: Path,
        *,
        part: str | None = None,
        targets: str = "qmof_database/qmof.json",
        structures: str = "qmof_database/qmof_structure_data.json",
    ) -> None:
        super().__init__(root, part=part)
        self.targets = self.path(targets)
        self.structures = self.path(structures)

    def __iter__(self) -> Iterator[Structure]:
        """Yields the frameworks in the order of the files, by their ids."""
        for target, entry in zip_longest(items(self.targets, "item"), items(self.structures, "item")):
            if target is None or entry is None:
                problem = f"has {'more' if target is None else 'fewer'} frameworks than {self.targets.name}"
                raise InputError(self.structures, problem, mend=MEND_FILE)
            name = _id(target, self.targets)
            if _id(entry, self.structures) != name:
                problem = f"is in another place in {self.targets.name}"
                raise InputError(self.structures, problem, record=_id(entry, self.structures), mend=MEND_FILE)
            with parsing(self.targets, name, "has no outputs.pbe"):
                pbe = target["outputs"]["pbe"]
                properties = {key: float(pbe[key]) for key in self.properties}
            with parsing(self.structures, name, "has no structure"):
                structure = entry["structure"]
            yield crystal(structure, self.structures, name, properties=properties)


def _id(entry: Any, path: Path) -> str:
    if not isinstance(entry, dict) or "qmof_id" not in entry:
        raise InputError(path, "holds an entry without a 'qmof_id'", mend=MEND_RECORD)
    return str(entry["qmof_id"])
