"""OC22 S2EF-total: adsorbates on oxide slabs along relaxations at PBE+U, as LMDBs of pickled ``Data`` objects.

The layout is that of :mod:`atomcsi.readers.pyg_lmdb`, with DFT total energies, ``sid`` and ``fid``.
``oc22_metadata.pkl`` tells what a system is made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from atomcsi.errors import InputError
from atomcsi.readers.base import Reader
from atomcsi.readers.pyg_lmdb import entries, structure_of
from atomcsi.readers.raw import MEND_RECORD, BulkLabels, files_in, finite_energy, label_of
from atomcsi.structure import Structure


class Oc22Reader(Reader):
    """Reads a part, with the composition of the bulk as the label, or the formula where there is no metadata.

    Args:
        root: Folder of the dataset.
        part: ``train``, ``val_id`` or ``val_ood``.
        folder: Folder of the part's LMDBs below ``root``; ``{part}`` stands for ``part``.
        metadata: Path of ``oc22_metadata.pkl`` below ``root``, or None.
    """

    def __init__(
        self,
        root: Path,
        *,
        part: str | None = None,
        folder: str = "s2ef_total_train_val_test_lmdbs/data/oc22/s2ef-total/{part}",
        metadata: str | None = "oc22_metadata.pkl",
    ) -> None:
        super().__init__(root, part=part)
        self.folder = self.path(folder)
        self.metadata = None if metadata is None else self.path(metadata)

    def __iter__(self) -> Iterator[Structure]:
        """Yields the structures, LMDB by LMDB, as ``sid/fid``."""
        return self.read(self.pieces())

    def pieces(self) -> list[Path]:
        """Returns the part's LMDBs."""
        return files_in(self.folder, ".lmdb")

    @cached_property
    def _labels(self) -> BulkLabels | None:
        return None if self.metadata is None else BulkLabels(self.metadata)

    def read(self, pieces: Sequence[Path]) -> Iterator[Structure]:
        """Yields the structures of some LMDBs."""
        labels = self._labels
        for path in pieces:
            for key, data in entries(path):
                structure = structure_of(data, path, key)
                sid, fid = (_integer(data, name, path, key) for name in ("sid", "fid"))
                if structure.forces is None:
                    raise InputError(path, "has no attribute 'force'", record=key, mend=MEND_RECORD)
                yield replace(
                    structure,
                    source=f"{sid}/{fid}",
                    label=label_of(structure.numbers, path, key) if labels is None else labels[sid],
                    energy=finite_energy(structure.energy, path, key),
                )


def _integer(data: dict[str, Any], name: str, path: Path, key: str) -> int:
    try:
        return int(data[name])
    except (KeyError, TypeError, ValueError) as error:
        problem = f"has no attribute '{name}' that is a whole number"
        raise InputError(path, problem, record=key, mend=MEND_RECORD) from error
