"""Downloads from a server on this machine that misbehaves in every way that real ones do."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from atomcsi.catalogue import SourceFile
from atomcsi.download import FIRST_SEEN, fetch_file, fetch_files
from atomcsi.errors import AtomcsiError, InputError
from atomcsi.transfer import Patience, download

CONTENT = np.random.default_rng(0).bytes(3_000_000)
HASH = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(timeout=1.0, attempts=3, pause=0.01)


class Publisher:
    """A server with one file, which does to each request what the next of ``tricks`` says, then behaves well.

    Tricks: ``drop`` and ``stall`` in the middle, ``long`` and ``short`` Content-Length, ``slow``, ``shifted`` ranges,
    ``shared`` (another process writes into ``part``), or a status code. ``ranges`` and ``etag`` say what it knows of
    partial content.
    """

    def __init__(self) -> None:
        self.content, self.etag, self.ranges = CONTENT, '"1"', True
        self.tricks: list[str] = []
        self.asked: list[str | None] = []
        self.sent = 0
        self.part = Path()
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.answer(self)

            def log_message(self, *arguments) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/data.bin"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        trick = self.tricks.pop(0) if self.tricks else ""
        wanted, same = request.headers.get("Range"), request.headers.get("If-Range") == self.etag
        self.asked.append(wanted)
        if trick.isdigit():
            return request.send_error(int(trick))
        start = 0
        if wanted and same and self.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(self.content):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(self.content)}")
                return request.end_headers()
            start += trick == "shifted"
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        else:
            request.send_response(200)
        body = self.content[start:]
        if trick == "short":
            body = body[:-1000]
        request.send_header("Content-Length", str(len(body) + 1000 * (trick == "long")))
        if self.etag:
            request.send_header("ETag", self.etag)
        request.end_headers()
        if trick in ("drop", "stall"):
            body = body[: len(body) // 2]
        for position in range(0, len(body), 100_000):
            request.wfile.write(body[position : position + 100_000])
            self.sent += len(body[position : position + 100_000])
            if trick == "slow":
                time.sleep(0.1)
            if trick == "shared" and position == 1_000_000:
                self.interfere()
        if trick == "stall":
            time.sleep(2 * QUICK.timeout)
        return None

    def interfere(self) -> None:
        """Writes a kilobyte into a part that has begun to grow."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with suppress(FileNotFoundError):
                if self.part.stat().st_size > 0:
                    break
            time.sleep(0.01)
        with self.part.open("ab") as file:
            file.write(bytes(1000))


@pytest.fixture
def publisher():
    publisher = Publisher()
    yield publisher
    publisher.server.shutdown()
    publisher.server.server_close()


def source(publisher: Publisher, **changes) -> SourceFile:
    return SourceFile.model_validate({"name": "data.bin", "url": publisher.url, "hash": HASH} | changes)


def fetched(publisher: Publisher, folder: Path, **changes) -> bytes:
    path = fetch_file(source(publisher, **changes), folder, folder, patience=QUICK)
    assert [path.name for path in folder.iterdir() if path.name != FIRST_SEEN] == ["data.bin"]
    return path.read_bytes()


@pytest.mark.parametrize(
    ("tricks", "requests"),
    [
        ([], 1),
        (["drop"], 2),
        (["drop", "drop"], 3),
        (["stall"], 2),
        (["long"], 2),
        (["503", "429"], 3),
        (["drop", "503", "drop"], 4),
        (["drop", "shifted"], 3),
    ],
)
def test_bad_connections_end_in_the_right_bytes(publisher, tmp_path, tricks, requests):
    publisher.tricks = tricks[:]
    assert fetched(publisher, tmp_path) == CONTENT
    assert len(publisher.asked) == requests


def test_what_came_is_not_asked_for_again(publisher, tmp_path):
    publisher.tricks = ["drop"]
    assert fetched(publisher, tmp_path) == CONTENT
    assert publisher.asked[0] is None
    assert int(re.fullmatch(r"bytes=(\d+)-", publisher.asked[1])[1]) > 1_400_000
    assert publisher.sent < 1.1 * len(CONTENT)


@pytest.mark.parametrize("known", [HASH, None], ids=["hash", "no-hash"])
@pytest.mark.parametrize("tricks", [["shared"], ["drop", "shared"], ["shared", "shared"]])
def test_a_part_that_another_process_writes_too_starts_anew(publisher, tmp_path, known, tricks):
    """Even where no hash would tell."""
    publisher.part, publisher.tricks = tmp_path / ".data.bin.part", tricks[:]
    assert fetched(publisher, tmp_path, hash=known) == CONTENT
    assert publisher.asked[-1] is None
    assert len(publisher.asked) == len(tricks) + 1


@pytest.mark.parametrize(("ranges", "etag"), [(False, '"1"'), (True, ""), (True, 'W/"1"')])
def test_without_ranges_or_a_validator_it_starts_anew(publisher, tmp_path, ranges, etag):
    publisher.tricks, publisher.ranges, publisher.etag = ["drop"], ranges, etag
    assert fetched(publisher, tmp_path) == CONTENT
    assert publisher.sent > 1.4 * len(CONTENT)


def test_another_version_is_not_sewn_to_the_first(publisher, tmp_path):
    publisher.tricks = ["drop"] * 3
    publisher.content = CONTENT[::-1]
    part = tmp_path / ".data.bin.part"
    with pytest.raises(AtomcsiError, match="broke off 3 times"):
        download(publisher.url, part, patience=Patience(1.0, 3, 0.01))
    assert 0 < part.stat().st_size < len(CONTENT)
    publisher.content, publisher.etag = CONTENT, '"2"'
    assert fetched(publisher, tmp_path) == CONTENT


def test_a_part_that_lies_is_replaced(publisher, tmp_path):
    (tmp_path / ".data.bin.part").write_bytes(bytes(1_000_000))
    note = {"schema": "atomcsi.part/1", "url": publisher.url, "validator": '"1"'}
    (tmp_path / ".data.bin.part.json").write_text(json.dumps(note))
    assert fetched(publisher, tmp_path) == CONTENT
    assert publisher.asked == ["bytes=1000000-", None]


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 5])
def test_a_part_as_long_as_the_file_or_longer(publisher, tmp_path, size):
    (tmp_path / ".data.bin.part").write_bytes((CONTENT + bytes(5))[:size])
    note = {"schema": "atomcsi.part/1", "url": publisher.url, "validator": '"1"'}
    (tmp_path / ".data.bin.part.json").write_text(json.dumps(note))
    assert fetched(publisher, tmp_path) == CONTENT


@pytest.mark.parametrize(
    ("tricks", "message"),
    [
        (["404"], "404 Client Error"),
        (["403"], "403 Client Error"),
        (["503"] * 9, "too many 503 error responses"),
        (["stall"] * 9, r"broke off 3 times.*Read timed out.*run again: it goes on where it stopped"),
        (["long"] * 9, r"broke off 3 times.*IncompleteRead"),
        (["short"], r"has the sha256 [0-9a-f]+ instead of"),
    ],
)
def test_what_cannot_be_mended_ends_in_a_message(publisher, tmp_path, tricks, message):
    publisher.tricks = tricks
    publisher.ranges = False
    with pytest.raises(AtomcsiError, match=message) as caught:
        fetched(publisher, tmp_path)
    assert publisher.url in str(caught.value)
    assert not (tmp_path / "data.bin").exists()


def test_nobody_listens(tmp_path):
    file = SourceFile(name="data.bin", url="http://127.0.0.1:9/data.bin", hash=HASH)
    with pytest.raises(AtomcsiError, match=r"the download failed.*run again to retry"):
        fetch_file(file, tmp_path, tmp_path, patience=QUICK)


def test_alternative_sources(publisher, tmp_path):
    publisher.tricks = ["404", "short"]
    assert fetched(publisher, tmp_path, url=[publisher.url] * 3) == CONTENT
    (tmp_path / "data.bin").unlink()
    publisher.tricks = ["404", "short"]
    with pytest.raises(AtomcsiError, match=r"404.*; .*has the sha256"):
        fetched(publisher, tmp_path, url=[publisher.url] * 2)


def test_a_publisher_without_a_hash_is_held_to_the_first(publisher, tmp_path):
    raw, manifest = tmp_path / "raw", tmp_path / "raw" / "manifest.json"

    def fetch() -> bytes:
        files = [source(publisher, hash=None)]
        fetch_files(files, "toy", raw, tmp_path, manifest, patience=QUICK)
        return (raw / "data.bin").read_bytes()

    assert fetch() == CONTENT
    assert json.loads((raw / FIRST_SEEN).read_text())["files"] == {"data.bin": HASH}
    publisher.content, publisher.etag = CONTENT[:-1], '"2"'
    assert fetch() == CONTENT  # nothing is fetched again
    (raw / "data.bin").unlink()
    manifest.unlink()  # as Snakemake does
    with pytest.raises(InputError, match=r"has the sha256 [0-9a-f]+ instead of"):
        fetch()
    assert not (raw / "data.bin").exists() and not manifest.exists()
    publisher.content = CONTENT
    assert fetch() == CONTENT


def test_mirrors(publisher, tmp_path, monkeypatch):
    raw, mirror = tmp_path / "raw", tmp_path / "mirror"

    def fetch(mirror: str | None) -> None:
        for path in raw.glob("*"):
            path.unlink()
        publisher.asked.clear()
        fetch_files([source(publisher)], "toy", raw, tmp_path, raw / "manifest.json", mirror=mirror, patience=QUICK)
        assert (raw / "data.bin").read_bytes() == CONTENT

    (mirror / "toy").mkdir(parents=True)
    fetch(str(mirror))  # which has nothing yet
    assert len(publisher.asked) == 1
    (mirror / "data.bin").write_bytes(CONTENT)
    fetch(str(mirror))
    assert not publisher.asked
    monkeypatch.setenv("ATOMCSI_MIRROR", str(mirror))
    fetch(None)
    assert not publisher.asked
    (mirror / "toy" / "data.bin").write_bytes(CONTENT[:-1])  # comes first, but is not what the hash says
    fetch(None)
    (mirror / "data.bin").unlink()
    fetch(None)
    assert len(publisher.asked) == 1
    publisher.tricks = ["404"]
    fetch(publisher.url.rpartition("/")[0])  # another server, which has not toy/data.bin, but data.bin
    assert len(publisher.asked) == 2
    with pytest.raises(InputError, match="is named as the mirror, but is no folder"):
        fetch(str(tmp_path / "none"))


FETCH = """
import resource, sys
from pathlib import Path
from atomcsi.catalogue import SourceFile
from atomcsi.download import fetch_files
raw, largest = Path(sys.argv[1]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
fetch_files([SourceFile.model_validate_json(sys.argv[2])], "toy", raw, raw, raw / "manifest.json")
"""


def test_a_disk_that_takes_no_more(publisher, tmp_path):
    command = [sys.executable, "-c", FETCH, str(tmp_path), source(publisher).model_dump_json()]
    done = subprocess.run([*command, "1000000"], capture_output=True, text=True, timeout=60)
    assert "cannot be written: File too large (mend that and run again: it goes on where it stopped)" in done.stderr
    assert not (tmp_path / "data.bin").exists()
    subprocess.run([*command, "-1"], check=True, timeout=60)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert publisher.asked[1] is not None


def test_killed_and_run_again(publisher, tmp_path):
    command = [sys.executable, "-c", FETCH, str(tmp_path), source(publisher).model_dump_json(), "-1"]
    part = tmp_path / ".data.bin.part"
    for _ in range(2):
        publisher.tricks = ["slow"]
        before = part.stat().st_size if part.exists() else 0
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 60
        while not part.exists() or part.stat().st_size <= before:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "data.bin").exists() and not (tmp_path / "manifest.json").exists()
    subprocess.run(command, check=True, timeout=60)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert {path.name for path in tmp_path.iterdir()} == {"data.bin", "manifest.json"}
    assert publisher.asked[0] is None and None not in publisher.asked[1:]
