"""Files that appear whole or not at all, and JSON that says what it is."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomcsi.errors import AtomcsiError, InputError

if TYPE_CHECKING:
    import pandas as pd

_PLAN_SCHEMA = "atomcsi.plan/1"


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` that becomes ``path`` if the block succeeds, and vanishes if it fails.

    A name that starts with a dot and ends in ``.tmp`` marks what a killed process left behind; the next run
    replaces it.

    Raises:
        AtomcsiError: The disk is full, or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        remove(temporary)
        if is_disk_full(error):
            raise AtomcsiError(
                f"{path}: the disk is full, nothing was written (free some space and run again)"
            ) from error
        if isinstance(error, PermissionError):
            raise AtomcsiError(f"{path}: cannot be written: {error.strerror}") from error
        raise


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that no space is left; LMDB and HDF5 only say so in words."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or f"errno = {errno.ENOSPC}" in str(error)


def remove(path: Path) -> None:
    """Removes a file or a folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path | str, schema: str, content: Mapping[str, Any]) -> None:
    """Writes ``content`` with its schema name, atomically and in a stable layout."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"schema": schema, **content}, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path | str, schema: str) -> dict[str, Any]:
    """Reads what :func:`write_json` wrote.

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
    if found != schema:
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
    plan_file = folder / "plan.json"
    wanted = json.loads(json.dumps({"schema": _PLAN_SCHEMA, **plan}))
    try:
        known = read_json(plan_file, _PLAN_SCHEMA)
    except InputError:
        known = None
    if known != wanted:
        remove(folder)
        write_json(plan_file, _PLAN_SCHEMA, plan)
    return folder


def versions(*packages: str) -> dict[str, str]:
    """Returns the installed versions of atomcsi and of the named packages, for provenance."""
    found = {}
    for package in ("atomcsi", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
