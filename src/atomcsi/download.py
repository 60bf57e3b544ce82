"""Raw files: fetched from their publisher, a mirror or the package, and never used before their hash is checked."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from atomcsi.archives import unpack
from atomcsi.catalogue import SourceFile
from atomcsi.errors import AtomcsiError, InputError
from atomcsi.files import atomic_path, digest, read_json, remove, write_json
from atomcsi.transfer import Patience, discard, download, note_of

SCHEMA = "atomcsi.raw/1"
#: The hashes of files whose publisher gives none, as they were when they came here first.
FIRST_SEEN = "first-seen.json"
_FIRST_SEEN_SCHEMA = "atomcsi.first-seen/1"
#: Environment variable that names a mirror for all datasets.
MIRROR_VARIABLE = "ATOMCSI_MIRROR"
logger = logging.getLogger(__name__)


def fetch_files(
    files: Sequence[SourceFile],
    name: str,
    folder: Path,
    root: Path,
    manifest: Path,
    *,
    mirror: str | None = None,
    patience: Patience | None = None,
) -> None:
    """Puts all files of a dataset, or of an extractor, into ``folder``, unpacked if so said, and writes a manifest.

    Files that are there with the right hash are kept, and downloads that broke off go on, so an interrupted run
    resumes where it stopped. Unless the manifest is that of the same files, everything else in ``folder`` is removed:
    readers take what they find there, and must not find members of an earlier archive. An entry without files leaves
    the folder to its user.

    Args:
        files: The files of the catalogue entry.
        name: The id under which the files are kept.
        folder: Where they go.
        root: What packaged files' paths are relative to.
        manifest: The JSON file that says that all is there; written last.
        mirror: A folder or a web address that is asked for ``<name>/<file>`` and ``<file>`` before the publisher, such
            as a group's disk; None for what the environment variable ``ATOMCSI_MIRROR`` says. Hashes are checked as
            for the publisher's files.
        patience: How long to put up with bad connections.

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
        kept = {folder / FIRST_SEEN}
        for file in files:
            kept |= {folder / file.name, _part(file, folder), note_of(_part(file, folder))}
        for path in list(folder.glob("*")):
            if not (path.is_file() and path in kept):
                remove(path)
    mirror = mirror or os.environ.get(MIRROR_VARIABLE)
    for position, file in enumerate(files):
        logger.info("fetch %s: file %d of %d, %s", name, position + 1, len(files), file.name)
        path = fetch_file(file, folder, root, mirrored=_mirrored(file, name, mirror), patience=patience)
        if file.members:
            unpack(path, folder / file.into if file.into else folder, file.members)
    write_json(manifest, SCHEMA, content)


def fetched(manifest: Path) -> list[Path]:
    """Returns the files that a manifest of :func:`fetch_files` tells of.

    Raises:
        InputError: It is missing, or is none.
    """
    return [manifest.with_name(file["name"]) for file in read_json(manifest, SCHEMA)["files"]]


def _mirrored(file: SourceFile, name: str, mirror: str | None) -> Sequence[str]:
    """Returns where a mirror may have a file: addresses, or paths that are there."""
    if not mirror:
        return ()
    if mirror.startswith(("http://", "https://")):
        return [f"{mirror.rstrip('/')}/{name}/{file.name}", f"{mirror.rstrip('/')}/{file.name}"]
    if not Path(mirror).is_dir():
        raise InputError(mirror, "is named as the mirror, but is no folder", mend=f"correct it; see {MIRROR_VARIABLE}")
    places = (Path(mirror) / name / file.name, Path(mirror) / file.name)
    try:
        return [str(path.resolve()) for path in places if path.is_file()]
    except OSError as error:  # a folder that may not be searched
        raise InputError(mirror, f"is named as the mirror, but cannot be read: {error.strerror}") from error


def fetch_file(
    file: SourceFile,
    folder: Path,
    root: Path,
    *,
    mirrored: Sequence[str] = (),
    patience: Patience | None = None,
) -> Path:
    """Fetches one file into ``folder`` and returns its path; see :func:`fetch_files`.

    Sources are tried in turn: ``mirrored`` addresses or paths, then those of the entry.
    """
    target = folder / file.name
    expected = file.hash or _first_seen(folder).get(file.name)
    if target.is_file() and (expected is None or matches(target, expected)):
        _remember(file, folder, target)
        return target
    problems: list[AtomcsiError] = []
    for source in (*mirrored, *([str(root / file.path)] if file.path else file.url)):
        try:
            if source.startswith(("http://", "https://")):
                _download(source, file, folder, expected, patience)
            else:
                _copy(source, file, folder, expected)
        except AtomcsiError as error:
            problems.append(error)
        else:
            discard(_part(file, folder))
            return target
    # One problem speaks for itself, with its own mend.
    raise problems[0] if len(problems) == 1 else AtomcsiError("; ".join(map(str, problems)))


def _copy(source: str, file: SourceFile, folder: Path, expected: str | None) -> None:
    with atomic_path(folder / file.name) as temporary:
        try:
            shutil.copyfile(source, temporary)
        except FileNotFoundError as error:
            raise InputError(source, "is missing") from error
        except OSError as error:
            # Once both files are open, an error names both, and mostly means the disk that is written.
            if error.filename != source or error.filename2 is not None:
                raise
            raise InputError(source, f"cannot be read: {error.strerror}") from error
        _check(temporary, source, expected, "restore it, or correct the hash in the catalogue")
        _remember(file, folder, temporary)


def _download(source: str, file: SourceFile, folder: Path, expected: str | None, patience: Patience | None) -> None:
    part = _part(file, folder)
    resumed = part.exists()
    while True:
        download(source, part, patience=patience)
        try:
            _check(part, source, expected, "run again; if it persists the publisher changed the file")
        except InputError:
            discard(part)
            if not resumed:
                raise
            # What an earlier run left may be at fault: once more, from the start.
            resumed = False
        else:
            _remember(file, folder, part)
            part.replace(folder / file.name)
            return


def _check(path: Path, source: str, expected: str | None, mend: str) -> None:
    if expected is not None and not matches(path, expected):
        algorithm, wanted = expected.split(":")
        found = digest(path, algorithm)
        raise InputError(source, f"has the {algorithm} {found} instead of {wanted}", mend=mend)


def _part(file: SourceFile, folder: Path) -> Path:
    """Path of the beginning of a file that is being downloaded."""
    return folder / f".{file.name}.part"


def matches(path: Path, expected: str) -> bool:
    """Whether a file has the hash ``algorithm:hexdigest``."""
    algorithm, wanted = expected.split(":")
    return digest(path, algorithm) == wanted


def _first_seen(folder: Path) -> dict[str, str]:
    path = folder / FIRST_SEEN
    return read_json(path, _FIRST_SEEN_SCHEMA)["files"] if path.exists() else {}


def _remember(file: SourceFile, folder: Path, content: Path) -> None:
    """Keeps the hash of a file whose publisher gives none, so that it is checked from now on."""
    seen = _first_seen(folder)
    if file.hash is None and file.name not in seen:
        seen[file.name] = f"sha256:{digest(content, 'sha256')}"
        write_json(folder / FIRST_SEEN, _FIRST_SEEN_SCHEMA, {"files": seen})
