"""Raw files: fetched from their publisher or taken from the package, and never used before their hash is checked."""

from __future__ import annotations

import logging
import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pooch
import requests

from atomcsi.config import SourceFile
from atomcsi.errors import AtomcsiError, InputError
from atomcsi.files import atomic_path, digest, read_json, remove, write_json

SCHEMA = "atomcsi.raw/1"
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
logger = logging.getLogger(__name__)


def fetch_files(files: Sequence[SourceFile], name: str, folder: Path, root: Path, manifest: Path) -> None:
    """Puts all files of a dataset into ``folder``, unpacked where the entry says so, and writes a manifest.

    Files that are there with the right hash are kept, so an interrupted run goes on where it stopped. Unless the
    manifest is that of the same files, everything else in ``folder`` is removed: readers take what they find there,
    and must not find members of an earlier archive. An entry without files leaves the folder to its user.

    Args:
        files: The files of the dataset's catalogue entry.
        name: The dataset's id.
        folder: Where they go.
        root: What packaged files' paths are relative to.
        manifest: The JSON file that says that all is there; written last.

    Raises:
        InputError: A file has the wrong hash, or an archive cannot be unpacked.
        AtomcsiError: A download failed.
    """
    content = {"dataset": name, "files": [file.model_dump(mode="json") for file in files]}
    try:
        unchanged = read_json(manifest, SCHEMA).get("files") == content["files"]
    except InputError:
        unchanged = False
    if files and not unchanged:
        remove(manifest)
        for path in list(folder.glob("*")):
            if not (path.is_file() and path.name in {file.name for file in files}):
                remove(path)
    for position, file in enumerate(files):
        logger.info("fetch %s: file %d of %d, %s", name, position + 1, len(files), file.name)
        path = fetch_file(file, folder, root)
        if file.unpack:
            unpack(path, folder)
    write_json(manifest, SCHEMA, content)


def fetch_file(file: SourceFile, folder: Path, root: Path) -> Path:
    """Fetches one file into ``folder`` and returns its path; see :func:`fetch_files`."""
    target = folder / file.name
    if target.is_file() and matches(target, file.hash):
        return target
    with atomic_path(target) as temporary:
        if file.path is not None:
            try:
                shutil.copyfile(root / file.path, temporary)
            except FileNotFoundError as error:
                raise InputError(root / file.path, "is missing") from error
            source, mend = str(file.path), "restore it, or correct the hash in datasets.yaml"
        else:
            downloader = pooch.HTTPDownloader(progressbar=True, timeout=60)
            try:
                downloader(file.url, str(temporary), pooch=None)
            except requests.RequestException as error:
                raise AtomcsiError(f"{file.url}: the download failed: {error} (run again to retry)") from error
            source, mend = file.url, "run again; if it persists the publisher changed the file"
        if not matches(temporary, file.hash):
            algorithm, expected = file.hash.split(":")
            found = digest(temporary, algorithm)
            raise InputError(source, f"has the {algorithm} {found} instead of {expected}", mend=mend)
    return target


def matches(path: Path, expected: str) -> bool:
    """Whether a file has the hash ``algorithm:hexdigest``."""
    algorithm, wanted = expected.split(":")
    return digest(path, algorithm) == wanted


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks an archive, and the archives right inside it, into ``folder``.

    Members that would land outside ``folder``, links out of it and devices are refused.

    Raises:
        InputError: The archive is damaged or would write outside ``folder``.
    """
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as file:
                members = file.namelist()
                file.extractall(folder)
        else:
            with tarfile.open(archive) as file:
                members = file.getnames()
                file.extractall(folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(archive, f"cannot be unpacked: {error}", mend="delete it and run again") from error
    for member in members:
        if member.endswith(_ARCHIVES):
            unpack(folder / member, folder)
