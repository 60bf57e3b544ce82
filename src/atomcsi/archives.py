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
from typing import IO, Any, Protocol

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
#: Headers that tarfile reads into memory at once; paths and attributes of honest ones take some kilobytes.
_LONG_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_LARGEST_HEADER = 1 << 20
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


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Counted:
    """A stream whose bytes are counted as they are read: those that a decompressor, or a sparse file, makes."""

    def __init__(self, stream: _Readable, count: Callable[[int], None]) -> None:
        self._stream, self._count = stream, count

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self._count(len(content))
        return content


class _Member(tarfile.TarInfo):
    """A member of a tar, or the header before one, whose size is checked before it is read."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _LONG_HEADERS and member.size > _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header grows to more than {_LARGEST_HEADER} bytes")
        return member


class _Unpacking:
    """The unpacking of one archive with what is nested in it.

    Bytes are counted once, where they become more than the archive holds: what is stored as it is takes no more than
    that, and what is decompressed is counted whether a pattern asks for it or not.
    """

    def __init__(self, archive: Path, folder: Path, members: Sequence[str]) -> None:
        self.archive, self.folder, self.members = archive, folder, members
        folder.mkdir(parents=True, exist_ok=True)
        self.size = self.written = 0
        self.member = ""
        self.limit = max(_SMALL, _LARGEST_RATIO * archive.stat().st_size)

    def error(self, problem: str, record: str = "") -> InputError:
        return InputError(self.archive, problem, record=record, mend="delete it and run again")

    def unpack(self, name: str, stream: _Readable, depth: int = 1) -> None:
        """Unpacks an archive that is read from ``stream``; ``name`` tells its format."""
        if depth > _DEEPEST:
            raise self.error(f"cannot be unpacked: archives are nested more than {_DEEPEST} deep", name)
        for member, content in self._zip(stream) if name.endswith(".zip") else self._tar(name, stream):
            target = self._target(member)
            if member.endswith(".zip"):
                with tempfile.TemporaryFile(dir=self.folder) as nested:
                    _copy(content, nested)
                    self.unpack(member, nested, depth + 1)
            elif member.endswith(_ARCHIVES):
                self.unpack(member, content, depth + 1)
            elif any(fnmatchcase(member, pattern) for pattern in self.members):
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    _copy(content, file)
                self.written += 1

    def _tar(self, name: str, stream: _Readable) -> Iterator[tuple[str, _Readable]]:
        # As a stream of tar alone, for tarfile by itself overlooks that a compressed stream has ended early.
        suffix = ".gz" if name.endswith(".tgz") else PurePosixPath(name).suffix
        if suffix in DECOMPRESSORS:
            stream = _Counted(DECOMPRESSORS[suffix](stream, "rb"), self._count)
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as tar:
            for member in tar:
                self.member = member.name
                if not (member.isreg() or member.isdir()):
                    raise self.error("cannot be unpacked: it is a link or a device", member.name)
                if member.isreg():
                    content = tar.extractfile(member)
                    # Holes take no room in the archive, but on the disk.
                    yield member.name, _Counted(content, self._count) if member.issparse() else content

    def _zip(self, stream: IO[bytes]) -> Iterator[tuple[str, _Readable]]:
        with zipfile.ZipFile(stream) as archive:
            for member in archive.infolist():
                self.member = member.filename
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise self.error("cannot be unpacked: it is a link or a device", member.filename)
                self._count(_LEAST_SIZE)
                if not member.is_dir():
                    with archive.open(member) as content:
                        yield member.filename, _Counted(content, self._count)

    def _target(self, member: str) -> Path:
        parts = PurePosixPath(member.lstrip("/")).parts
        if ".." in parts or not parts:
            raise self.error("cannot be unpacked: it would land outside the folder", member)
        return self.folder.joinpath(*parts)

    def _count(self, size: int) -> None:
        self.size += size
        if self.size > self.limit:
            raise self.error(f"cannot be unpacked: it grows to more than {self.limit} bytes", self.member)


def _copy(content: _Readable, file: IO[bytes]) -> None:
    while chunk := content.read(_CHUNK):
        file.write(chunk)
