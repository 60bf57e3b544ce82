"""Archives, unpacked so that nothing in them can do harm.

Only files and folders leave an archive: links, devices and names that would land outside the folder end in an error,
and so does an archive that grows far beyond its own size.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Any

from atomcsi.errors import AtomcsiError, InputError

#: Ending of a compressed file's name -> what opens it.
DECOMPRESSORS: Mapping[str, Callable[..., IO[Any]]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_ARCHIVES = (*_TARS, ".zip")
_CHUNK = 1 << 20
#: Text of positions and forces compresses to a tenth, zeros to a thousandth; small archives may be anything.
_LARGEST_RATIO, _SMALL = 200, 1 << 30
#: An empty file costs room too.
_LEAST_SIZE = 512
_DEEPEST = 4
#: What the system says of a name that is too long, or of a file where another member needs a folder.
_BAD_NAMES = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def unpack(archive: Path, folder: Path, members: Sequence[str] = ("*",)) -> None:
    """Unpacks an archive (``.zip``, ``.tar``, ``.tar.gz``, ``.tgz``, ``.tar.bz2``, ``.tar.xz``) into ``folder``.

    Archives inside it are unpacked into ``folder`` too, on the way, without being written to disk themselves; only
    a zip in an archive, which is read back and forth, lies there for as long as that takes.

    Args:
        archive: The archive.
        folder: Where its members go.
        members: Patterns of the members to unpack (``*`` also stands for slashes).

    Raises:
        InputError: The archive is damaged, tries to do harm, or has no member that matches.
        AtomcsiError: The disk is full.
    """
    unpacking = _Unpacking(archive, folder, members)
    try:
        with archive.open("rb") as stream:
            unpacking.unpack(archive.name, stream)
    except AtomcsiError:
        raise
    except Exception as error:  # damaged archives raise nearly anything
        number = error.errno if isinstance(error, OSError) else None
        if number in _FULL:
            raise AtomcsiError(f"{archive}: the disk is full (free some space and run again)") from error
        if number is not None and number not in _BAD_NAMES:
            raise
        raise unpacking.error(f"cannot be unpacked: {error}") from error
    if not unpacking.written:
        raise unpacking.error(f"holds no member that matches {', '.join(members)}")


class _Unpacking:
    """The unpacking of one archive with what is nested in it."""

    def __init__(self, archive: Path, folder: Path, members: Sequence[str]) -> None:
        self.archive, self.folder, self.members = archive, folder, members
        folder.mkdir(parents=True, exist_ok=True)
        self.size = self.written = 0
        self.limit = max(_SMALL, _LARGEST_RATIO * archive.stat().st_size)

    def error(self, problem: str, record: str = "") -> InputError:
        return InputError(self.archive, problem, record=record, mend="delete it and run again")

    def unpack(self, name: str, stream: IO[bytes], depth: int = 1) -> None:
        """Unpacks an archive that is read from ``stream``; ``name`` tells its format."""
        if depth > _DEEPEST:
            raise self.error(f"cannot be unpacked: archives are nested more than {_DEEPEST} deep", name)
        for member, content in self._zip(stream) if name.endswith(".zip") else self._tar(name, stream):
            target = self._target(member)
            if member.endswith(".zip"):
                with tempfile.TemporaryFile(dir=self.folder) as nested:
                    self._copy(member, content, nested)
                    self.unpack(member, nested, depth + 1)
            elif member.endswith(_ARCHIVES):
                self.unpack(member, content, depth + 1)
            elif any(fnmatchcase(member, pattern) for pattern in self.members):
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    self._copy(member, content, file)
                self.written += 1

    def _tar(self, name: str, stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
        # As a stream of tar alone, for tarfile by itself overlooks that a compressed stream has ended early.
        suffix = ".gz" if name.endswith(".tgz") else PurePosixPath(name).suffix
        plain = DECOMPRESSORS[suffix](stream, "rb") if suffix in DECOMPRESSORS else stream
        with tarfile.open(fileobj=plain, mode="r|") as tar:
            for member in tar:
                if not (member.isreg() or member.isdir()):
                    raise self.error("cannot be unpacked: it is a link or a device", member.name)
                self._account(_LEAST_SIZE, member.name)
                if member.isreg():
                    yield member.name, tar.extractfile(member)

    def _zip(self, stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
        with zipfile.ZipFile(stream) as archive:
            for member in archive.infolist():
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise self.error("cannot be unpacked: it is a link or a device", member.filename)
                self._account(_LEAST_SIZE, member.filename)
                if not member.is_dir():
                    with archive.open(member) as content:
                        yield member.filename, content

    def _target(self, member: str) -> Path:
        parts = PurePosixPath(member.lstrip("/")).parts
        if ".." in parts or not parts:
            raise self.error("cannot be unpacked: it would land outside the folder", member)
        return self.folder.joinpath(*parts)

    def _copy(self, member: str, content: IO[bytes], file: IO[bytes]) -> None:
        while chunk := content.read(_CHUNK):
            self._account(len(chunk), member)
            file.write(chunk)

    def _account(self, size: int, member: str) -> None:
        self.size += size
        if self.size > self.limit:
            raise self.error(f"cannot be unpacked: it grows to more than {self.limit} bytes", member)
