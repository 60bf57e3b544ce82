import warnings

import ase.db
import numpy as np
import pytest
import torch

from atomcsi.export import export_aselmdb, pyg_data
from atomcsi.structure import Structure
from atomcsi.structure_batch import StructureBatch
from atomcsi.structure_lmdb import StructureLMDB, write_structures


@pytest.fixture
def slab() -> Structure:
    return Structure(
        numbers=np.array([29, 29, 8]),
        positions=np.arange(9.0).reshape(3, 3),
        source="random7/frame3",
        label="Cu2",
        energy=-17617.379355234374,
        forces=np.arange(9.0).reshape(3, 3) - 4,
        properties={"gap": 1.25},
        cell=np.diag([5.0, 6.0, 20.0]),
        pbc=(True, True, True),
        tags=np.array([0, 1, 2]),
        fixed=np.array([True, False, False]),
    )


@pytest.fixture
def exported(tmp_path, slab):
    bare = Structure(numbers=np.array([1]), positions=np.zeros((1, 3)), source="b", label="H", properties={"gap": 0})
    write_structures(tmp_path / "x.lmdb", [slab, bare], property_names=["gap"], provenance={"dataset": "x"})
    assert export_aselmdb(tmp_path / "x.lmdb", tmp_path / "x.aselmdb") == 2
    return tmp_path / "x.aselmdb"


def test_ase_db_backends_reads_the_export(exported, slab):
    """The package that fairchem reads ``.aselmdb`` with."""
    with ase.db.connect(exported, type="aselmdb", readonly=True) as database:
        assert len(database) == 2
        row, bare = database.get(1), database.get(2)
        atoms = database.get_atoms(1)
        assert database.metadata["provenance"] == {"dataset": "x"}
    np.testing.assert_array_equal(atoms.numbers, slab.numbers)
    np.testing.assert_array_equal(atoms.positions, slab.positions)
    np.testing.assert_array_equal(atoms.cell, slab.cell)
    np.testing.assert_array_equal(atoms.get_tags(), slab.tags)
    np.testing.assert_array_equal(atoms.constraints[0].index, [0])
    assert atoms.pbc.all() and atoms.get_potential_energy() == slab.energy
    np.testing.assert_array_equal(atoms.get_forces(apply_constraint=False), slab.forces)
    assert row.data == {"source": "random7/frame3", "label": "Cu2", "gap": 1.25}
    assert bare.get("energy") is None and bare.toatoms().calc is None


def test_the_same_export_twice(exported):
    first = exported.read_bytes()
    export_aselmdb(exported.with_suffix(".lmdb"), exported)
    assert exported.read_bytes() == first


def test_data_of_pytorch_geometric(slab, toy_structures, tmp_path):
    from torch_geometric.data import Batch

    molecule = toy_structures(1)[0]
    write_structures(tmp_path / "y.lmdb", [molecule, slab], provenance={})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch warns of tensors that must not be written to
        first, second = pyg_data(StructureLMDB(tmp_path / "y.lmdb").read_batch([0, 1]))
    assert set(first.keys()) == {"pos", "atomic_numbers", "natoms", "energy", "sid", "forces"}
    assert (first.num_nodes, first.energy, first.sid) == (6, molecule.energy, "toy/0")
    torch.testing.assert_close(second.pos, torch.tensor(slab.positions, dtype=torch.float32))
    torch.testing.assert_close(second.cell, torch.tensor(slab.cell, dtype=torch.float32)[None])
    assert second.tags.tolist() == [0, 1, 2] and second.fixed.tolist() == [True, False, False]
    assert Batch.from_data_list([second, second]).batch.tolist() == [0, 0, 0, 1, 1, 1]


def test_structures_without_labels_have_none_in_data():
    bare = Structure(numbers=np.array([1]), positions=np.zeros((1, 3)), source="b", label="H")
    (data,) = pyg_data(StructureBatch.of([bare]))
    assert "forces" not in data and "cell" not in data
