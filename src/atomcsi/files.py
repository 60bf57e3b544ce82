"""Files that appear whole or not at all, and JSON that says what it is."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any

from atomcsi.errors import AtomcsiError, InputError

if TYPE_CHECKING:
    import pandas as pd

_PLAN, _PLAN_SCHEMA = "plan.json", "atomcsi.plan/1"
_DAY = 24 * 3600


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` that becomes ``path`` if the block succeeds, and vanishes if it fails.

    The temporary path is this process's own: of several that write the same file at once each writes all of it, and
    the last one stays. What a killed process left behind is removed by the next one that writes the file.

    Raises:
        AtomcsiError: The disk is full or fails, or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}@{gethostname()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".{escape(path.name)}.*@*.tmp"):
            if leftover == temporary or not _may_be_written(leftover):
                remove(leftover)
        yield temporary
        if not temporary.is_dir():
            _settle(temporary)
        temporary.replace(path)
        with suppress(OSError):  # not all file systems can do that with a folder, and the file is whole either way
            _settle(path.parent)
    except BaseException as error:
        problem = "" if isinstance(error, AtomcsiError) else _disk_problem(error, temporary)
        with suppress(OSError):  # what went wrong first is said
            remove(temporary)
        if problem:
            raise AtomcsiError(f"{path}: {problem}") from error
        raise


def _settle(path: Path) -> None:
    """Waits until the disk has a file or a folder: a power cut must not leave a name without its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _may_be_written(temporary: Path) -> bool:
    """Whether a process may still write this temporary file: one that lives, or one of another host, of this day."""
    process, _, host = temporary.name.removesuffix(".tmp").rpartition("@")
    if host != gethostname():
        with suppress(FileNotFoundError):
            return time.time() - temporary.stat().st_mtime < _DAY
        return False
    try:
        os.kill(int(process.rpartition(".")[2]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is another user's
        return True
    return True


def _disk_problem(error: BaseException, temporary: Path) -> str:
    """Says what an error on writing ``temporary`` tells of the disk; empty if nothing."""
    if not isinstance(error, Exception):
        return ""
    for code in (errno.EACCES, errno.EPERM, errno.EROFS):
        if _means(error, (code,)):
            # It may be another file that is at fault, such as one that is read meanwhile.
            culprit = getattr(error, "filename", None) or str(temporary)
            where = "" if culprit == str(temporary) else f": {culprit}"
            return f"cannot be written: {os.strerror(code)}{where}"
    full, failed = (errno.ENOSPC, errno.EDQUOT), (errno.EIO,)
    # LMDB reports as failed what it has room for only in part, and PyTorch says nothing of the disk.
    if _means(error, full) or not _can_grow(temporary):
        return "the disk is full, nothing was written (free some space and run again)"
    if _means(error, failed):
        return f"cannot be written: {error} (check the disk; nothing was written)"
    return ""


def _means(error: BaseException, codes: tuple[int, ...]) -> bool:
    """Whether an error is one of the system's with these codes; LMDB and HDF5 only say so in words."""
    if isinstance(error, OSError) and error.errno in codes:
        return True
    return any(os.strerror(code) in str(error) or f"errno = {code}," in str(error) for code in codes)


def _can_grow(path: Path) -> bool:
    """Whether the disk takes another megabyte, tried out: what it says of its free space leaves out quotas."""
    try:
        with path.open("ab") as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return not _means(error, (errno.ENOSPC, errno.EDQUOT))
    return True


def remove(path: Path) -> None:
    """Removes a file or a folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():  # a read-only disk refuses to remove even what is not there
        path.unlink(missing_ok=True)


def digest(path: Path, algorithm: str) -> str:
    """Returns the hex digest of a file's content; ``algorithm`` as hashlib names it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def write_json(path: Path | str, schema: str, content: Mapping[str, Any]) -> None:
    """Writes ``content`` with its schema name, atomically and in a stable layout."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps({"schema": schema, **content}, indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )


def read_json(path: Path | str, schema: str | None) -> Any:
    """Reads what :func:`write_json` wrote.

    Args:
        path: The file.
        schema: The schema that it must hold; None for any JSON.

    Raises:
        InputError: The file is missing, is no JSON, or holds another schema.
    """
    mend = "delete it and run again"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(path, "is missing") from error
    except ValueError as error:
        raise InputError(path, f"is no JSON: {error}", mend=mend) from error
    found = content.get("schema") if isinstance(content, dict) else None
    if schema is not None and found != schema:
        raise InputError(path, f"holds the schema '{found}' where '{schema}' is needed", mend=mend)
    return content


def write_table(path: Path | str, table: pd.DataFrame) -> None:
    """Writes a table as CSV, atomically; numbers keep all their digits."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def resume_folder(folder: Path, plan: Mapping[str, Any]) -> Path:
    """Returns ``folder`` with what an interrupted run of the same ``plan`` left in it, else empty.

    Args:
        folder: Scratch folder of a long step, beside its outputs; the step removes it when it is done.
        plan: Everything that the result depends on; kept in ``plan.json`` inside.
    """
    if not holds_plan(folder, plan):
        remove(folder)
        write_json(folder / _PLAN, _PLAN_SCHEMA, plan)
    return folder


def holds_plan(folder: Path, plan: Mapping[str, Any]) -> bool:
    """Whether :func:`resume_folder` has prepared a folder for this plan."""
    try:
        known = read_json(folder / _PLAN, _PLAN_SCHEMA)
    except InputError:
        return False
    return known == json.loads(json.dumps({"schema": _PLAN_SCHEMA, **plan}))


def versions(*packages: str) -> dict[str, str]:
    """Returns the installed versions of atomcsi and of the named packages, for provenance."""
    found = {}
    for package in ("atomcsi", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
