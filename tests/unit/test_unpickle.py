"""Pickles of others: the real layouts are read, and nothing that they name is run."""

import os
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest

from atomcsi.errors import InputError
from atomcsi.unpickle import load_plain, load_pyg_data


class Calls:
    """Pickles to a call of ``function(*args)``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def make_data():
    return pytest.importorskip("torch_geometric.data").Data


def test_plain_reads_builtins_and_numpy_scalars(tmp_path):
    content = {"random1": {"bulk_symbols": "Cu4", "miller_index": (1, 1, 1), "shift": 0.25, "top": True}}
    path = tmp_path / "mapping.pkl"
    path.write_bytes(pickle.dumps(content))
    assert load_plain(path) == content
    assert load_plain(pickle.dumps(7)) == 7
    assert load_plain(pickle.dumps(np.float64(1.5))) == 1.5


@pytest.mark.parametrize("load", [load_plain, load_pyg_data])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_hostile_pickle_runs_nothing(tmp_path, load, protocol, ledger):
    trace = tmp_path / "trace"
    hostile = pickle.dumps({"pos": Calls(os.system, f"touch {trace}")}, protocol)
    with pytest.raises(InputError, match=r"asks for (posix|nt)\.system") as caught:
        load(hostile, path="data.0000.lmdb", record="7")
    assert str(caught.value).startswith("data.0000.lmdb: 7: ")
    assert not trace.exists()
    ledger.add("pickle that calls a program", "refused by name; nothing was run")


@pytest.mark.parametrize("function", [eval, exec, getattr, __import__])
def test_builtin_functions_are_refused(function):
    with pytest.raises(InputError, match=f"asks for .*builtin.*{function.__name__}"):
        load_pyg_data(pickle.dumps(Calls(function, "1")))


def test_torch_s_own_loader_is_not_called(torch, tmp_path):
    # torch.storage._load_from_bytes unpickles its argument: a pickle in a pickle.
    trace = tmp_path / "trace"
    inner = pickle.dumps(Calls(os.system, f"touch {trace}"), 2)
    with pytest.raises(InputError, match=r"asks for (posix|nt)\.system"):
        load_pyg_data(pickle.dumps(Calls(torch.storage._load_from_bytes, inner)))
    assert not trace.exists()


def test_tensor_cannot_reach_beyond_its_storage(torch):
    storage = torch.arange(3.0)._typed_storage()
    outside = Calls(torch._utils._rebuild_tensor_v2, storage, 0, (1000,), (1,), False, OrderedDict())
    with pytest.raises(InputError, match="is no pickle that can be read safely"):
        load_pyg_data(pickle.dumps(outside))


def test_numbers_of_a_shape_that_numpy_infers_cannot_reach_beyond_their_storage(torch):
    storage = torch.arange(5000.0)._typed_storage()
    outside = Calls(torch._utils._rebuild_tensor_v2, storage, 4000, (-1,), (2000,), False, OrderedDict())
    with pytest.raises(InputError, match=r"a tensor of the shape \(-1,\)"):
        load_pyg_data(pickle.dumps(outside))


def text(string: str) -> bytes:
    return b"X" + len(string).to_bytes(4, "little") + string.encode()


def dtype(name: str, state: bytes = b"") -> bytes:
    """Part of a pickle: ``numpy.dtype(name)``, and what is built on it."""
    return b"cnumpy\ndtype\n" + text(name) + b"\x85R" + state


#: A void of 8 bytes gets a field that is an object, and flags that hide it: the bytes 41...41 become a pointer.
FIELDS = b"}" + text("a") + dtype("O") + b"K\x00\x86s"
FORGED = b"(K\x03" + text("|") + b"N" + text("a") + b"\x85" + FIELDS + b"K\x08K\x01K\x00tb"


@pytest.mark.parametrize("name", ["V8", "S8", "f8"])
def test_bytes_do_not_become_pointers(name):
    forged = b"\x80\x02cnumpy.core.multiarray\nscalar\n" + dtype(name, FORGED) + b"C\x08AAAAAAAA\x86R."
    script = "import sys; from atomcsi.unpickle import load_plain; print(load_plain(sys.stdin.buffer.read()))"
    # In a process of its own, for it would crash.
    done = subprocess.run([sys.executable, "-c", script], input=forged, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert b"InputError: pickle: is no pickle that can be read safely" in done.stderr


def test_big_endian_number():
    state = b"(K\x03" + text(">") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    scalar = b"\x80\x03cnumpy.core.multiarray\nscalar\n" + dtype("f8", state)
    assert load_plain(scalar + b"C\x08" + struct.pack(">d", 1.5) + b"\x86R.") == 1.5


def test_a_number_has_no_fields():
    state = b"(K\x03" + text("<") + b"N" + text("a") + b"\x85}NNNNtb"
    with pytest.raises(InputError, match="gives fields to a plain number"):
        load_plain(b"\x80\x02" + dtype("f8", state) + b".")


@pytest.mark.parametrize("name", ["O", "V8", "M8[s]", "f8,O", "(2,)f8"])
def test_only_numbers_and_text(name):
    with pytest.raises(InputError, match="not plain numbers or text"):
        load_plain(b"\x80\x02" + dtype(name) + b".")


@pytest.mark.parametrize("value", [np.str_("Cu4"), np.str_(""), np.bytes_(b"a"), np.bool_(True), np.int16(-2), 1j])
def test_numpy_scalars_round_trip(value):
    value = np.asarray(value)[()]  # 1j as NumPy's
    read = load_plain(pickle.dumps(value))
    assert (read, type(read)) == (value, type(value))


def test_stand_ins_cannot_be_changed_by_a_pickle(make_data):
    # BUILD sets attributes on whatever is on the stack, here on the class that stands for Data.
    poison = b"\x80\x02ctorch_geometric.data.data\nData\nN}X\x03\x00\x00\x00newK\x01s\x86b."
    with pytest.raises(InputError):
        load_pyg_data(poison)
    # Here on the shared dtype of NumPy, which it would turn to big-endian.
    state = b"(K\x03X\x01\x00\x00\x00>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb."
    load_plain(b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00f8\x89\x89\x87R" + state)
    assert np.dtype("f8").isnative
    assert load_pyg_data(pickle.dumps(make_data(y=1.0))) == {"y": 1.0}


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps(list(range(1000)))[:-100]])
def test_damaged_pickle(content):
    with pytest.raises(InputError, match="is no pickle that can be read safely"):
        load_plain(content)


def test_pyg_data_of_the_installed_release(torch, make_data):
    pos = torch.arange(12.0).reshape(4, 3)
    data = make_data(
        pos=pos,
        strided=pos.T[1:],
        y=-1.5,
        tags=torch.tensor([0, 1, 2, 2]),
        fixed=torch.tensor([True, False, False, False]),
        double=torch.tensor([0.1], dtype=torch.float64),
        empty=torch.zeros(0, 3),
        sid=7,
        energy=np.float64(2.5),
    )
    read = load_pyg_data(pickle.dumps(data, protocol=-1))
    assert set(read) == {"pos", "strided", "y", "tags", "fixed", "double", "empty", "sid", "energy"}
    for name in ("pos", "strided", "tags", "fixed", "double", "empty"):
        np.testing.assert_array_equal(read[name], data[name].numpy(), strict=True)
    assert (read["y"], read["sid"], read["energy"]) == (-1.5, 7, 2.5)


def test_pyg_data_before_its_release_2(torch, monkeypatch):
    # The attributes were the object's own then.
    module = pytest.importorskip("torch_geometric.data.data")
    old = type("Data", (), {"__module__": module.__name__})
    monkeypatch.setattr(module, "Data", old)
    data = old()
    vars(data).update(x=None, edge_index=None, pos=torch.ones(2, 3), y=3.0, natoms=2)
    read = load_pyg_data(pickle.dumps(data))
    assert set(read) == {"pos", "y", "natoms"}
    np.testing.assert_array_equal(read["pos"], np.ones((2, 3)))


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "natoms", "energy"),
    [
        # First entries; the energies are those that the files' pickle streams spell out (eV).
        ("oc22/oc22_pickle16_train.pkl", 109, -566.62288864),
        ("ani1x/ani1x_pickle16_train.pkl", 12, -7222.384567385502),
        ("transition1x/trans1x_pickle16_train.pkl", 11, -7762.637212807026),
    ],
)
def test_real_samples(real, name, natoms, energy):
    entries = load_pyg_data(real / name)
    assert len(entries) == 16
    assert entries[0]["y"] == energy
    for entry in entries:
        assert entry["pos"].shape == entry["force"].shape == (entry["natoms"], 3)
        assert entry["atomic_numbers"].shape == (entry["natoms"],)
        assert entry["pos"].dtype == np.float32
    assert entries[0]["natoms"] == natoms
