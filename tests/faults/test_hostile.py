"""Input that is built to do harm: refused with a clear message; nothing is run, nothing outside is read or written.

Pickles, archives, checkpoints and YAML have tests of their own beside what reads them: docs/security.md lists them.
"""

import json

import h5py
import numpy as np
import pytest
from pipeline import Run

from atomcsi.cli import main
from atomcsi.embeddings import Embedding
from atomcsi.errors import InputError
from atomcsi.readers.ani1x import Ani1xReader
from atomcsi.readers.spice import SpiceReader
from atomcsi.readers.transition1x import Transition1xReader

#: A name that a careless command line would run.
NAME = "a b;$(touch pwned)`touch pwned`'\"&.xyz"


@pytest.fixture
def secret(tmp_path):
    """A file outside: a group and arrays as ANI-1x has them, which are also the file's bytes."""
    path = tmp_path / "secret.h5"
    with h5py.File(path, "w") as file:
        for name, shape in (("coordinates", (2, 5, 3)), ("wb97x_dz.energy", (2,)), ("wb97x_dz.forces", (2, 5, 3))):
            file[f"CH4/{name}"] = np.ones(shape)
        file["CH4/atomic_numbers"] = np.array([6, 1, 1, 1, 1])
    return path


def a_link(file, secret):
    file["CH4"] = h5py.ExternalLink(secret, "CH4")


def a_link_to_nothing(file, secret):
    file["CH4"] = h5py.ExternalLink(secret.with_name("none.h5"), "CH4")


def an_array_elsewhere(file, secret):
    for name in ("wb97x_dz.energy", "wb97x_dz.forces", "atomic_numbers"):
        with h5py.File(secret) as source:
            file[f"CH4/{name}"] = source[f"CH4/{name}"][()]
    file["CH4"].create_dataset("coordinates", (2, 5, 3), "f8", external=[(secret, 0, h5py.h5f.UNLIMITED)])


def a_virtual_array(file, secret):
    an_array_elsewhere(file, secret)
    del file["CH4/coordinates"]
    layout = h5py.VirtualLayout((2, 5, 3), "f8")
    layout[:] = h5py.VirtualSource(secret, "CH4/coordinates", (2, 5, 3))
    file["CH4"].create_virtual_dataset("coordinates", layout)


@pytest.mark.parametrize("build", [a_link, a_link_to_nothing, an_array_elsewhere, a_virtual_array])
def test_hdf5_that_points_outside(tmp_path, secret, build, ledger):
    folder = tmp_path / "raw"
    folder.mkdir()
    with h5py.File(folder / "ani1x-release.h5", "w") as file:
        build(file, secret)
    with pytest.raises(InputError, match=r"ani1x-release\.h5: CH4.*: is a link out of the file") as caught:
        list(Ani1xReader(folder))
    assert caught.value.mend
    ledger.add("HDF5 that points to other files", "refused by name")


@pytest.mark.parametrize(("reader", "prefix"), [(SpiceReader, ""), (Transition1xReader, "data/")])
def test_other_readers_of_hdf5(tmp_path, secret, reader, prefix, ledger):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file[f"{prefix}CH4"] = h5py.ExternalLink(secret, "CH4")
    with pytest.raises(InputError, match="is a link out of the file"):
        list(reader(tmp_path, file="x.h5"))
    ledger.add("HDF5 that points to other files", "refused by name")


def test_an_embedding_that_points_outside(embedding, secret, ledger):
    found = embedding([np.ones((5, 3)) * i for i in range(40)])
    with h5py.File(found.path, "r+") as file:
        del file["features"]
        file["features"] = h5py.ExternalLink(secret, "CH4/wb97x_dz.forces")
    with pytest.raises(InputError, match=r"toy\.h5: features: is a link out of the file"):
        Embedding(found.path)
    ledger.add("HDF5 that points to other files", "refused by name")


def test_names_with_shell_characters(tmp_path, ledger):
    """In the name of the run's folder and of a dataset's file, which both reach command lines."""
    folder = tmp_path / NAME.removesuffix(".xyz")
    run = Run(folder)
    raw = folder / "resources" / "raw" / "own"
    raw.mkdir(parents=True)
    frame = "3\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-1.0\nO 0 0 0 0 0 0\nH 0 0 1 0 0 0\nH 0 1 0 0 0 0\n"
    (raw / NAME).write_text(frame * 20)
    entry = {
        "role": "downstream", "licence": "CC0-1.0", "source": "a test", "files": [], "title": NAME,
        "reader": {"format": "user", "file": NAME}, "units": {"energy": "eV"},
        "split": {"kind": "random", "train": "rest", "val": 2, "test": 2},
    }  # fmt: skip
    (folder / "config" / "datasets").mkdir()
    (folder / "config" / "datasets" / "own.yaml").write_text(json.dumps({"own": entry}))
    found = run("results/lmdb/own/train.lmdb")
    assert found.returncode == 0, found.stderr[-3000:]
    assert not list(tmp_path.rglob("pwned"))
    ledger.add("file names with shell characters", "taken as they are")


def test_json_on_the_command_line_is_data(tmp_path, capsys):
    """What rules hand over as JSON is checked like the config that it comes from."""
    entry = {"reader": {"format": "os:system"}}
    arguments = ["convert", "--name", "x", "--dataset", json.dumps(entry), "--raw", "raw", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 1
    assert "--dataset" in capsys.readouterr().err
