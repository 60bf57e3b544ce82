import itertools
import json
import subprocess
import sys

import ase.io
import h5py
import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk, molecule

import atomcsi
from atomcsi import comparison
from atomcsi.cli import main
from atomcsi.errors import AtomcsiError, ConfigError, InputError
from atomcsi.files import read_json
from atomcsi.readers.rmd17 import Rmd17Reader
from atomcsi.report.comparison_page import SCHEMA
from atomcsi.unpickle import load_pyg_data


def molecules(names, n, seed=0):
    generator = np.random.default_rng(seed)
    found = []
    for i in range(n):
        atoms = molecule(names[i % len(names)])
        atoms.positions += generator.normal(scale=0.05, size=atoms.positions.shape)
        found.append(atoms)
    return found


def metals(n):
    return [bulk("Cu", cubic=True) * (1, 1, 1 + i % 2) for i in range(n)]


@pytest.fixture
def options(tmp_path):
    return {"extractor": "composition", "cache": tmp_path / "cache"}


@pytest.fixture
def files(tmp_path):
    """Mine and two candidates, in formats that users have."""
    ase.io.write(tmp_path / "mine.extxyz", molecules(["CH3OH", "C2H6"], 60))
    ase.io.write(tmp_path / "organic.traj", molecules(["CH3OH", "C2H6", "CH3CHO", "H2O2"], 80, seed=1))
    ase.io.write(tmp_path / "metals.xyz.gz", metals(40), format="extxyz")
    return [tmp_path / name for name in ("mine.extxyz", "organic.traj", "metals.xyz.gz")]


def test_files_of_users(files, options, tmp_path):
    found = atomcsi.compare(*files, **options)
    assert (found.selected, found.p_best) == ("organic", 1.0)
    assert found.table["upstream"].tolist() == ["organic", "metals"]
    assert found.table["upstream_structures"].tolist() == [80, 40]
    # One-hot elements: nothing of copper is in mine, so that the means differ by the shares of both sets.
    assert found.table["mean_term"][1] == pytest.approx(1 + np.square(shares(files[0])).sum(), rel=1e-6)
    assert found.mixes["best"]["weights"]["metals"] == 0
    assert found.pairwise.loc["metals", "mine"] == pytest.approx(found.table["value"][1])
    assert "organic is the nearest with a probability of more than 99.9%" in str(found)


def shares(path):
    numbers = np.concatenate([atoms.numbers for atoms in ase.io.read(path, index=":")])
    return np.bincount(numbers)[np.unique(numbers)] / len(numbers)


def test_structures_in_memory_are_those_of_files(files, options):
    atoms = [ase.io.read(path, index=":", format="extxyz" if "xyz" in path.name else None) for path in files]
    found = atomcsi.compare(*atoms, names=["mine", "organic", "metals"], **options)
    assert found.table["value"].tolist() == pytest.approx(atomcsi.compare(*files, **options).table["value"].tolist())
    single = atomcsi.compare(iter(atoms[0]), atoms[2][0], **options)
    assert single.table["upstream"].tolist() == ["candidate 1"] and single.p_best is None


def test_nothing_is_read_or_embedded_twice(files, options, monkeypatch):
    first = atomcsi.compare(*files, **options)

    def fail(*_, **__):
        raise AssertionError("again")

    monkeypatch.setattr(comparison, "write_structures", fail)
    monkeypatch.setattr(comparison, "embed", fail)
    assert str(atomcsi.compare(*files, **options)) == str(first)
    renamed = files[1].rename(files[1].with_name("other.traj"))
    with pytest.raises(AssertionError, match="again"):  # the name of a file is part of its structures' names
        atomcsi.compare(files[0], renamed, **options)
    with pytest.raises(AssertionError, match="again"):
        atomcsi.compare(*files[:1], files[2], **options, seed=1)


def test_embedding_files(files, options, tmp_path):
    atomcsi.compare(*files, **options)
    embeddings = sorted((tmp_path / "cache" / "embeddings" / "composition").glob("*.h5"))
    assert len(embeddings) == 3
    found = atomcsi.compare(*embeddings, names=["a", "b", "c"], extractor="composition", cache=tmp_path / "none")
    assert len(found.table) == 2 and not (tmp_path / "none").exists()


def test_the_page_and_the_tables(files, options, tmp_path):
    found = atomcsi.compare(*files, **options)
    page, table, content = found.write(tmp_path / "out" / "page.html")
    text = page.read_text()
    assert "Pretrain on organic." in text and "more than 99.9%" in text and "Mind the extractor" not in text
    assert text.count("<svg") == 5
    for loads in ("src=", "@import", "url(http", "<link"):
        assert loads not in text
    assert pd.read_csv(table)["upstream"].tolist() == ["organic", "metals"]
    assert read_json(content, SCHEMA)["upstreams"][0]["p_best"] == 1
    assert sorted(path.name for path in page.parent.iterdir()) == ["page.csv", "page.html", "page.json"]
    again = atomcsi.compare(*files, **options).write(tmp_path / "again" / "page.html")[0]
    assert again.read_text() == text


def test_other_distances_and_structures(files, options, tmp_path):
    found = atomcsi.compare(*files, distance="energy", aggregation="mean", **options)
    assert found.selected == "organic" and found.mixes is None
    assert "energy distance" in found.write(tmp_path / "page.html")[0].read_text()


def test_names(files, tmp_path, options):
    twin = tmp_path / "twin"
    twin.mkdir()
    (twin / "mine.extxyz").write_bytes(files[0].read_bytes())
    found = atomcsi.compare(files[0], twin / "mine.extxyz", **options)
    assert list(found.embeddings) == [f"{tmp_path.name}/mine", "twin/mine"]
    assert found.table["value"].tolist() == pytest.approx([0], abs=1e-9)
    with pytest.raises(AtomcsiError, match="2 names are given for 3 datasets"):
        atomcsi.compare(*files, names=["a", "b"], **options)
    with pytest.raises(AtomcsiError, match="two datasets have the same name"):
        atomcsi.compare(*files, names=["a", "b", "b"], **options)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"extractor": "sevenet-0"}, "did you mean 'sevennet-0'"),
        ({"extractor": "equiformer-v2"}, "needs the file with its weights"),
        ({"extractor": "equiformer-v2", "checkpoint": "none.pt"}, "none.pt: no such checkpoint"),
        ({"distance": "frechett"}, "did you mean 'frechet'"),
        ({"sampling": "balance"}, "did you mean 'balanced'"),
        ({"aggregation": "median"}, "unknown aggregation 'median'"),
        ({"resample": "atoms"}, "unknown resample 'atoms'"),
        ({"structures": 0}, "structures is 0, but must be at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"processes": 0}, "processes is 0"),
        ({"device": "gpu"}, "the device 'gpu' cannot be used"),
    ],
)
def test_mistakes(files, options, changes, problem):
    with pytest.raises(ConfigError, match=problem):
        atomcsi.compare(*files, **{**options, **changes})


def test_what_cannot_be_compared(files, options, tmp_path):
    with pytest.raises(AtomcsiError, match="name at least one candidate"):
        atomcsi.compare(files[0], **options)
    with pytest.raises(InputError, match="is missing"):
        atomcsi.compare(files[0], tmp_path / "none.xyz", **options)
    with pytest.raises(AtomcsiError, match="candidate 1: structure 1 is of the type int"):
        atomcsi.compare(files[0], [molecule("H2O"), 3], **options)
    with pytest.raises(AtomcsiError, match="candidate 1: is of the type int"):
        atomcsi.compare(files[0], 3, **options)
    with pytest.raises(AtomcsiError, match="candidate 1: would hold no structures"):
        atomcsi.compare(files[0], [], **options)
    with h5py.File(tmp_path / "ani1x.h5", "w") as file:
        file["energies"] = 1.0
    with pytest.raises(InputError, match="is no embedding file of atomcsi"):
        atomcsi.compare(files[0], tmp_path / "ani1x.h5", **options)
    assert not list((tmp_path / "cache" / "structures").glob(".*"))
    with pytest.raises(InputError, match=r"let it end|the page is \.html"):
        atomcsi.compare(*files, **options).write(tmp_path / "page.pdf")
    assert not list(tmp_path.glob("page*"))


def test_the_command(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ATOMCSI_CACHE", str(tmp_path / "cache"))
    main(["compare", *map(str, files), "--extractor", "composition", "--n", "50", "--out", str(tmp_path / "p.html")])
    captured = capsys.readouterr()
    assert "1  organic" in captured.out and "written: " in captured.out
    assert "embed metals: done" in captured.err
    assert json.loads((tmp_path / "p.json").read_text())["datasets"]["organic"]["drawn"] == 50


def test_the_command_says_what_is_wrong(files, tmp_path):
    bad = tmp_path / "bad.xyz"
    bad.write_text("3\n\nH 0 0 0\n")
    command = [sys.executable, "-m", "atomcsi.cli", "compare", str(files[0]), str(bad), "--extractor", "composition"]
    found = subprocess.run([*command, "--cache", str(tmp_path / "cache")], capture_output=True, text=True, timeout=120)
    assert found.returncode == 1 and "Traceback" not in found.stderr
    assert "bad.xyz: frame 0: is no complete frame" in found.stderr
    assert {path.suffix for path in (tmp_path / "cache" / "structures").iterdir()} <= {".lmdb", ".lock"}


def test_sets_without_a_distance(options, tmp_path):
    """Copper against copper: zero, which has no share, no ratio and no logarithm."""
    found = atomcsi.compare(metals(40), metals(30), metals(20), **options)
    assert found.table["value"].tolist() == [0, 0] and found.p_best == 0.5
    assert "at 0" in str(found)
    assert "Pretrain on candidate 1." in found.write(tmp_path / "page.html")[0].read_text()


def test_names_are_no_mathematics(files, options, tmp_path):
    found = atomcsi.compare(*files, names=["mine", "a$\\frac{b$", "<b>c</b>"], **options)
    text = found.write(tmp_path / "page.html")[0].read_text()
    assert "&lt;b&gt;c&lt;/b&gt;" in text and "<b>c</b>" not in text


def test_two_processes_share_a_cache(files, tmp_path):
    command = [sys.executable, "-m", "atomcsi.cli", "compare", *map(str, files), "--extractor", "composition"]
    command += ["--cache", str(tmp_path / "cache"), "--out"]
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen([*command, str(tmp_path / f"{i}.html")], stdout=pipe, stderr=pipe, text=True) for i in range(2)
    ]
    printed = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], printed
    assert (tmp_path / "0.csv").read_text() == (tmp_path / "1.csv").read_text()
    assert sum("read mine: done" in errors for _, errors in printed) == 1


@pytest.mark.slow
def test_with_sevennet(tmp_path):
    """Molecules are nearer to molecules than to a metal, with an extractor that sees surroundings."""
    mine, near = (molecules(["CH3OH", "C2H6", "CH3CHO"], 40, seed) for seed in (0, 1))
    found = atomcsi.compare(mine, near, metals(40), names=["mine", "near", "metal"], cache=tmp_path)
    assert found.selected == "near" and found.p_best == 1
    assert "Mind the extractor" in found.write(tmp_path / "page.html")[0].read_text()


def pickled(path):
    """The Data objects of a real sample as Atoms."""
    found = []
    for data in load_pyg_data(path):
        cell = np.reshape(data["cell"], (3, 3)) if "cell" in data else None
        numbers, positions = np.asarray(data["atomic_numbers"], int), np.asarray(data["pos"], float)
        found.append(Atoms(numbers, positions, cell=cell, pbc=cell is not None))
    return found


@pytest.mark.slow
@pytest.mark.real
def test_on_real_data_the_ranking_is_the_papers(real, tmp_path):
    """Molecular sets are far nearer to rMD17 and QM9 than OC20 and OC22 are (paper, section 2)."""
    candidates = {
        "ani1x": pickled(real / "ani1x" / "ani1x_pickle16_train.pkl"),
        "transition1x": pickled(real / "transition1x" / "trans1x_pickle16_train.pkl"),
        "oc20": [atoms for path in sorted((real / "oc20").glob("*.traj")) for atoms in ase.io.read(path, "::10")],
        "oc22": pickled(real / "oc22" / "oc22_pickle16_train.pkl"),
    }
    aspirin = [
        Atoms(structure.numbers, structure.positions)
        for structure in itertools.islice(Rmd17Reader(real / "rmd17", file="rmd17_aspirin_train_01.npz"), 0, 1000, 10)
    ]
    downstream = {"rmd17": aspirin, "qm9": ase.io.read(real / "qm9" / "qm9_reduced_100.xyz", ":")}
    for name, mine in downstream.items():
        names = [name, *candidates]
        found = atomcsi.compare(mine, *candidates.values(), names=names, cache=tmp_path, sampling="random")
        csi = found.table.set_index("upstream")["estimate"]
        assert csi[["oc20", "oc22"]].min() > 3 * csi[["ani1x", "transition1x"]].max()
        assert found.p_best is not None and found.selected in ("ani1x", "transition1x")
