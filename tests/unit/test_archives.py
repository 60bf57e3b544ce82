"""Archives in all their formats: nested, damaged, and built to do harm."""

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile

import numpy as np
import pytest

from atomcsi import archives
from atomcsi.archives import unpack
from atomcsi.errors import InputError


def tar_of(members: dict[str, bytes], *, link: str | None = None, kind: bytes = tarfile.SYMTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("link")
            info.type, info.linkname = kind, link
            archive.addfile(info)
    return buffer.getvalue()


def zip_of(members: dict[str, bytes], *, mode: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return buffer.getvalue()


def tar_gz_of(members: dict[str, bytes]) -> bytes:
    # Without a time stamp: the same bytes, and so the same tests, in every process that collects them.
    return gzip.compress(tar_of(members), mtime=0)


def pax_of(name: str, headers: dict[str, str], content: bytes = b"x") -> bytes:
    """A tar whose one member has an extended header."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo(name)
        info.pax_headers, info.size = headers, len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


#: A file of one byte with four megabytes of nothing behind it.
SPARSE = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 22)}
FORMATS = {
    ".tar": tar_of,
    ".tar.gz": tar_gz_of,
    ".tgz": tar_gz_of,
    ".tar.bz2": lambda members: bz2.compress(tar_of(members)),
    ".tar.xz": lambda members: lzma.compress(tar_of(members)),
    ".zip": zip_of,
}


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("outer", FORMATS)
@pytest.mark.parametrize("inner", FORMATS)
def test_nested_archives(tmp_path, outer, inner):
    inside = FORMATS[inner]({"deep/file.txt": b"here", "deep/notes.txt": b"there"})
    path = tmp_path / f"outer{outer}"
    path.write_bytes(FORMATS[outer]({"readme.txt": b"read", f"folder/inner{inner}": inside}))
    unpack(path, tmp_path / "all")
    expected = {"readme.txt": b"read", "deep/file.txt": b"here", "deep/notes.txt": b"there"}
    assert files_below(tmp_path / "all") == expected
    unpack(path, tmp_path / "some", ["*file.txt"])
    assert files_below(tmp_path / "some") == {"deep/file.txt": b"here"}
    with pytest.raises(InputError, match=r"holds no member that matches \*.npz"):
        unpack(path, tmp_path / "none", ["*.npz"])


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.tar", tar_of({"../outside.txt": b"x"}), "outside the folder"),
        ("x.zip", zip_of({"../outside.txt": b"x"}), "outside the folder"),
        ("x.zip", zip_of({"a/../../outside.txt": b"x"}), "outside the folder"),
        ("x.tar", tar_of({}, link="/etc/passwd"), "link or a device"),
        ("x.tar", tar_of({"inside.txt": b"x"}, link="inside.txt"), "link or a device"),
        ("x.tar", tar_of({"inside.txt": b"x"}, link="inside.txt", kind=tarfile.LNKTYPE), "link or a device"),
        ("x.tar", tar_of({}, link="x", kind=tarfile.CHRTYPE), "link or a device"),
        ("x.tar", tar_of({}, link="x", kind=tarfile.FIFOTYPE), "link or a device"),
        ("x.zip", zip_of({"link": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777), "link or a device"),
        ("x.tar", tar_of({"a": b"x", "a/b": b"x"}), "cannot be unpacked"),
        ("x.tar", tar_of({"a" * 300: b"x"}), "cannot be unpacked"),
        ("x.tar", b"no tar", "cannot be unpacked"),
        ("x.tar.gz", tar_gz_of({"a": bytes(9999)})[:-20], "cannot be unpacked"),
        ("x.zip", zip_of({"a": bytes(9999)})[:-20], "cannot be unpacked"),
    ],
    ids=[
        "above",
        "above-zip",
        "above-from-below",
        "symlink",
        "symlink-inside",
        "hard-link",
        "device",
        "fifo",
        "symlink-zip",
        "below-a-file",
        "long-name",
        "garbage",
        "cut-off",
        "cut-off-zip",
    ],
)
def test_bad_archives(tmp_path, name, content, problem, ledger):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=problem) as caught:
        unpack(tmp_path / name, tmp_path / "raw")
    assert caught.value.mend
    assert {path.name for path in tmp_path.iterdir()} <= {name, "raw"}
    assert not (tmp_path / "raw" / "link").exists()
    ledger.add("archive that leads outside, or is cut short", "refused by name; nothing was written outside")


@pytest.mark.parametrize("form", FORMATS)
def test_an_absolute_name_is_made_relative(tmp_path, form):
    outside = tmp_path / "outside.txt"
    (tmp_path / f"x{form}").write_bytes(FORMATS[form]({str(outside): b"x"}))
    unpack(tmp_path / f"x{form}", tmp_path / "raw")
    assert not outside.exists()
    assert (tmp_path / "raw" / outside.relative_to("/")).read_bytes() == b"x"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.tar.gz", tar_gz_of({"a": bytes(1 << 22)})),
        ("x.zip", zip_of({"a": bytes(1 << 22)})),
        ("x.zip", zip_of({"inner.zip": zip_of({"a": bytes(1 << 22)})})),
        ("x.tar.gz", tar_gz_of({f"{i}": b"" for i in range(5000)})),
        ("x.tar.gz", tar_gz_of({"not wanted": bytes(1 << 22), "a": b"x"})),
        ("x.zip", zip_of({"inner.tar.gz": tar_gz_of({"not wanted": bytes(1 << 22), "a": b"x"})})),
        ("x.tar.xz", lzma.compress(tar_of({"not wanted": bytes(1 << 22), "a": b"x"}))),
        ("x.tar.gz", gzip.compress(pax_of("a", {"comment": "x" * (1 << 22)}), mtime=0)),
        ("x.tar", pax_of("a", {"comment": "x" * (1 << 22)})),
        ("x.tar.gz", gzip.compress(tar_of({"a" * (1 << 22): b"x"}), mtime=0)),
        ("x.tar", pax_of("a", SPARSE)),
    ],
    ids=[
        "tar",
        "zip",
        "nested",
        "many",
        "not-wanted",
        "not-wanted-nested",
        "not-wanted-xz",
        "pax-header",
        "pax-header-plain",
        "gnu-name",
        "sparse",
    ],
)
def test_bombs(tmp_path, monkeypatch, name, content, ledger):
    # A gigabyte would take long to unpack.
    monkeypatch.setattr(archives, "_SMALL", 1 << 20)
    monkeypatch.setattr(archives, "_LARGEST_RATIO", 50)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="grows to more than"):
        unpack(tmp_path / name, tmp_path / "raw", ["[a0-9]*"])
    assert sum(map(len, files_below(tmp_path / "raw").values())) <= 2 << 20
    ledger.add("archive that grows without bounds", "refused by name before it fills the disk")


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_many_long_headers(tmp_path, monkeypatch, form):
    """Each of them could be honest."""
    monkeypatch.setattr(archives, "_SMALL", 1 << 20)
    monkeypatch.setattr(archives, "_LARGEST_RATIO", 50)
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz", format=form) as archive:
        for number in range(9):
            archive.addfile(tarfile.TarInfo(f"{number}" + 500_000 * "x"))
    with pytest.raises(InputError, match="grows to more than 1048576 bytes"):
        unpack(tmp_path / "x.tar.gz", tmp_path / "raw", ["a"])


@pytest.mark.parametrize("form", FORMATS)
def test_bytes_are_counted_once(tmp_path, monkeypatch, form):
    """An archive within an archive may take all that is allowed, though few of its members are asked for."""
    content = np.random.default_rng(0).bytes(1_000_000)
    (tmp_path / f"x{form}").write_bytes(FORMATS[form]({"inner.tar": tar_of({"rest": content, "a": b"x"})}))
    monkeypatch.setattr(archives, "_SMALL", 1_050_000)
    monkeypatch.setattr(archives, "_LARGEST_RATIO", 1)
    unpack(tmp_path / f"x{form}", tmp_path / "raw", ["a"])
    assert files_below(tmp_path / "raw") == {"a": b"x"}


def test_a_sparse_file(tmp_path):
    (tmp_path / "x.tar").write_bytes(pax_of("a", SPARSE))
    unpack(tmp_path / "x.tar", tmp_path / "raw")
    assert files_below(tmp_path / "raw") == {"a": b"x" + bytes((1 << 22) - 1)}


def test_archives_within_archives_within_archives(tmp_path):
    content = b"x"
    for depth in range(6):
        content = zip_of({f"{depth}.zip" if depth else "x": content})
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(InputError, match="nested more than 4 deep"):
        unpack(tmp_path / "x.zip", tmp_path / "raw")
