"""GemNet-OC's options: graphs of datasets, scale factors, edges left out, checkpointing, half precision, configs."""

import copy
import logging
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule

from atomcsi.catalogue import Graph
from atomcsi.errors import AtomcsiError, ConfigError
from atomcsi.models.gemnet_oc import GemNetOC
from atomcsi.models.gemnet_oc.layers import Scale
from atomcsi.models.potential import Potential, build_backbone
from atomcsi.structure import Structure
from atomcsi.structure_batch import StructureBatch

BACKBONES = Path(__file__).parents[2] / "config" / "backbones"
CONFIGS = [path for pattern in ("gemnet-oc-*.yaml", "jmp-*.yaml") for path in sorted(BACKBONES.glob(pattern))]
SIZES = {
    "num_blocks": 2,
    "emb_size_atom": 16,
    "emb_size_edge": 24,
    "emb_size_trip_in": 8,
    "emb_size_trip_out": 8,
    "emb_size_quad_in": 8,
    "emb_size_quad_out": 8,
    "emb_size_aint_in": 8,
    "emb_size_aint_out": 8,
    "emb_size_sbf": 8,
    "num_radial": 12,
    "num_spherical": 5,
}
TRIPLETS_ONLY = dict.fromkeys(
    ["quad_interaction", "atom_edge_interaction", "edge_atom_interaction", "atom_interaction"], False
)
#: Relative to the largest entry, in float64; 1e-14 was seen.
ROUNDING = 1e-11


def structure(atoms, seed=0):
    """Rattled, so that nothing is right by chance."""
    positions = atoms.positions + np.random.default_rng(seed).normal(scale=0.1, size=atoms.positions.shape)
    cell = atoms.cell[:] if atoms.pbc.any() else None
    return Structure(numbers=atoms.numbers, positions=positions, source="x", label="x", cell=cell, pbc=tuple(atoms.pbc))


def make_slab():
    atoms = fcc111("Cu", (2, 2, 3), vacuum=7.0)
    add_adsorbate(atoms, molecule("CO"), 1.9, "ontop")
    atoms.pbc = True
    return structure(atoms)


@pytest.fixture
def ethanol():
    return structure(molecule("CH3CH2OH"))


@pytest.fixture
def water():
    return structure(molecule("H2O"))


@pytest.fixture
def slab():
    return make_slab()


def make_model(dtype=torch.float64, **options):
    """The same weights for the same sizes, whatever the other options."""
    torch.manual_seed(0)
    return GemNetOC(**SIZES | options).to(dtype)


def batch_of(model, structures, graphs=(None,), dtype=torch.float64):
    return replace(model.collate(graphs), dtype=dtype)(structures)


def assert_close(found, expected, tolerance=ROUNDING):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item())


class TestGraphsOfDatasets:
    def test_a_batch_equals_models_with_these_cutoffs(self, ethanol, slab):
        """Molecules at 8 Angstrom and slabs at 12 in one batch, against one model for each."""
        graphs = [Graph(cutoff=8.0, max_neighbors=12), Graph(cutoff=12.0, max_neighbors=30)]
        model = make_model(cutoff=10.0, basis_cutoff=12.0)
        both = replace(StructureBatch.of([slab, ethanol]), dataset=np.array([1, 0]))
        found = model(batch_of(model, both, graphs))
        # Other limits are 8/30 and 20/30 of the first one.
        of_molecules = make_model(cutoff=8.0, basis_cutoff=12.0,
                                  max_neighbors=12, max_neighbors_qint=3, max_neighbors_aeaint=8)  # fmt: skip
        of_slabs = make_model(cutoff=12.0)
        expected = [of_slabs(batch_of(of_slabs, [slab])), of_molecules(batch_of(of_molecules, [ethanol]))]
        assert_close(found.node, torch.cat([features.node for features in expected]))
        assert_close(found.edge(), torch.cat([features.edge() for features in expected]))

    def test_molecules_may_have_a_cutoff_of_their_own(self, ethanol, slab):
        model, of_molecules = make_model(molecule_cutoff=8.0), make_model(cutoff=8.0, basis_cutoff=12.0)
        found = model(batch_of(model, [ethanol, slab])).node
        assert_close(found[:9], of_molecules(batch_of(of_molecules, [ethanol])).node)
        assert_close(found[9:], model(batch_of(model, [slab])).node)


class TestScales:
    def test_give_their_outputs_the_variance_of_their_references(self, ethanol, slab, monkeypatch):
        model = make_model()
        batch = batch_of(model, [ethanol, slab])
        scales = {scale for scale in model.modules() if isinstance(scale, Scale)}
        for scale in scales:
            scale.scale_factor.fill_(7.0)  # what was fitted before must not matter
        model.fit_scales([batch])
        seen = {}

        def observe(scale, x, reference):
            """What fitting would see once more, with the fitted factors in all places."""
            seen[scale] = (x * scale.scale_factor).var(0).mean() / reference.var(0).mean()

        monkeypatch.setattr(Scale, "fit", observe)
        for scale in scales:
            scale.fitting = True
        model(batch).edge()
        assert seen.keys() == scales
        assert len(scales) == 2 * 11 + 3 * 2  # per block 11, per output block 2
        torch.testing.assert_close(torch.stack(list(seen.values())), torch.ones(len(seen)).double(), rtol=1e-5, atol=0)
        assert len({float(scale.scale_factor) for scale in scales}) == len(scales)

    def test_fitting_again_gives_the_same(self, ethanol, slab):
        model = make_model()
        batches = [batch_of(model, [ethanol]), batch_of(model, [slab])]
        model.fit_scales(batches)
        before = copy.deepcopy(model.state_dict())
        model.fit_scales(batches)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_are_stored_with_the_weights(self, ethanol, slab):
        model, other = make_model(), make_model()
        batch = batch_of(model, [ethanol, slab])
        model.fit_scales([batch])
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(batch).node, model(batch).node)
        assert sum(name.endswith("scale_factor") for name in model.state_dict()) == 28

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_of_activations_that_do_not_vary(self, water, dtype):
        """Three atoms form no quadruplets, and what rounding leaves of their sums is no activation."""
        model = make_model(dtype)
        with pytest.raises(AtomcsiError, match="do not vary"):
            model.fit_scales([batch_of(model, [water], dtype=dtype)])
        assert not any(scale.fitting for scale in model.modules() if isinstance(scale, Scale))


class TestEdgesLeftOut:
    """Without condensing layers, features of edges that are left out are 0."""

    @staticmethod
    def left_out(features):
        return features.edge().abs().sum(1) == 0

    def test_what_remains_is_a_graph_without_them(self, ethanol, slab):
        model = make_model(**TRIPLETS_ONLY).train()
        batch = batch_of(model, [ethanol, slab])
        model.drop_edges(0.3)
        torch.manual_seed(1)
        found = model(batch)
        kept = ~self.left_out(found)
        assert torch.equal(kept, kept[batch.graph.reverse])
        assert kept.double().mean().item() == pytest.approx(0.7, abs=0.1)  # 244 pairs are drawn: a deviation of 0.03
        main = batch.graph.main
        values = {field.name: getattr(main, field.name) for field in fields(main)}
        parts = {name: value[kept] for name, value in values.items() if isinstance(value, torch.Tensor)}
        place = kept.cumsum(0) - 1
        graph = replace(batch.graph, main=replace(main, **parts), reverse=place[batch.graph.reverse[kept]])
        expected = model.eval()(replace(batch, graph=graph))
        assert_close(found.node, expected.node)
        assert_close(found.edge()[kept], expected.edge())

    def test_no_interaction_sees_them(self, ethanol, slab):
        """All edges are left out: what remains is known from the elements and from nothing else."""
        model = make_model().train()
        model.drop_edges(1.0)
        found = model(batch_of(model, [ethanol, slab]))
        for number in (1, 6, 29):
            own = found.node[batch_of(model, [ethanol, slab]).numbers == number]
            assert_close(own, own[:1].expand_as(own))
        assert self.left_out(found).all()

    def test_is_for_training_and_seeded(self, ethanol, slab):
        model = make_model()
        batch = batch_of(model, [ethanol, slab])
        expected = model.eval()(batch).node
        model.drop_edges(0.3)
        assert torch.equal(model(batch).node, expected)
        model.train()
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            drawn.append(model(batch).node)
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])


def gradients(model, batch):
    """Of a loss that reads all features, and the memory in MB that is held until they are known."""
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = model(batch)
        loss = features.node.square().mean() + features.edge().square().mean()
    loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters()}, sum(saved.values()) / 1e6


def test_checkpointing_keeps_gradients_and_saves_memory(ethanol, slab):
    plain, leaner = make_model(num_blocks=4).train(), make_model(num_blocks=4, checkpointing=True).train()
    batch = batch_of(plain, [ethanol, slab])
    (expected, much), (found, little) = (gradients(model, batch) for model in (plain, leaner))
    for name, gradient in expected.items():
        assert_close(found[name], gradient, 1e-13)
    assert little < 0.5 * much


def test_bfloat16_leaves_geometry_alone(ethanol, slab):
    """bfloat16 resolves 4e-3 of a number; 8e-3 and 1.4e-2 were seen in features of atoms and edges."""
    model = make_model(torch.float32)
    batch = batch_of(model, [ethanol, slab], dtype=torch.float32)
    model.fit_scales([batch])
    model.eval()
    with torch.no_grad():
        expected = model(batch)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(batch)
            of_edges = found.edge()
    assert torch.equal(found.edge_direction, expected.edge_direction)
    for one, other in ((found.node, expected.node), (of_edges, expected.edge())):
        assert (one - other).norm() < 0.03 * other.norm()


def test_direct_forces_need_their_layers(water):
    model = make_model(direct_forces=False)
    with pytest.raises(ConfigError, match="direct_forces: false"):
        model(batch_of(model, [water])).edge()


def test_limits_that_shrink_leave_every_interaction_a_neighbour(ethanol):
    """8 and 20 of 30 are less than one of one."""
    model = make_model()
    graph = batch_of(model, [ethanol], [Graph(cutoff=12.0, max_neighbors=1)]).graph
    for edges in (graph.main, graph.quadruplet, graph.atom_edge):
        assert (edges.target.bincount(minlength=9) >= 1).all()


class TestAtomsWithoutEdges:
    @pytest.mark.parametrize("forces", ["direct", "gradient"])
    def test_learn_and_feel_no_force(self, water, forces):
        """float32, the type of training: its matrix products must take empty batches too."""
        atom = structure(Atoms("H"))
        torch.manual_seed(0)
        potential = Potential(GemNetOC(**SIZES, cutoff=3.0), forces=forces)
        for members in ([atom, atom], [atom, water]):
            found = potential(batch_of(potential.backbone, members, dtype=torch.float32))
            (found.energy.sum() + found.forces.square().sum()).backward()
            assert found.forces[0].tolist() == [0, 0, 0]
        alone = potential(batch_of(potential.backbone, [water], dtype=torch.float32))
        torch.testing.assert_close(found.energy[1:], alone.energy)

    def test_directions_point_to_the_target(self):
        model = make_model()
        features = model(
            batch_of(
                model,
                [
                    Structure(
                        numbers=np.array([1, 8]), positions=np.array([[0, 0, 0], [0, 0, 1.0]]), source="x", label="x"
                    )
                ],
            )
        )
        assert features.edge_target.tolist() == [0, 1]
        assert features.edge_direction.tolist() == [[0, 0, -1], [0, 0, 1]]

    def test_is_quiet(self, water, capfd, caplog):
        handlers = list(logging.getLogger().handlers)
        model = make_model()
        model(batch_of(model, [water, structure(Atoms("H"))]))
        assert capfd.readouterr() == ("", "")
        assert not caplog.records
        assert logging.getLogger().handlers == handlers


class TestConfigFiles:
    @pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
    def test_parameters_and_scale_factors(self, path):
        """Published are 39 million for GemNet-OC and 216 million for its large form (arXiv 2306.12059, table 2)."""
        with torch.device("meta"):  # without drawing hundreds of millions of weights
            backbone = build_backbone(yaml.safe_load(path.read_text()))
        weights = sum(weight.numel() for weight in backbone.parameters())
        scales = sum(isinstance(module, Scale) for module in backbone.modules())
        # 11 scale factors in each block, 3 without all interactions but triplets; 2 in each output block.
        expected = {
            "s": (38.9, 4 * 11 + 5 * 2),
            "l": (216.4, 6 * 11 + 7 * 2),
            "tiny": (0.1, 2 * 3 + 3 * 2),
            "tiny-l": (0.6, 3 * 3 + 4 * 2),
        }
        assert (round(weights / 1e6, 1), scales) == expected[path.stem.removeprefix("gemnet-oc-").removeprefix("jmp-")]
