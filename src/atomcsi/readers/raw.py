"""What the readers share: opening raw files, and checks whose errors name the file and the record."""

from __future__ import annotations

import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import h5py
import numpy as np

from atomcsi.archives import DECOMPRESSORS
from atomcsi.errors import AtomcsiError, InputError
from atomcsi.hdf5_file import refuse_foreign
from atomcsi.structure import MAX_ATOMIC_NUMBER, Structure, hill_formula
from atomcsi.unpickle import load_plain

_DAMAGE = (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, zlib.error)
#: What a user can do about a bad record, about a bad file, and about a missing one.
MEND_RECORD = "fetch the file again, or remove the record"
MEND_FILE = "fetch the file again"
MEND_MISSING = "download and unpack the dataset, or correct its reader's options in the config"


@contextmanager
def naming(path: Path, *more: type[Exception]) -> Iterator[None]:
    """Turns what libraries raise on a missing or damaged file into an InputError that names it.

    Args:
        path: The file that is read in the block.
        more: What the library at hand raises on damage besides the usual errors.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(path, "is missing", mend=MEND_MISSING) from error
    except PermissionError as error:
        raise InputError(path, "cannot be read", mend="ask its owner for the permission") from error
    except (*_DAMAGE, *more) as error:
        raise InputError(path, f"is damaged or cut short: {words(error)}", mend=MEND_FILE) from error


@contextmanager
def parsing(path: Path, record: str, problem: str, mend: str = MEND_RECORD) -> Iterator[None]:
    """Turns whatever a parser raises on a damaged record into an InputError: on foreign bytes that is nearly anything.

    Args:
        path: The file that an error names.
        record: The record that an error names.
        problem: What an error says of the record, before the parser's own words.
        mend: What the user can do about it.
    """
    try:
        yield
    except AtomcsiError:
        raise
    except KeyError as error:
        raise InputError(path, f"{problem}: {error} is missing or unknown", record=record, mend=mend) from error
    except Exception as error:
        raise InputError(path, f"{problem}: {words(error)}", record=record, mend=mend) from error


def words(error: Exception) -> str:
    """Returns what an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def opened(path: Path, mode: str = "rt") -> Iterator[IO[Any]]:
    """Opens a file for reading and, as its suffix tells, decompresses it (``.xz``, ``.gz``, ``.bz2``)."""
    with naming(path), DECOMPRESSORS.get(path.suffix, open)(path, mode) as stream:
        yield stream


@contextmanager
def hdf5(path: Path) -> Iterator[h5py.File]:
    """Opens an HDF5 file for reading."""
    # A damaged shape may ask for more memory than there is.
    with naming(path, KeyError, MemoryError, RuntimeError, TypeError, ValueError), h5py.File(path, "r") as file:
        yield file


def records(group: h5py.Group, prefix: str = "") -> Iterator[tuple[str, h5py.Group]]:
    """Yields the groups below ``group`` that hold datasets, with their names relative to it.

    The name of a record may itself contain slashes, as SMILES do: HDF5 then nests groups.
    """
    for name, child in group.items():
        refuse_foreign(child, group.file, Path(group.file.filename), prefix + name)
        if isinstance(child, h5py.Group):
            if any(isinstance(item, h5py.Dataset) for item in child.values()):
                yield prefix + name, child
            else:
                yield from records(child, f"{prefix}{name}/")


def files_in(folder: Path, suffix: str) -> list[Path]:
    """Returns the files in ``folder`` that end in ``suffix``, in natural order (2 before 10)."""
    files = [path for path in folder.glob("*") if path.name.endswith(suffix)]
    if not files:
        raise InputError(folder, f"holds no *{suffix} file", mend=MEND_MISSING)
    return natural_order(files)


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """Returns files of one folder sorted by name, with 2 before 10."""
    return sorted(paths, key=lambda path: [(len(run), run) for run in re.findall(r"\d+|\D+", path.name)])


def label_of(numbers: np.ndarray, path: Path, record: str) -> str:
    """Returns the molecular formula in Hill order."""
    unknown = (numbers < 1) | (numbers > MAX_ATOMIC_NUMBER)
    if unknown.any():
        problem = f"holds the atomic number {numbers[unknown][0]}, which is no element"
        raise InputError(path, problem, record=record, mend=MEND_RECORD)
    return hill_formula(numbers)


def finite_energy(energy: float, path: Path, record: str) -> float:
    """Returns ``energy`` as a float; for formats in which every structure has one."""
    if not np.isfinite(energy):
        problem = "has an energy that is not finite (NaN or infinite)"
        raise InputError(path, problem, record=record, mend=MEND_RECORD)
    return float(energy)


class Frames(NamedTuple):
    """The same atoms in many frames: arrays, or HDF5 datasets that are read when they are indexed.

    Attributes:
        numbers: Atomic numbers, shape (atoms,).
        positions: Shape (frames, atoms, 3).
        energies: Shape (frames,) or (frames, 1).
        forces: Shape (frames, atoms, 3).
    """

    numbers: np.ndarray | h5py.Dataset
    positions: np.ndarray | h5py.Dataset
    energies: np.ndarray | h5py.Dataset
    forces: np.ndarray | h5py.Dataset

    @classmethod
    def of(cls, source: Mapping[str, Any], names: Iterable[str], path: Path, record: str = "") -> Frames:
        """Takes the four arrays by their ``names`` in ``source`` and checks that their shapes agree."""
        arrays = {name: source.get(name) for name in names}
        for name, array in arrays.items():
            if not hasattr(array, "shape"):
                mend = f"it has: {', '.join(map(str, source))}"
                raise InputError(path, f"has no array '{name}'", record=record, mend=mend)
            if isinstance(array, h5py.Dataset):
                refuse_foreign(array, source.file, path, f"{record}/{name}")
        shapes = [array.shape for array in arrays.values()]
        natoms, nframes = int(np.prod(shapes[0])), int(np.prod(shapes[2]))
        vectors = (nframes, natoms, 3)
        if shapes not in [[(natoms,), vectors, energies, vectors] for energies in ((nframes,), (nframes, 1))]:
            described = ", ".join(f"{name} {shape}" for name, shape in zip(arrays, shapes, strict=True))
            problem = f"has arrays whose shapes disagree: {described}"
            raise InputError(path, problem, record=record, mend=MEND_RECORD)
        return cls(*arrays.values())

    def structures(
        self, path: Path, record: str, *, rows: Iterable[int] | None = None, group: str = "", first: int = 0
    ) -> Iterator[Structure]:
        """Yields the frames with the indices ``rows`` (all by default) as ``record/index``, counted from ``first``."""
        numbers = self.numbers[()].astype(np.int64)
        positions, energies, forces = self.positions[()], self.energies[()].ravel(), self.forces[()]
        label = label_of(numbers, path, record)
        for row in range(len(energies)) if rows is None else rows:
            source = f"{record}/{first + row}"
            yield Structure(
                numbers=numbers,
                positions=positions[row],
                source=source,
                label=label,
                group=group,
                energy=finite_energy(energies[row], path, source),
                forces=forces[row],
            )


class BulkLabels(dict[Any, str]):
    """Composition of the bulk under a slab, by the system's id, from a pickled ``{id: {"bulk_symbols": ...}}``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with naming(path):
            content = load_plain(path)
        try:
            super().__init__({sid: entry["bulk_symbols"] for sid, entry in content.items()})
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(path, "does not map ids to entries with 'bulk_symbols'", mend=MEND_FILE) from error

    def __missing__(self, sid: Any) -> str:
        mend = "fetch the file that belongs to these structures"
        raise InputError(self.path, "has no entry for this system", record=str(sid), mend=mend)
