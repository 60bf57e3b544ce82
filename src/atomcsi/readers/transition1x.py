"""Transition-1x: ``transition1x-release.h5``, 9.6 million frames of nudged elastic bands of 10 000 reactions.

``/{data,train,val,test}/<formula>/<rxnNNNN>/`` holds ``atomic_numbers`` (atoms,), ``positions`` (frames, atoms, 3)
in Angstrom, ``wB97x_6-31G(d).energy`` (frames,) in eV and ``wB97x_6-31G(d).forces`` (frames, atoms, 3) in
eV/Angstrom, minus the gradient. ``data`` is the union of the other three. The subgroups ``reactant``, ``product``
and ``transition_state`` of a reaction single out three geometries and are not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py

from atomcsi.errors import InputError
from atomcsi.readers.base import Reader
from atomcsi.readers.raw import Frames, hdf5, records
from atomcsi.structure import Structure

_NAMES = ("atomic_numbers", "positions", "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces")


class Transition1xReader(Reader):
    """Reads the frames of all reactions of a part.

    Args:
        root: Folder of the dataset.
        part: ``train``, ``val`` or ``test``; None for all.
        file: Path of the HDF5 file below ``root``.
    """

    def __init__(self, root: Path, *, part: str | None = None, file: str = "transition1x-release.h5") -> None:
        super().__init__(root, part=part)
        self.file = self.path(file)

    def __iter__(self) -> Iterator[Structure]:
        """Yields the frames, reaction by reaction, as ``formula/rxnNNNN/index``."""
        return self.read(self.pieces())

    def pieces(self) -> list[str]:
        """Returns the reactions as ``formula/rxnNNNN``."""
        with hdf5(self.file) as file:
            return [reaction for reaction, _ in records(self._group(file))]

    def read(self, pieces: Sequence[str]) -> Iterator[Structure]:
        """Yields the frames of some reactions."""
        with hdf5(self.file) as file:
            group = self._group(file)
            for reaction in pieces:
                yield from Frames.of(group[reaction], _NAMES, self.file, reaction).structures(self.file, reaction)

    def _group(self, file: h5py.File) -> h5py.Group:
        part = self.part or "data"
        if part not in file:
            raise InputError(self.file, f"has no part '{part}'", mend=f"it has: {', '.join(file)}")
        return file[part]
