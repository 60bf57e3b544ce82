"""OC20 S2EF: adsorbates on slabs along relaxations at RPBE, as compressed extended XYZ.

A part is a folder of ``<i>.extxyz.xz``, about 5000 frames each, with ``<i>.txt.xz`` beside them, whose lines read
``random<sid>,frame<fid>,<reference energy>``. Frames carry ``Lattice``, ``energy`` (DFT total energy, eV),
positions, ``move_mask`` (False: held), ``tags`` (0 below the surface, 1 surface, 2 adsorbate) and ``forces``
(minus the gradient, eV/Angstrom). The adsorption energy, which the field learns, is energy minus reference.
``oc20_data_mapping.pkl`` tells what a system is made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

from atomcsi.errors import InputError
from atomcsi.readers.base import Reader
from atomcsi.readers.extxyz import frames
from atomcsi.readers.raw import MEND_RECORD, BulkLabels, files_in, finite_energy, label_of, opened
from atomcsi.structure import Structure

_FRAMES = ".extxyz.xz"


class Oc20Reader(Reader):
    """Reads a part, with the composition of the bulk as the label, or the formula where no mapping is named.

    The code of the paper looks its labels up by ``<sid>`` where the mapping has ``random<sid>``, finds none, and puts
    all structures into one class: sampling at random (``method: random`` in the run config) does the same.

    Args:
        root: Folder of the dataset.
        part: Folder of the files below ``root``, such as ``s2ef_train_2M/s2ef_train_2M``.
        mapping: Path of ``oc20_data_mapping.pkl`` below ``root``, or None.
        total_energy: Keep the DFT total energy instead of the adsorption energy.
    """

    def __init__(
        self,
        root: Path,
        *,
        part: str | None = None,
        mapping: str | None = "oc20_data_mapping.pkl",
        total_energy: bool = False,
    ) -> None:
        super().__init__(root, part=part)
        self.mapping = None if mapping is None else self.path(mapping)
        self.total_energy = total_energy

    def __iter__(self) -> Iterator[Structure]:
        """Yields the frames, file by file, as ``random<sid>/frame<fid>``."""
        return self.read(self.pieces())

    def pieces(self) -> list[Path]:
        """Returns the part's files of frames."""
        return files_in(self.path("{part}"), _FRAMES)

    @cached_property
    def _labels(self) -> BulkLabels | None:
        return None if self.mapping is None else BulkLabels(self.mapping)

    def read(self, pieces: Sequence[Path]) -> Iterator[Structure]:
        """Yields the frames of some files."""
        labels = self._labels
        for path in pieces:
            listing = path.with_name(path.name.removesuffix(_FRAMES) + ".txt.xz")
            with opened(listing) as lines:
                for index, (line, structure) in enumerate(zip_longest(lines, frames(path))):
                    if line is None or structure is None:
                        more = "more" if line is None else "fewer"
                        problem = f"holds {more} frames than {listing.name} has lines"
                        raise InputError(path, problem, mend="fetch both files again")
                    sid, fid, reference = _parse(line, listing, index + 1)
                    source = f"{sid}/{fid}"
                    columns = {"forces": structure.forces, "tags": structure.tags, "move_mask": structure.fixed}
                    if absent := [name for name, array in columns.items() if array is None]:
                        raise InputError(path, f"has no column '{absent[0]}'", record=source, mend=MEND_RECORD)
                    energy = structure.energy - (0.0 if self.total_energy else reference)
                    yield replace(
                        structure,
                        source=source,
                        label=label_of(structure.numbers, path, source) if labels is None else labels[sid],
                        energy=finite_energy(energy, path, source),
                        pbc=(True, True, True),  # OC20 treats its slabs as periodic along the vacuum too
                    )


def _parse(line: str, path: Path, number: int) -> tuple[str, str, float]:
    try:
        sid, fid, reference = line.strip().split(",")
        return sid, fid, float(reference)
    except ValueError as error:
        problem = f"reads '{line.strip()}' instead of random<sid>,frame<fid>,<reference energy>"
        raise InputError(path, problem, record=f"line {number}", mend=MEND_RECORD) from error
