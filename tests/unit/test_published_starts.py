"""Finetuning from checkpoints in their authors' layout."""

import json

import pytest
import torch
import yaml
from ase.build import fcc111, molecule
from published_checkpoint import publish

from atomcsi.cli import main
from atomcsi.config import BackboneSpec, Task, TrainSettings
from atomcsi.errors import InputError
from atomcsi.extractors.equiformer_v2 import EquiformerV2Extractor
from atomcsi.extractors.gemnet_oc import GemNetOCExtractor
from atomcsi.models.gemnet_oc.jmp import SETTINGS, jmp
from atomcsi.models.potential import build_backbone
from atomcsi.structure import Structure
from atomcsi.training.processes import Execution
from atomcsi.training.train import finetune

# isort: split
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone

SIZES = {
    "num_layers": 1, "sphere_channels": 8, "attn_hidden_channels": 8, "num_heads": 2, "attn_alpha_channels": 4,
    "attn_value_channels": 4, "ffn_hidden_channels": 8, "grid_resolution": 18, "edge_channels": 8,
    "max_num_elements": 90, "max_neighbors": 100,
}  # fmt: skip
OURS = BackboneSpec(implementation="equiformer-v2", settings={**SIZES, "lmax": 2, "mmax": 1, "cutoff": 4.0})

JMP_TINY = {
    "num_blocks": 1, "num_radial": 8, "num_spherical": 3, "emb_size_atom": 8, "emb_size_edge": 12,
    "emb_size_trip_in": 4, "emb_size_trip_out": 4, "emb_size_quad_in": 4, "emb_size_quad_out": 4,
    "emb_size_aint_in": 4, "emb_size_aint_out": 4, "emb_size_rbf": 4, "emb_size_cbf": 4, "emb_size_sbf": 4,
    "num_before_skip": 1, "num_after_skip": 1, "num_concat": 1, "num_atom": 1, "num_output_afteratom": 1,
    "num_atom_emb_layers": 1,
}  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path):
    """A small model in the layout of fairchem's published ones, heads included."""
    torch.manual_seed(0)
    settings = {**SIZES, "lmax_list": [2], "mmax_list": [1], "max_radius": 4.0, "norm_type": "layer_norm_sh"}
    settings |= {"attn_activation": "silu", "ffn_activation": "silu", "use_grid_mlp": True, "weight_init": "uniform"}
    model = EquiformerV2Backbone(**settings, regress_forces=False)
    publish(tmp_path / "eq.pt", model, config={"model": {"name": "equiformer_v2", **settings}})
    return tmp_path / "eq.pt"


def structure(atoms):
    cell = atoms.cell[:] if atoms.pbc.any() else None
    return Structure(
        numbers=atoms.numbers, positions=atoms.positions, source="x", label="x", cell=cell, pbc=tuple(atoms.pbc)
    )


def test_features_are_those_of_the_published_model(checkpoint):
    """As the extractor, which runs fairchem's own model, has them; its edges have random frames."""
    members = [structure(molecule("CH3CH2OH")), structure(fcc111("Cu", (2, 2, 2), vacuum=6.0, periodic=True))]
    backbone = build_backbone(OURS.model_dump()).eval()
    backbone.load_published(checkpoint)
    with torch.no_grad():
        found = backbone(backbone.collate()(members)).node
    expected = EquiformerV2Extractor(checkpoint=checkpoint, features="invariant").features(members)
    expected = torch.cat([torch.as_tensor(rows) for rows in expected])
    # Rounding, and the grid on which activations are taken.
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()


class TestJMP:
    """JMP-S and JMP-L in their authors' layout, which the tests of the extractor check against their own code."""

    @pytest.fixture
    def checkpoint(self, tmp_path, monkeypatch):
        monkeypatch.setitem(SETTINGS, "JMP-tiny", JMP_TINY)
        names = {"edge_emb.": "bases.edge_emb.", "out_mlp_E.": "out_mlp_E.out_mlp.", "out_mlp_F.": "out_mlp_F.out_mlp."}
        torch.manual_seed(0)
        state = {}
        for name, tensor in jmp("JMP-tiny", direct_forces=True).state_dict().items():
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            state["embedding.atom_embedding.weight" if name.startswith("atom_emb.") else f"backbone.{name}"] = tensor
        torch.save({"state_dict": state}, tmp_path / "jmp.pt")
        return tmp_path / "jmp.pt"

    def test_features_are_those_of_the_extractor(self, checkpoint):
        members = [structure(molecule("CH3CH2OH")), structure(molecule("H2O"))]
        backbone = jmp("JMP-tiny", direct_forces=True).eval()
        backbone.load_published(checkpoint)
        with torch.no_grad():
            found = backbone(backbone.collate()(members)).node
        expected = GemNetOCExtractor(checkpoint=checkpoint).features(members)
        torch.testing.assert_close(found, torch.cat([torch.as_tensor(rows) for rows in expected]))

    def test_finetuning_starts_from_it(self, checkpoint, toy_lmdb, tmp_path, repository):
        of_jmp = yaml.safe_load((repository / "config" / "backbones" / "jmp-s.yaml").read_text())["settings"]
        backbone = BackboneSpec(implementation="gemnet-oc", settings={**of_jmp, **JMP_TINY})
        run(toy_lmdb(8), tmp_path / "fine", checkpoint, backbone)
        assert (tmp_path / "fine" / "metrics.json").exists()
        other = BackboneSpec(implementation="gemnet-oc", settings={**backbone.settings, "emb_size_edge": 16})
        with pytest.raises(InputError, match=r"jmp\.pt: does not fit the backbone's GemNet-OC: .* of another shape"):
            run(toy_lmdb(8), tmp_path / "other", checkpoint, other)

    @pytest.mark.parametrize("size", ["s", "l"])
    def test_configs_are_those_of_the_published_models(self, repository, size):
        content = yaml.safe_load((repository / "config" / "backbones" / f"jmp-{size}.yaml").read_text())
        with torch.device("meta"):
            ours = build_backbone(content)
            theirs = jmp(f"JMP-{size.upper()}", direct_forces=True)
        shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (ours, theirs)]
        assert shapes[0] == shapes[1]
        assert ours.graph_settings == theirs.graph_settings


def task():
    settings = TrainSettings(structures=8, epochs=1, batch_size=4, learning_rate=1e-3, energy_weight=0)
    return Task(dataset="toy", target="forces", unit="eV/angstrom", finetune=settings)


def run(store, folder, checkpoint, backbone=OURS):
    finetune(
        dict.fromkeys(("train", "val", "test"), store), folder, task=task(), task_name="toy", init=checkpoint,
        init_name="eq", backbone=backbone, seed=0, execution=Execution(device="cpu"),
    )  # fmt: skip


def test_finetuning_starts_from_it(checkpoint, toy_lmdb, tmp_path):
    run(toy_lmdb(8), tmp_path / "fine", checkpoint)
    assert json.loads((tmp_path / "fine" / "metrics.json").read_text())["init"] == "eq"
    start = json.loads((tmp_path / "fine" / "model.json").read_text())["pretrained"]
    assert start["checkpoint"] == "eq.pt" and len(start["sha256"]) == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_num_elements": 100}, r"eq\.pt: knows elements below 90, .* \(set max_num_elements: 90"),
        ({"num_layers": 2}, r"eq\.pt: does not fit the backbone's EquiformerV2: \d+ tensors missing"),
        ({"edge_channels": 16}, r"eq\.pt: does not fit the backbone's EquiformerV2: \d+ tensors of another shape"),
    ],
)
def test_a_backbone_of_other_settings(checkpoint, toy_lmdb, tmp_path, changes, message):
    other = BackboneSpec(implementation="equiformer-v2", settings={**OURS.settings, **changes})
    with pytest.raises(InputError, match=message):
        run(toy_lmdb(8), tmp_path / "fine", checkpoint, other)


def test_backbones_without_published_checkpoints(checkpoint, toy_lmdb, tmp_path):
    painn = BackboneSpec(implementation="painn", settings={"hidden_channels": 8, "num_layers": 1})
    with pytest.raises(InputError, match=r"eq\.pt: cannot be loaded: no layout of checkpoints is known for PaiNN"):
        run(toy_lmdb(8), tmp_path / "fine", checkpoint, painn)
    with pytest.raises(InputError, match=r"none\.pt: is missing \(correct the path"):
        run(toy_lmdb(8), tmp_path / "fine", tmp_path / "none.pt")


def test_a_checkpoint_needs_a_name(checkpoint, toy_lmdb, tmp_path, capsys):
    path = str(toy_lmdb(8).path)
    with pytest.raises(SystemExit) as stop:
        main(["finetune", "--train", path, "--val", path, "--test", path, "--out", str(tmp_path / "fine"),
              "--seed", "0", "--name", "toy", "--init", str(checkpoint), "--backbone", OURS.model_dump_json(),
              "--task", task().model_dump_json()])  # fmt: skip
    assert stop.value.code == 1
    assert "is no folder of a model (name a checkpoint's start with --init-name)" in capsys.readouterr().err
