"""QMOF and MatBench: crystals in pymatgen's JSON, on real structures and in the official layouts."""

import bz2
import gzip
import json

import numpy as np
import pytest
from ase.build import bulk
from ase.data import atomic_numbers
from ase.io import read

from atomcsi.errors import InputError
from atomcsi.readers.crystals import crystal
from atomcsi.readers.matbench import MatbenchReader
from atomcsi.readers.qmof import QmofReader


def refuses(reader, *parts):
    """Checks that reading ends in one InputError whose message holds all ``parts``."""
    with pytest.raises(InputError) as caught:
        list(reader)
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.mend


def as_pymatgen(atoms) -> dict:
    """What pymatgen's ``Structure.as_dict`` gives for an ordered crystal."""
    return {
        "@module": "pymatgen.core.structure",
        "@class": "Structure",
        "charge": None,
        "lattice": {"matrix": atoms.cell.tolist(), "volume": atoms.cell.volume},
        "sites": [
            {"species": [{"element": symbol, "occu": 1}], "abc": abc.tolist(), "xyz": xyz.tolist(), "label": symbol}
            for symbol, abc, xyz in zip(atoms.symbols, atoms.get_scaled_positions(), atoms.positions, strict=True)
        ],
    }


def test_crystal_agrees_with_pymatgen(real):
    structure = pytest.importorskip("pymatgen.core").Structure.from_file(real / "qmof" / "qmof-fc0e787.cif")
    read_ = crystal(structure.as_dict(), "a.json", "x")
    np.testing.assert_array_equal(read_.numbers, structure.atomic_numbers)
    np.testing.assert_allclose(read_.positions, structure.cart_coords)
    np.testing.assert_allclose(read_.cell, structure.lattice.matrix)
    assert read_.label == structure.composition.hill_formula.replace(" ", "")


@pytest.mark.real
def test_crystals_as_pymatgen_really_writes_them(real):
    entries = json.loads((real / "omat24" / "test_calc_compounds_omat.json").read_text())
    assert len(entries) == 4
    for name, entry in entries.items():
        content = entry["structure"]
        structure = crystal(content, "a.json", name)
        assert not structure.problem()
        assert abs(np.linalg.det(structure.cell)) == pytest.approx(content["lattice"]["volume"], rel=1e-9)
        fractional = np.array([site["abc"] for site in content["sites"]])
        np.testing.assert_allclose(structure.positions, fractional @ structure.cell, atol=1e-8)
        counts = {atomic_numbers[symbol]: count for symbol, count in entry["composition"].items()}
        assert dict(zip(*np.unique(structure.numbers, return_counts=True), strict=True)) == counts


@pytest.fixture
def matbench(tmp_path):
    """Writes a data frame as MatBench does."""

    def write(rows, columns=("structure", "last phdos peak")):
        content = {"index": list(range(len(rows))), "columns": columns, "data": rows}
        (tmp_path / "matbench_x.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
        return MatbenchReader(tmp_path, file="matbench_x.json.gz")

    return write


def test_matbench(matbench):
    salt, iron = bulk("NaCl", "rocksalt", a=5.64), bulk("Fe")
    first, second = matbench([[as_pymatgen(salt), 300.5], [as_pymatgen(iron), 295]])
    assert (first.source, first.label, first.group, first.pbc) == ("1", "ClNa", "", (True, True, True))
    assert (first.properties, second.properties) == ({"last phdos peak": 300.5}, {"last phdos peak": 295.0})
    np.testing.assert_array_equal(first.positions, salt.positions)
    np.testing.assert_array_equal(first.cell, salt.cell.array)
    assert first.forces is None and np.isnan(first.energy)
    rows = [[as_pymatgen(iron), True], [as_pymatgen(salt), False]]
    assert [(s.group, s.properties) for s in matbench(rows, ("structure", "is_metal"))] == [
        ("True", {"is_metal": 1.0}),
        ("False", {"is_metal": 0.0}),
    ]


def test_bad_matbench(matbench, tmp_path):
    good = [as_pymatgen(bulk("Fe")), 1.0]
    refuses(matbench([]), "holds no rows")
    refuses(matbench([good], ["composition", "gap"]), "has the columns ['composition', 'gap']")
    refuses(matbench([good, [good[0], "high"]]), "matbench_x.json.gz: row 2: has no structure and target")
    refuses(matbench([good, good[:1]]), "matbench_x.json.gz: row 2: has no structure and target")
    mixed = as_pymatgen(bulk("Fe"))
    mixed["sites"][0]["species"] = [{"element": "Fe", "occu": 0.5}, {"element": "Co", "occu": 0.5}]
    refuses(matbench([good, [mixed, 1.0]]), "matbench_x.json.gz: 2: is no crystal that can be read")
    mixed["sites"][0]["species"] = [{"element": "Fe", "occu": 0.5}]
    refuses(matbench([[mixed, 1.0]]), "1: is no crystal that can be read: a site is occupied only in part")
    mixed["sites"][0]["species"] = [{"element": "Qq", "occu": 1}]
    refuses(matbench([[mixed, 1.0]]), "1: is no crystal that can be read: 'Qq' is missing or unknown")
    reader = matbench([good] * 3)
    content = gzip.decompress(reader.file.read_bytes())
    reader.file.write_bytes(gzip.compress(content[: len(content) - 100]))
    refuses(reader, "matbench_x.json.gz: is damaged or cut short")
    reader.file.write_bytes(gzip.compress(content)[:-30])
    refuses(reader, "matbench_x.json.gz: is damaged or cut short")
    refuses(MatbenchReader(tmp_path, file="none.json.gz"), "none.json.gz: is missing")


@pytest.mark.real
def test_matbench_real_targets(matbench, real):
    """The official index of the phonons task, with one structure for all."""
    index = json.loads(bz2.decompress((real / "matbench" / "matbench_phonons.json.bz2").read_bytes()))
    targets = list(index["last phdos peak"].values())
    iron = as_pymatgen(bulk("Fe"))
    structures = list(matbench([[iron, target] for target in targets]))
    assert len(structures) == 1265
    assert [f"mb-phonons-{int(s.source):04d}" for s in structures] == list(index["mbid"].values())
    assert [s.properties["last phdos peak"] for s in structures] == targets
    # MatBench's metadata: mean absolute deviation 323.787 1/cm.
    assert np.mean(np.abs(targets - np.mean(targets))) == pytest.approx(323.78696979348734, rel=1e-9)


@pytest.fixture
def qmof(tmp_path):
    """Writes the two files of QMOF for some structures."""

    def write(structures, **changes):
        ids = [f"qmof-{i:07x}" for i in range(len(structures))]
        pbe = {"energy_total": -10.5, "bandgap": 2.25, "cbm": 1.0}
        targets = [{"qmof_id": name, "outputs": {"pbe": pbe, "hle17": {"bandgap": None}}} for name in ids]
        entries = [{"qmof_id": name, "structure": s} for name, s in zip(ids, structures, strict=True)]
        folder = tmp_path / "qmof_database"
        folder.mkdir(exist_ok=True)
        (folder / "qmof.json").write_text(json.dumps(changes.get("targets", targets)))
        (folder / "qmof_structure_data.json").write_text(json.dumps(changes.get("entries", entries)))
        return QmofReader(tmp_path), targets, entries

    return write


@pytest.mark.real
def test_qmof_on_real_frameworks(qmof, real):
    frameworks = [read(real / "qmof" / name) for name in ("qmof-81035b4.cif", "qmof-fc0e787.cif")]
    reader, *_ = qmof([as_pymatgen(atoms) for atoms in frameworks])
    for structure, atoms in zip(reader, frameworks, strict=True):
        np.testing.assert_array_equal(structure.numbers, atoms.numbers)
        np.testing.assert_allclose(structure.positions, atoms.positions)
        np.testing.assert_allclose(structure.cell, atoms.cell.array)
        assert structure.properties == {"bandgap": 2.25, "energy_total": -10.5}
        assert not structure.problem()
    assert [s.source for s in reader] == ["qmof-0000000", "qmof-0000001"]


def test_bad_qmof(qmof, tmp_path):
    iron = as_pymatgen(bulk("Fe"))
    _, targets, entries = qmof([iron, iron])
    refuses(qmof([], targets=targets, entries=entries[:1])[0], "has fewer frameworks than qmof.json")
    refuses(qmof([], targets=targets[:1], entries=entries)[0], "has more frameworks than qmof.json")
    refuses(qmof([], targets=targets, entries=entries[::-1])[0], "qmof-0000001: is in another place in qmof.json")
    refuses(qmof([], targets=[{"outputs": {}}], entries=entries[:1])[0], "holds an entry without a 'qmof_id'")
    targets[1]["outputs"]["pbe"] = {"bandgap": None, "energy_total": 1.0}
    refuses(qmof([], targets=targets, entries=entries)[0], "qmof.json: qmof-0000001: has no outputs.pbe")
    refuses(QmofReader(tmp_path / "none"), "qmof.json: is missing")
