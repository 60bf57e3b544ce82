import errno
import hashlib
import io
import os
import shutil
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from atomcsi.catalogue import SourceFile
from atomcsi.config import ExtractorSpec
from atomcsi.download import fetch_file, fetch_files, fetched
from atomcsi.errors import AtomcsiError, InputError

CONTENT = b"structures" * 1000
HASH = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path):
    """Serves the folder ``public`` on this machine and counts what is asked for."""
    public = tmp_path / "public"
    public.mkdir()
    (public / "data.bin").write_bytes(CONTENT)
    requests = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments) -> None:
            requests.append(self.path)

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(public)))
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", requests
    httpd.shutdown()
    httpd.server_close()


def test_from_a_url_once(server, tmp_path):
    url, requests = server
    file = SourceFile(name="data.bin", url=f"{url}/data.bin", hash=HASH)
    for _ in range(2):
        assert fetch_file(file, tmp_path / "raw", tmp_path).read_bytes() == CONTENT
    assert len(requests) == 1


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_wrong_hash_leaves_nothing(server, tmp_path, algorithm):
    url, _ = server
    wrong = f"{algorithm}:" + "0" * (64 if algorithm == "sha256" else 32)
    with pytest.raises(InputError, match=f"has the {algorithm} [0-9a-f]+ instead of 0000"):
        fetch_file(SourceFile(name="data.bin", url=f"{url}/data.bin", hash=wrong), tmp_path / "raw", tmp_path)
    assert list((tmp_path / "raw").iterdir()) == []


def test_a_checkpoint_without_a_hash_stays_what_it_was_first(server, tmp_path):
    """An extractor's source: once from its publisher, then held to what came first."""
    url, requests = server
    entry = {"implementation": "equiformer-v2", "source": {"name": "data.bin", "url": f"{url}/data.bin"}}
    spec, manifest = ExtractorSpec.model_validate(entry), tmp_path / "checkpoints" / "eq" / "manifest.json"

    def fetch() -> list[Path]:
        fetch_files([spec.source], "eq", manifest.parent, tmp_path, manifest)
        return fetched(manifest)

    assert [path.read_bytes() for path in fetch()] == [CONTENT]
    fetch()
    assert len(requests) == 1
    (tmp_path / "public" / "data.bin").write_bytes(CONTENT[1:])
    (manifest.parent / "data.bin").unlink()
    with pytest.raises(InputError, match=r"data\.bin: has the sha256 [0-9a-f]+ instead of"):
        fetch()
    with pytest.raises(InputError, match="is missing"):
        fetched(tmp_path / "manifest.json")


def test_a_missing_page(server, tmp_path):
    with pytest.raises(AtomcsiError, match=r"none\.bin: the download failed: 404"):
        fetch_file(SourceFile(name="data.bin", url=f"{server[0]}/none.bin", hash=HASH), tmp_path / "raw", tmp_path)


def test_from_the_package_with_a_manifest(tmp_path):
    (tmp_path / "data.bin").write_bytes(CONTENT)
    file = SourceFile(name="copy.bin", path="data.bin", hash=HASH)
    fetch_files([file], "toy", tmp_path / "raw", tmp_path, tmp_path / "raw" / "manifest.json")
    assert (tmp_path / "raw" / "copy.bin").read_bytes() == CONTENT
    assert HASH in (tmp_path / "raw" / "manifest.json").read_text()


def test_an_unreadable_source_is_named(tmp_path, monkeypatch):
    (tmp_path / "data.bin").mkdir()
    file = SourceFile(name="copy.bin", path="data.bin", hash=HASH)
    with pytest.raises(InputError, match=r"/data\.bin: cannot be read: Is a directory$"):
        fetch_file(file, tmp_path / "raw", tmp_path)
    (tmp_path / "data.bin").rmdir()
    (tmp_path / "data.bin").write_bytes(CONTENT)

    def fails(code, *culprits):
        def copyfile(source, target):
            error = OSError(code, os.strerror(code))
            names = {"source": str(source), "target": str(target)}
            error.filename, error.filename2 = [*(names[culprit] for culprit in culprits), None][:2]
            raise error

        monkeypatch.setattr(shutil, "copyfile", copyfile)

    fails(errno.EACCES, "source")
    with pytest.raises(InputError, match=r"/data\.bin: cannot be read: Permission denied$"):
        fetch_file(file, tmp_path / "raw", tmp_path)
    fails(errno.EACCES, "target")
    with pytest.raises(AtomcsiError, match=r"/copy\.bin: cannot be written: Permission denied$"):
        fetch_file(file, tmp_path / "raw", tmp_path)
    fails(errno.ENOSPC, "source", "target")
    with pytest.raises(AtomcsiError, match=r"/copy\.bin: the disk is full"):
        fetch_file(file, tmp_path / "raw", tmp_path)
    assert list((tmp_path / "raw").iterdir()) == []


def test_an_unreadable_mirror_is_named(tmp_path, monkeypatch):
    def refuses(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "is_file", refuses)
    file, mirror = SourceFile(name="copy.bin", path="data.bin", hash=HASH), tmp_path / "mirror"
    mirror.mkdir()
    with pytest.raises(InputError, match=r"/mirror: is named as the mirror, but cannot be read: Permission denied$"):
        fetch_files([file], "toy", tmp_path / "raw", tmp_path, tmp_path / "manifest.json", mirror=str(mirror))


def test_a_damaged_copy_is_replaced(tmp_path):
    (tmp_path / "data.bin").write_bytes(CONTENT)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "data.bin").write_bytes(CONTENT[:-1])
    fetch_file(SourceFile(name="data.bin", path="data.bin", hash=HASH), tmp_path / "raw", tmp_path)
    assert (tmp_path / "raw" / "data.bin").read_bytes() == CONTENT


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("manifest_is_left", [True, False])
def test_members_of_an_earlier_archive_go(tmp_path, manifest_is_left):
    raw, manifest = tmp_path / "raw", tmp_path / "raw" / "manifest.json"

    def fetch(*members: str) -> None:
        archives = {f"{member}.tar": tar_of({f"{member}/0.txt": b"x"}) for member in members}
        files = []
        for name, content in archives.items():
            (tmp_path / name).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            files.append(SourceFile(name=name, path=name, hash=f"sha256:{digest}", unpack=True))
        fetch_files(files, "toy", raw, tmp_path, manifest)

    fetch("old", "both")
    kept = (raw / "both.tar").stat().st_mtime_ns
    fetch("old", "both")  # the same files: nothing is removed
    assert {path.name for path in raw.iterdir()} == {"old", "old.tar", "both", "both.tar", "manifest.json"}
    if not manifest_is_left:
        manifest.unlink()
    fetch("both", "new")
    assert {path.name for path in raw.iterdir()} == {"both", "both.tar", "new", "new.tar", "manifest.json"}
    assert (raw / "both.tar").stat().st_mtime_ns == kept


def test_own_files_in_an_entry_without_files_stay(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "mine.xyz").touch()
    fetch_files([], "mine", tmp_path / "raw", tmp_path, tmp_path / "raw" / "manifest.json")
    assert (tmp_path / "raw" / "mine.xyz").exists()
