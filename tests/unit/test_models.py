import copy
import importlib.util
import itertools
import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from ase.geometry import wrap_positions

from atomcsi.errors import ConfigError
from atomcsi.models import torch_extras
from atomcsi.models.batch import AtomBatch, collate, join, periodic_cells
from atomcsi.models.gemnet_oc import GemNetOC
from atomcsi.models.potential import Potential, build_backbone
from atomcsi.structure import Structure
from atomcsi.structure_batch import StructureBatch

#: Small, with all interactions.
SETTINGS = {
    "num_blocks": 2,
    "emb_size_atom": 24,
    "emb_size_edge": 32,
    "emb_size_trip_in": 16,
    "emb_size_trip_out": 16,
    "emb_size_quad_in": 8,
    "emb_size_quad_out": 8,
    "emb_size_aint_in": 16,
    "emb_size_aint_out": 16,
    "num_radial": 16,
    "num_spherical": 4,
    "cutoff": 4.0,
    "max_neighbors": 1000,
    "max_neighbors_qint": 1000,
    "max_neighbors_aeaint": 1000,
}


def structure(atoms, tags=None, name="x"):
    cell = atoms.cell[:] if atoms.pbc.any() else None
    return Structure(
        numbers=atoms.numbers,
        positions=atoms.positions,
        source=name,
        label=name,
        cell=cell,
        pbc=tuple(atoms.pbc),
        tags=tags,
    )


def rattled(atoms, seed=0):
    """Without symmetry, so that nothing is right by chance."""
    atoms.positions += np.random.default_rng(seed).normal(scale=0.05, size=atoms.positions.shape)
    return atoms


def make_ethanol():
    return structure(rattled(molecule("CH3CH2OH")))


def make_slab():
    atoms = fcc111("Pt", (2, 2, 2), vacuum=6.0, orthogonal=False)
    add_adsorbate(atoms, "O", 1.2)
    atoms.pbc = True
    return structure(rattled(atoms), tags=np.array([0] * 4 + [1] * 4 + [2]))


@pytest.fixture
def ethanol():
    return make_ethanol()


@pytest.fixture
def water():
    return structure(rattled(molecule("H2O")))


@pytest.fixture
def slab():
    return make_slab()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads only get in each other's way with matrices of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def potential():
    torch.manual_seed(0)
    backbone = GemNetOC(**SETTINGS)
    backbone.fit_scales([batch([make_ethanol(), make_slab()])])
    return Potential(backbone).eval()


def batch(structures):
    return collate(structures, vacuum=SETTINGS["cutoff"] + 1.0)


def predict(potential, structures):
    with torch.no_grad():
        found = potential(batch(structures))
    return found.energy.numpy(), found.forces.numpy()


class TestTorchExtras:
    @pytest.mark.parametrize(
        ("reduce", "reference"), [("sum", "sum"), ("mean", "mean"), ("min", "amin"), ("max", "amax")]
    )
    @pytest.mark.parametrize("dim", [0, 1, -1])
    def test_scatter_equals_torch(self, reduce, reference, dim):
        torch.manual_seed(0)
        src = torch.randn(6, 7, 8, dtype=torch.float64)
        index = torch.randint(0, 4, (src.shape[dim],))
        index[index == 2] = 3  # leaves a slice of the result without values
        shape = [1, 1, 1]
        shape[dim] = -1
        size = list(src.shape)
        size[dim] = 5
        expected = torch.zeros(size, dtype=src.dtype).scatter_reduce(
            dim, index.view(shape).expand_as(src), src, reference, include_self=False
        )
        torch.testing.assert_close(torch_extras.scatter(src, index, dim, 5, reduce), expected)

    def test_scatter_finds_the_size(self):
        assert torch_extras.scatter(torch.ones(3), torch.tensor([0, 2, 2])).tolist() == [1, 0, 2]
        assert torch_extras.scatter(torch.ones(0), torch.tensor([], dtype=torch.long)).shape == (0,)

    def test_segments_equal_loops(self):
        src = torch.arange(12.0).reshape(6, 2)
        indptr = torch.tensor([0, 2, 2, 5, 6])
        expected = torch.stack([src[a:b].sum(0) for a, b in itertools.pairwise(indptr)])
        assert torch.equal(torch_extras.segment_csr(src, indptr), expected)
        assert torch.equal(torch_extras.segment_coo(src, torch.tensor([0, 0, 2, 2, 2, 3]), dim_size=4), expected)

    def test_rows_of_sparse_tensor_equal_loops(self):
        torch.manual_seed(0)
        row, col = torch.randint(0, 5, (20,)), torch.randint(0, 6, (20,))  # with repeated entries, as GemNet-OC has
        value = torch.arange(20)
        rows = torch.tensor([3, 0, 3, 4, 1])
        entries = sorted(zip(row.tolist(), col.tolist(), value.tolist(), strict=True))
        expected = [(new, c, v) for new, old in enumerate(rows.tolist()) for r, c, v in entries if r == old]
        found = torch_extras.SparseTensor(row=row, col=col, value=value, sparse_sizes=(5, 6))[rows]
        assert list(zip(*(part.tolist() for part in found.coo()), strict=True)) == expected
        assert found.sparse_sizes() == (5, 6)
        numbered = found.set_value_(torch.arange(len(expected)))
        assert numbered.storage.value().tolist() == list(range(len(expected)))

    def test_install_registers_only_what_is_missing(self, monkeypatch):
        torch_extras.install()
        before = sys.modules["torch_scatter"]
        torch_extras.install()
        assert sys.modules["torch_scatter"] is before
        assert importlib.util.find_spec("torch_sparse") is not None  # other packages ask so


class TestBatch:
    def test_holds_structures_in_a_row(self, ethanol, slab):
        ethanol.energy, ethanol.forces = -1.5, np.ones((9, 3))
        slab.fixed = np.arange(9) < 4
        both = batch([ethanol, slab])
        assert len(both) == 2
        assert both.natoms.tolist() == [9, 9]
        assert both.index.tolist() == [0] * 9 + [1] * 9
        assert both.numbers.tolist() == [*ethanol.numbers, *slab.numbers]
        assert both.tags.tolist() == [2] * 9 + [0] * 4 + [1] * 4 + [2]
        assert both.fixed.tolist() == [False] * 9 + [True] * 4 + [False] * 5
        assert both.energy[0] == -1.5
        assert both.energy[1].isnan()
        assert both.forces[:9].eq(1).all()
        assert both.forces[9:].isnan().all()
        assert both.pbc.tolist() == [[False] * 3, [True] * 3]
        assert {both.positions.dtype, both.cell.dtype, both.forces.dtype} == {torch.float32}
        assert both.energy.dtype == torch.float64
        assert collate([ethanol], vacuum=1.0, dtype=torch.float64).positions.dtype == torch.float64

    def test_forces_are_none_without_any(self, ethanol):
        assert batch([ethanol]).forces is None

    @pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (False, True, False), (False,) * 3])
    def test_atoms_are_wrapped_as_ase_does(self, pbc):
        """Along periodic directions only; together with a molecule."""
        cell = np.array([[3.0, 1.0, 0.0], [0.0, 4.0, 1.0], [1.0, 0.0, 9.0]])
        positions = np.random.default_rng(0).uniform(-9, 9, (20, 3))
        crystal = structure(Atoms("H20", positions=positions, cell=cell, pbc=pbc))
        both = collate([structure(molecule("H2O")), crystal], vacuum=5.0, dtype=torch.float64)
        expected = wrap_positions(positions, both.cell[1].numpy(), pbc)
        np.testing.assert_allclose(both.positions[3:].numpy(), expected, atol=1e-12)
        assert np.array_equal(both.positions[:3].numpy(), molecule("H2O").positions)

    def test_joined_batches_equal_one(self, ethanol, slab, water):
        water.forces = np.ones((3, 3))
        assert_equal_batches(join([batch([ethanol, slab]), batch([water])]), batch([ethanol, slab, water]))

    def test_to_moves_everything(self, ethanol):
        moved = batch([ethanol]).to("meta")
        assert moved.positions.is_meta
        assert moved.index.is_meta
        assert moved.forces is None

    def test_molecules_get_a_box_with_vacuum(self, water):
        cell = periodic_cells(StructureBatch.of([water]), 5.0)[0]
        assert np.array_equal(cell, np.diag(np.ptp(water.positions, axis=0) + 5.0))

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_a_direction_that_is_not_periodic_gets_vacuum(self, axis):
        cell = np.array([[3.0, 1.0, 0.0], [0.0, 4.0, 1.0], [1.0, 0.0, 2.0]])
        pbc = tuple(i != axis for i in range(3))
        atoms = Atoms("H3", positions=np.random.default_rng(0).uniform(0, 9, (3, 3)), cell=cell, pbc=pbc)
        found = periodic_cells(StructureBatch.of([structure(atoms)]), 5.0)[0]
        others = [i for i in range(3) if i != axis]
        assert np.array_equal(found[others], cell[others])
        np.testing.assert_allclose(found[others] @ found[axis], 0, atol=1e-12)
        normal = np.cross(*cell[others])
        extent = np.ptp(atoms.positions @ normal) / np.linalg.norm(normal)
        assert np.linalg.norm(found[axis]) == pytest.approx(extent + 5.0)

    def test_keeps_cells_of_periodic_structures(self, slab):
        assert np.array_equal(periodic_cells(StructureBatch.of([slab]), 50.0)[0], slab.cell)


def assert_equal_batches(found: AtomBatch, expected: AtomBatch):
    for name in AtomBatch.__slots__:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0, equal_nan=True)


class TestPotential:
    def test_state_dict_in_a_fresh_model_gives_the_same(self, potential, ethanol, slab):
        torch.manual_seed(5)
        fresh = Potential(GemNetOC(**SETTINGS)).eval()
        fresh.backbone.fit_scales([batch([slab])])  # other scale factors than those to be loaded
        fresh.load_state_dict(potential.state_dict())
        for other in (fresh, copy.deepcopy(potential)):
            for found, expected in zip(predict(other, [ethanol]), predict(potential, [ethanol]), strict=True):
                assert np.array_equal(found, expected)

    def test_heads(self, potential, water):
        energy_only = Potential(potential.backbone, heads=("energy",))(batch([water]))
        assert energy_only.energy.shape == (1,)
        assert energy_only.forces is None
        forces_only = Potential(potential.backbone, heads=("forces",))(batch([water]))
        assert forces_only.energy is None
        assert forces_only.forces.shape == (3, 3)
        with pytest.raises(ConfigError, match="did you mean 'forces'"):
            Potential(potential.backbone, heads=("force",))

    def test_starts_near_zero(self, potential, ethanol):
        energy, forces = predict(potential, [ethanol])
        assert abs(energy).max() < len(ethanol)
        assert abs(forces).max() < 3.0


class TestBuildBackbone:
    def test_unknown_setting(self):
        with pytest.raises(ConfigError, match="unknown setting 'num_block' of gemnet-oc; did you mean 'num_blocks'"):
            build_backbone({"implementation": "gemnet-oc", "settings": {"num_block": 3}})

    def test_unknown_implementation(self):
        with pytest.raises(ConfigError, match="gemnet-oc"):
            build_backbone({"implementation": "gemnet-co", "settings": {}})
