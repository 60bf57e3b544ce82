import os
import re
import zipfile

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from published_checkpoint import SMALL, publish, small_config
from scipy.spatial.transform import Rotation

from atomcsi.errors import ConfigError, InputError
from atomcsi.extractors.chgnet import ChgnetExtractor
from atomcsi.extractors.composition import CompositionExtractor
from atomcsi.extractors.equiformer_v2 import SETTINGS_31M, EquiformerV2Extractor
from atomcsi.extractors.gemnet_oc import GemNetOCExtractor
from atomcsi.extractors.sevennet import SevenNetExtractor
from atomcsi.files import write_json
from atomcsi.models.batch import collate
from atomcsi.models.checkpoints import SAFE_GLOBALS
from atomcsi.models.potential import Potential, build_backbone
from atomcsi.structure import Structure
from atomcsi.training.model_files import SCHEMA, load_backbone, read_card, save_model

# isort: split
from fairchem.core.models.base import HydraModel
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone


def structure(atoms):
    cell = atoms.cell[:] if atoms.pbc.any() else None
    return Structure(
        numbers=atoms.numbers, positions=atoms.positions, source="x", label="x", cell=cell, pbc=tuple(atoms.pbc)
    )


def crystal():
    atoms = bulk("NaCl", "rocksalt", 5.64) * (2, 1, 1)
    atoms.positions += np.random.default_rng(0).normal(scale=0.1, size=atoms.positions.shape)
    return atoms


def test_composition():
    (found,) = CompositionExtractor().features([structure(Atoms("OH2", positions=np.eye(3)))])
    assert found.sum() == 3
    assert found[0, 8 - 1] == found[1, 0] == found[2, 0] == 1


class TestSevenNet:
    @pytest.fixture(scope="class")
    def extractor(self):
        return SevenNetExtractor()

    @pytest.mark.filterwarnings("ignore")
    def test_equals_sevennet(self, extractor):
        """What its own calculator sees behind the last gate."""
        from sevenn.calculator import SevenNetCalculator

        calculator = SevenNetCalculator("7net-0", device="cpu")
        seen = []
        gate = calculator.model.get_submodule("4_equivariant_gate")
        gate.register_forward_hook(lambda module, args, output: seen.append(output["x"].detach().numpy().copy()))
        members = [crystal(), molecule("CH3CH2OH")]
        for atoms in members:
            atoms.calc = calculator
            atoms.get_potential_energy()
        for found, expected in zip(extractor.features([structure(a) for a in members]), seen, strict=True):
            # 1e-5 of the largest: sums over edges in float32, in another order.
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    def test_rotation(self, extractor):
        atoms = crystal()
        before = extractor.features([structure(atoms), structure(molecule("C6H6"))])
        rotation = Rotation.random(rng=np.random.default_rng(0)).as_matrix()
        turned = [atoms, molecule("C6H6")]
        for each in turned:
            each.positions = each.positions @ rotation.T
        atoms.cell = atoms.cell[:] @ rotation.T
        for found, expected in zip(extractor.features([structure(a) for a in turned]), before, strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    def test_elements(self, extractor):
        assert len(extractor.elements) == 89  # MPtrj's; the model card of 7net-0


class TestChgnet:
    def test_equals_chgnet(self):
        """What its own prediction from a pymatgen structure tells."""
        from chgnet.model.model import CHGNet
        from pymatgen.io.ase import AseAtomsAdaptor

        members = [crystal(), molecule("CH3CH2OH", vacuum=10.0, pbc=True)]
        model = CHGNet.load(use_device="cpu", verbose=False)
        extractor = ChgnetExtractor()
        for atoms, found in zip(members, extractor.features([structure(a) for a in members]), strict=True):
            expected = model.predict_structure(AseAtomsAdaptor.get_structure(atoms), return_atom_feas=True)["atom_fea"]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    def test_rotation(self):
        before, after = molecule("CH3CH2OH"), molecule("CH3CH2OH")
        after.positions = after.positions @ Rotation.random(rng=np.random.default_rng(0)).as_matrix().T
        expected, found = ChgnetExtractor().features([structure(before), structure(after)])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    def test_elements(self):
        from chgnet.model.model import CHGNet

        model = CHGNet.load(use_device="cpu", verbose=False)
        assert len(ChgnetExtractor.elements) == model.atom_embedding.embedding.num_embeddings


class TestGemNetOC:
    @pytest.fixture
    def folder(self, tmp_path):
        torch.manual_seed(0)
        backbone = {
            "implementation": "gemnet-oc",
            "settings": {"num_blocks": 1, "emb_size_atom": 8, "emb_size_edge": 8, "cutoff": 5.0, "max_neighbors": 9},
        }
        save_model(tmp_path, Potential(build_backbone(backbone)), {"backbone": backbone})
        return tmp_path

    def test_features_are_those_of_the_pretrained_backbone(self, folder):
        settings = read_card(folder)["backbone"]
        backbone = build_backbone(settings)
        load_backbone(backbone, folder)
        members = [structure(molecule("CH3CH2OH")), structure(molecule("H2O"))]
        extractor = GemNetOCExtractor(checkpoint=folder / "model.safetensors")
        assert (extractor.dim, extractor.cutoff, extractor.max_neighbors) == (16, 5.0, 9)
        with torch.no_grad():
            expected = backbone(collate(members, vacuum=6.0)).node.numpy()
        assert np.array_equal(np.concatenate(extractor.features(members)), expected)
        assert GemNetOCExtractor(checkpoint=folder).checkpoint == folder / "model.safetensors"

    def test_other_files(self, folder):
        (folder / "model.safetensors").write_bytes(b"x")
        with pytest.raises(InputError, match=r"model\.safetensors: cannot be read"):
            GemNetOCExtractor(checkpoint=folder)
        write_json(folder / "model.json", SCHEMA, {"backbone": {"implementation": "schnet"}})
        with pytest.raises(InputError, match=r"model\.json: tells of a schnet \(GemNet-OC is needed\)"):
            GemNetOCExtractor(checkpoint=folder)
        (folder / "model.json").unlink()
        with pytest.raises(InputError, match=r"model\.json: is missing"):
            GemNetOCExtractor(checkpoint=folder)


@pytest.mark.slow
def test_equiformer_31m_equals_fairchem(tmp_path):
    from torch_geometric.data import Batch, Data

    torch.manual_seed(0)
    plain = EquiformerV2Backbone(**SETTINGS_31M, regress_forces=False).eval()
    config = {
        "task": {"dataset": "trajectory_lmdb"},
        "model": "equiformer_v2",
        "model_attributes": {**SETTINGS_31M, "use_pbc": True, "regress_forces": True, "otf_graph": True},
    }
    path = tmp_path / "eq2_31M.pt"
    metrics = {"val_metrics": {"energy_mae": np.float64(0.2)}, "normalizers": {"target": {"mean": torch.zeros(1)}}}
    assert publish(path, plain, config=config, extra=metrics) == 31_058_690  # design.md, section 4
    salt, water = crystal(), molecule("H2O")
    extractor = EquiformerV2Extractor(checkpoint=path, seed=3)
    assert extractor.dim == 3200  # paper.md, section 1
    assert extractor.elements == set(range(1, 90))
    found = np.concatenate(extractor.features([structure(salt), structure(water)]))

    water.cell = np.ptp(water.positions, axis=0) + 13.0
    data = [
        Data(
            pos=torch.tensor(atoms.positions, dtype=torch.float32),
            cell=torch.tensor(atoms.cell[:][None], dtype=torch.float32),
            atomic_numbers=torch.tensor(atoms.numbers),
            natoms=len(atoms),
        )
        for atoms in (salt, water)
    ]
    torch.manual_seed(3)  # the same frames, so that only rounding is left: ours wraps positions into the cell
    with torch.no_grad():
        expected = plain(Batch.from_data_list(data))["node_embedding"].embedding.numpy()
    np.testing.assert_allclose(found, expected.reshape(len(expected), 3200), rtol=0, atol=2e-5)

    torch.save({"state_dict": torch.load(path, weights_only=False)["state_dict"]}, path)
    assert EquiformerV2Extractor(checkpoint=path).dim == 3200  # the 31M settings without a config


class TestCheckpoints:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "checkpoint.pt"
        publish(path, EquiformerV2Backbone(**SMALL), config=small_config())
        return path

    def test_invariant_features_are_those_of_degree_0(self, path):
        water = [structure(molecule("H2O"))]
        (full,), (invariant,) = (
            EquiformerV2Extractor(checkpoint=path, features=kind).features(water) for kind in ("full", "invariant")
        )
        assert full.shape == (3, 9 * 8)
        assert np.array_equal(invariant, full[:, :8])
        rotation = Rotation.random(rng=np.random.default_rng(0)).as_matrix()
        water[0].positions = water[0].positions @ rotation.T
        (turned,) = EquiformerV2Extractor(checkpoint=path, features="invariant").features(water)
        np.testing.assert_allclose(turned, invariant, rtol=0, atol=1e-3)  # its grids are not exactly equivariant

    def test_a_backbone_with_heads(self, path):
        """The layout of fairchem's models of OMat24 and MPtrj."""
        backbone = {"model": "equiformer_v2_backbone", **SMALL}
        heads = {"energy": {"module": "equiformer_v2_energy_head"}, "forces": {"module": "equiformer_v2_force_head"}}
        model = HydraModel(backbone=backbone, heads=heads)
        state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
        assert any(name.startswith("module.output_heads.forces.") for name in state)
        later = path.with_name("later.pt")
        config = {"model": {"name": "hydra", "backbone": backbone, "heads": heads}}
        torch.save({"state_dict": state, "config": config}, later)
        publish(path, model.backbone, config=small_config())
        (found,), (expected,) = (
            EquiformerV2Extractor(checkpoint=file).features([structure(molecule("H2O"))]) for file in (later, path)
        )
        assert np.array_equal(found, expected)

    def test_seed(self, path):
        water = [structure(molecule("H2O"))]
        (first,), (second,) = (EquiformerV2Extractor(checkpoint=path, seed=seed).features(water) for seed in (0, 1))
        assert not np.array_equal(first, second)
        np.testing.assert_allclose(first, second, rtol=0, atol=1e-4)

    def test_bf16(self, path):
        """Its 8 bits of mantissa are 0.4 % per number; positions in them would give features of other structures."""
        far = crystal() * (2, 2, 1)  # positions of up to 20 Angstrom, which bf16 rounds to 0.1
        full, half = (
            EquiformerV2Extractor(checkpoint=path, precision=precision).features([structure(far)])[0]
            for precision in ("float32", "bf16")
        )
        assert half.dtype == np.float32
        assert 1e-4 < np.linalg.norm(half - full) / np.linalg.norm(full) < 0.01

    def test_numpy_scalars_of_numpy_1(self, path):
        """Their pickles name numpy.core, which numpy 2 renamed."""
        content = torch.load(path, weights_only=True)
        torch.save({**content, "metric": np.float32(1.5), "epoch": np.int64(3)}, path)
        old = path.with_name("old.pt")
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(old, "w") as target:
            for name in source.namelist():
                data = source.read(name)
                if name.endswith("data.pkl"):
                    assert data.count(b"cnumpy._core.multiarray\n") == 1  # later uses are memoised
                    data = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
                target.writestr(name, data)
        EquiformerV2Extractor(checkpoint=old)

    def test_code_is_refused(self, tmp_path, ledger):
        marker = tmp_path / "executed"

        class Hostile:
            def __reduce__(self):
                return os.system, (f"touch {marker}",)

        path = tmp_path / "hostile.pt"
        torch.save({"state_dict": {}, "config": Hostile()}, path)
        with pytest.raises(InputError, match=r"hostile\.pt: holds '\w+\.system', .* was not run"):
            EquiformerV2Extractor(checkpoint=path)
        assert not marker.exists()
        ledger.add("checkpoint with code", "refused by name; nothing was run")

    def test_missing_file(self, tmp_path):
        with pytest.raises(InputError, match="no such checkpoint"):
            EquiformerV2Extractor(checkpoint=tmp_path / "none.pt")

    @pytest.mark.parametrize("content", [b"", b"Not found", b"\x80\x02garbage", b"PK\x03\x04 cut off"])
    def test_other_files(self, tmp_path, content):
        path = tmp_path / "file.pt"
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not a checkpoint of PyTorch"):
            EquiformerV2Extractor(checkpoint=path)

    @pytest.mark.parametrize("content", [[1], {"model": {}}, {"state_dict": [1]}])
    def test_other_content(self, tmp_path, content):
        path = tmp_path / "file.pt"
        torch.save(content, path)
        with pytest.raises(InputError, match="holds no 'state_dict'"):
            EquiformerV2Extractor(checkpoint=path)

    @pytest.mark.parametrize(
        ("config", "problem"),
        [
            ({"model": "gemnet_oc", "model_attributes": {}}, "is a checkpoint of 'gemnet_oc'"),
            ({"model": {"name": "hydra"}}, "is a checkpoint of 'hydra'"),
            ({"optim": {}}, "does not describe an EquiformerV2"),
            (small_config(num_layers="x"), "does not describe an EquiformerV2"),
            ("text", "does not describe an EquiformerV2"),
        ],
    )
    def test_other_architectures(self, tmp_path, config, problem):
        path = tmp_path / "file.pt"
        torch.save({"state_dict": {}, "config": config}, path)
        with pytest.raises(InputError, match=re.escape(problem)):
            EquiformerV2Extractor(checkpoint=path)

    def test_keys_that_do_not_fit(self, path):
        content = torch.load(path, weights_only=True)
        state = content["state_dict"]
        state["module.module.extra"] = torch.zeros(1)
        del state["module.module.sphere_embedding.weight"]
        state["module.module.distance_expansion.offset"] = 3
        torch.save(content, path)
        problem = (
            "1 tensors missing, such as 'sphere_embedding.weight'; 1 tensors unexpected, such as 'extra'; "
            "1 tensors of another shape"
        )
        with pytest.raises(InputError, match=re.escape(problem)):
            EquiformerV2Extractor(checkpoint=path)

    def test_unknown_options(self, path):
        with pytest.raises(ConfigError, match=r"unknown features 'invarant' .* did you mean 'invariant'\?"):
            EquiformerV2Extractor(checkpoint=path, features="invarant")
        with pytest.raises(ConfigError, match="unknown precision 'fp8' of equiformer-v2; known: bf16, float32"):
            EquiformerV2Extractor(checkpoint=path, precision="fp8")

    def test_reading_leaves_no_trust_behind(self, path):
        EquiformerV2Extractor(checkpoint=path)
        assert not set(SAFE_GLOBALS) & set(torch.serialization.get_safe_globals())
