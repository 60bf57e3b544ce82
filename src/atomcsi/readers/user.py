"""Structures that users bring, in whatever format the field has, in eV and Angstrom.

Known by the end of a file's name:

- ``.extxyz``, ``.xyz``, also compressed (``.xz``, ``.gz``, ``.bz2``);
- ``.traj``, ASE's trajectories, and ``.db``, its databases;
- ``.aselmdb``, fairchem 2's databases;
- ``.lmdb``, our own or pickled ``Data`` of fairchem 1 and JMP, told apart by their content;
- ``.cif``, ``.pdb``, ``.vasp``, ``POSCAR``, ``CONTCAR``.

A folder stands for all its files of one of these kinds, in natural order. A folder of several kinds is refused: as a
rule it holds the same structures twice. Other files in it (notes, hashes) and its subfolders are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from atomcsi.errors import InputError
from atomcsi.lmdb_file import LmdbFile
from atomcsi.readers import ase_files, pyg_lmdb
from atomcsi.readers.ase_db import aselmdb_structures, sqlite_structures
from atomcsi.readers.base import Reader
from atomcsi.readers.extxyz import frames
from atomcsi.readers.raw import MEND_FILE, MEND_RECORD, label_of, natural_order
from atomcsi.structure import Structure
from atomcsi.structure_lmdb import StructureLMDB


def _lmdb_structures(path: Path) -> Iterator[Structure]:
    metadata = LmdbFile(path, mend=MEND_FILE).values().get(b"metadata", b"")
    return iter(StructureLMDB(path)) if bytes(metadata[:20]) == b'{"schema": "atomcsi.' else pyg_lmdb.structures(path)


_KINDS: Mapping[str, Callable[[Path], Iterator[Structure]]] = {
    ".aselmdb": aselmdb_structures,
    ".db": sqlite_structures,
    ".extxyz": frames,
    ".lmdb": _lmdb_structures,
    ".traj": ase_files.trajectory,
    ".xyz": frames,
    **{suffix: partial(ase_files.structures, format_=name) for suffix, name in ase_files.FORMATS.items()},
}
_COMPRESSED = (".bz2", ".gz", ".xz")
_VASP_NAMES = ("POSCAR", "CONTCAR")


def open_structures(path: Path | str) -> Reader:
    """Opens a file or folder of structures in any of the formats of this module.

    Args:
        path: The file or folder; energies in eV, lengths in Angstrom.

    Returns:
        An iterable of structures with the source ``<file name>/<index>``, which reads them one by one, and anew each
        time it is iterated. Labels and groups are formulae; our own ``.lmdb`` keeps its own, and its properties.

    Raises:
        InputError: There is no such file, or none of a known format. On iteration: a structure is damaged, named
            by its index, or there are none.
    """
    path = Path(path)
    reader = UserReader(path.parent, file=path.name)
    reader.pieces()  # says at once what is wrong with the path
    return reader


class UserReader(Reader):
    """Reads a file or a folder in one of the formats of this module.

    Args:
        root: Folder of the dataset.
        part: Stands for ``{part}`` in ``file``.
        file: Path of the file or folder below ``root``.
    """

    def __init__(self, root: Path, *, part: str | None = None, file: str) -> None:
        super().__init__(root, part=part)
        self.file = self.path(file)

    def __iter__(self) -> Iterator[Structure]:
        """Yields the structures in order, as ``<file name>/<index>`` or ``part/<file name>/<index>``."""
        return self.read(self.pieces())

    def pieces(self) -> list[Path]:
        """Returns the files that are read, in natural order.

        Raises:
            InputError: There are none, or of several kinds.
        """
        known = f"known: {', '.join(sorted(_KINDS))}; .xyz and .extxyz also with {', '.join(_COMPRESSED)}"
        if not self.file.exists():
            raise InputError(self.file, "is missing", mend="correct the path")
        if not self.file.is_dir():
            if _kind(self.file) is None:
                raise InputError(self.file, "has no ending that tells its format", mend=known)
            return [self.file]
        files = [path for path in self.file.iterdir() if path.is_file() and _kind(path)]
        kinds = sorted({_kind(path) for path in files})
        if not kinds:
            raise InputError(self.file, "holds no file of a known format", mend=known)
        if len(kinds) > 1:
            raise InputError(self.file, f"holds files of several formats: {', '.join(kinds)}", mend="name one file")
        return natural_order(files)

    def read(self, pieces: Sequence[Path]) -> Iterator[Structure]:
        """Yields the structures of some files."""
        for path in pieces:
            yield from self._structures(path)

    def _structures(self, path: Path) -> Iterator[Structure]:
        prefix = f"{self.part}/{path.name}" if self.part else path.name
        index = -1
        for index, structure in enumerate(_KINDS[_kind(path)](path)):
            if problem := structure.problem():
                raise InputError(path, problem, record=f"structure {index}", mend=MEND_RECORD)
            label = structure.label or label_of(structure.numbers, path, f"structure {index}")
            yield replace(structure, source=f"{prefix}/{index}", label=label, group=structure.group or label)
        if index < 0:
            raise InputError(path, "holds no structures", mend="write it again")


def _kind(path: Path) -> str | None:
    """Returns the ending that tells the format of a file, None if there is none."""
    if path.name.startswith(_VASP_NAMES):
        return ".vasp"
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        return next((suffix for suffix in suffixes[-2:-1] if suffix in (".extxyz", ".xyz")), None)
    return next((suffix for suffix in suffixes[-1:] if suffix in _KINDS), None)
