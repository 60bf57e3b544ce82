import errno
import os
import subprocess
from pathlib import Path

import h5py
import lmdb
import numpy as np
import pytest

from atomcsi.errors import AtomcsiError, InputError
from atomcsi.files import atomic_path, read_json, resume_folder, write_json
from atomcsi.structure_lmdb import write_structures


def test_all_or_nothing(tmp_path):
    path = tmp_path / "deep" / "x.txt"
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]


def test_a_failure_keeps_what_was_there(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(ValueError), atomic_path(path) as temporary:
        temporary.write_text("new")
        raise ValueError
    assert path.read_text() == "old"


def test_content_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    """A power cut must not leave an empty file under its final name."""
    path, done = tmp_path / "x.txt", []
    original = os.fsync

    def records(descriptor):
        done.append((Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".tmp", path.exists()))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", records)
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
    assert done == [(True, False), (False, True)]  # the content, then the name
    assert path.read_text() == "whole"


def test_a_folder_is_put_in_place(tmp_path, monkeypatch):
    """Also on a file system that cannot wait for one."""

    def refuses(descriptor):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuses)
    with atomic_path(tmp_path / "x") as temporary:
        temporary.mkdir()
        (temporary / "y").touch()
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["y"]


def test_the_disk_fills_at_the_end(tmp_path, monkeypatch):
    """Some file systems say so only when they are asked to finish."""

    def refuses(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuses)
    with pytest.raises(AtomcsiError, match="the disk is full, nothing was written"):
        write_json(tmp_path / "x.json", "a/1", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("culprit", "expected"), [(None, "Permission denied$"), ("raw.xyz", "denied: raw.xyz$")])
def test_a_file_that_may_not_be_opened_is_named(tmp_path, culprit, expected):
    with (
        pytest.raises(AtomcsiError, match=rf"/x: cannot be written: .*{expected}"),
        atomic_path(tmp_path / "x") as path,
    ):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), culprit or str(path))


def test_json_says_what_it_is(tmp_path):
    write_json(tmp_path / "x.json", "a/1", {"n": 1})
    assert read_json(tmp_path / "x.json", "a/1")["n"] == 1
    with pytest.raises(InputError, match="holds the schema 'a/1' where 'b/1' is needed"):
        read_json(tmp_path / "x.json", "b/1")
    (tmp_path / "cut.json").write_text('{"schema": "a/1", ')
    with pytest.raises(InputError, match="is no JSON"):
        read_json(tmp_path / "cut.json", "a/1")
    with pytest.raises(InputError, match="is missing"):
        read_json(tmp_path / "none.json", "a/1")


def test_a_folder_survives_the_same_plan_only(tmp_path):
    folder = resume_folder(tmp_path / "work", {"seed": 0, "shape": (1, 2)})
    (folder / "done").touch()
    assert (resume_folder(tmp_path / "work", {"seed": 0, "shape": (1, 2)}) / "done").exists()
    assert not (resume_folder(tmp_path / "work", {"seed": 1, "shape": (1, 2)}) / "done").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB; only root can make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True
        ).returncode
    )
    if not made:
        pytest.skip("cannot mount a small file system here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk(small_disk, toy_structures):
    def fill_hdf5():
        with atomic_path(small_disk / "x.h5") as temporary, h5py.File(temporary, "w") as file:
            file["x"] = np.random.default_rng(0).normal(size=10**6)

    def fill_lmdb():
        write_structures(small_disk / "x.lmdb", toy_structures(4000), provenance={})

    def fill_text():
        write_json(small_disk / "x.json", "a/1", {"x": "y" * 10**6})

    for fill in (fill_hdf5, fill_lmdb, fill_text):
        with pytest.raises(AtomcsiError, match="the disk is full, nothing was written"):
            fill()
        assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize(
    "error", [lmdb.Error("mdb_txn_commit: Input/output error"), OSError(errno.EIO, os.strerror(errno.EIO))]
)
def test_a_failing_disk_is_not_called_full(tmp_path, error):
    with (
        pytest.raises(AtomcsiError, match=r"x\.lmdb: cannot be written: .*Input/output error"),
        atomic_path(tmp_path / "x.lmdb"),
    ):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_other_errors_pass(tmp_path):
    read = InputError("raw.xyz", "cannot be read: Input/output error")
    with pytest.raises(InputError) as caught, atomic_path(tmp_path / "x"):
        raise read
    assert caught.value is read
