"""Downloads over HTTP that go on where a broken connection or a killed process stopped.

A download grows in a *part*, beside which a note says where it comes from and by which validator (ETag or date) its
server knows this version of the file. Another attempt asks for the rest with ``Range`` and ``If-Range``; a server
that has another version by now, or no notion of ranges, answers with the whole file, and the part starts anew.
"""

from __future__ import annotations

import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from atomcsi.errors import AtomcsiError, InputError
from atomcsi.files import read_json, remove, write_json
from atomcsi.progress import Progress

_SCHEMA = "atomcsi.part/1"
#: Bytes that are written at a time, and the progress that makes a server worth another attempt.
_READ, _CHUNK = 1 << 16, 1 << 20
#: Answers of a server that has a moment's trouble.
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long a download puts up with a bad connection.

    Attributes:
        timeout: Seconds that a server may be silent.
        attempts: How often in a row it may fail without sending :data:`_CHUNK` more bytes.
        pause: Seconds before the second attempt; doubled before each further one.
    """

    timeout: float = 60.0
    attempts: int = 6
    pause: float = 1.0


class _BrokenTransferError(Exception):
    """The connection ended too early; the part holds what came."""


def download(url: str, part: Path, *, patience: Patience | None = None) -> None:
    """Downloads a file into ``part``, of which an earlier call may have left a beginning.

    Args:
        url: ``http`` or ``https``.
        part: Where the bytes go; complete when the function returns, and kept when it fails.
        patience: How long to go on trying; some minutes by default.

    Raises:
        AtomcsiError: The file is not there, or the server or the connection fails again and again.
    """
    patience = patience or Patience()
    failures = 0
    with requests.Session() as session:
        again = Retry(patience.attempts - 1, status_forcelist=_TRANSIENT, backoff_factor=patience.pause / 2)
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=again))
        while True:
            before = _size(part)
            try:
                _transfer(session, url, part, patience.timeout)
                return
            except requests.RequestException as error:
                raise AtomcsiError(f"{url}: the download failed: {error} (run again to retry)") from error
            except _BrokenTransferError as error:
                failures = 1 if _size(part) - before >= _CHUNK else failures + 1
                if failures >= patience.attempts:
                    problem = f"{url}: the download broke off {failures} times, the last time because of: {error}"
                    raise AtomcsiError(f"{problem} (run again: it goes on where it stopped)") from error
                wait = patience.pause * 2 ** (failures - 1)
                logger.info("%s: broke off after %d bytes (%s); again in %g s", url, _size(part), error, wait)
                time.sleep(wait)


def discard(part: Path) -> None:
    """Removes a part and its note."""
    remove(part)
    remove(note_of(part))


def _transfer(session: requests.Session, url: str, part: Path, timeout: float) -> None:
    """Makes one attempt to complete ``part``."""
    offset, headers = _size(part), {"Accept-Encoding": "identity"}
    validator = _validator(part, url) if offset else ""
    if validator:
        headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
    with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable and validator:
            # The file ends where the part does, or before: then it is another file.
            if response.headers.get("Content-Range") == f"bytes */{offset}":
                return
            discard(part)
            raise _BrokenTransferError("the file is shorter than what was downloaded of it")
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            offset = 0
            discard(part)
            write_json(note_of(part), _SCHEMA, {"url": url, "validator": _validator_of(response)})
        elif not re.match(rf"bytes {offset}-", response.headers.get("Content-Range", "")):
            discard(part)
            raise _BrokenTransferError("the server sent another range than it was asked for")
        _receive(response, part, offset)


def _receive(response: requests.Response, part: Path, offset: int) -> None:
    length = response.headers.get("Content-Length", "")
    total = offset + int(length) if length.isdigit() else None
    name = response.url.partition("?")[0].rpartition("/")[2]
    progress = Progress(f"download {name}", total=total and total // _CHUNK, unit="MiB", done=offset // _CHUNK)
    with part.open("ab") as file:
        try:
            # Undecoded: a server that marks a .tar.gz as compressed text must not have it unpacked on the way.
            for chunk in response.raw.stream(_READ, decode_content=False):
                file.write(chunk)
                file.flush()
                progress.advance(file.tell() // _CHUNK - progress.done)
            # The name that it gets soon must not outlive its content in a power cut.
            os.fsync(file.fileno())
        except HTTPError as error:
            raise _BrokenTransferError(str(error)) from error
        except OSError as error:
            mend = "mend that and run again: it goes on where it stopped"
            raise AtomcsiError(f"{part}: cannot be written: {error.strerror} ({mend})") from error
    size = _size(part)
    if total is not None and size != total:
        # Another process wrote into it too, such as one that outlived its run, or removed it.
        discard(part)
        raise _BrokenTransferError(f"the part has {size} bytes where {total} came")
    progress.finish()


def _validator_of(response: requests.Response) -> str:
    etag = response.headers.get("ETag", "")
    # A weak tag may stay the same when bytes change.
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _validator(part: Path, url: str) -> str:
    """Returns the validator of what is in ``part`` if that came from ``url``, else an empty text."""
    try:
        note = read_json(note_of(part), _SCHEMA)
    except InputError:
        return ""
    return str(note.get("validator", "")) if note.get("url") == url else ""


def note_of(part: Path) -> Path:
    """Path of the note beside a part."""
    return part.with_name(f"{part.name}.json")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
