"""JMP's checkpoints. Expected numbers are those of JMP's own code, facebookresearch/JMP at commit 937b148."""

import hashlib
import os
import re
import subprocess
import zlib
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule

from atomcsi.errors import ConfigError, InputError
from atomcsi.extractors.gemnet_oc import GemNetOCExtractor
from atomcsi.models.checkpoints import SAFE_GLOBALS
from atomcsi.models.gemnet_oc.jmp import SETTINGS, jmp
from atomcsi.structure import Structure

TINY = {
    "num_blocks": 1,
    "num_radial": 8,
    "num_spherical": 3,
    "emb_size_atom": 8,
    "emb_size_edge": 12,
    "emb_size_trip_in": 4,
    "emb_size_trip_out": 4,
    "emb_size_quad_in": 4,
    "emb_size_quad_out": 4,
    "emb_size_aint_in": 4,
    "emb_size_aint_out": 4,
    "emb_size_rbf": 4,
    "emb_size_cbf": 4,
    "emb_size_sbf": 4,
    "num_before_skip": 1,
    "num_after_skip": 1,
    "num_concat": 1,
    "num_atom": 1,
    "num_output_afteratom": 1,
    "num_atom_emb_layers": 1,
}
#: Where JMP keeps the constants of its radial basis.
RADIAL_BASES = ["radial_basis", "radial_basis_aeaint", "radial_basis_aint"] + [
    f"{name}.radial_basis"
    for name in ("cbf_basis_qint", "sbf_basis_qint", "cbf_basis_aeint", "cbf_basis_eaint", "cbf_basis_tint")
]
#: What the state dict also holds: heads, layers for forces, counters. None of it is needed.
OTHERS = {
    "backbone.out_blocks.0.seq_forces.0.dense_mlp.0.linear.weight": torch.ones(12, 12),
    "backbone.out_blocks.0.scale_rbf_F.scale_factor": torch.ones(()),
    "backbone.out_mlp_F.out_mlp.0.linear.weight": torch.ones(12, 24),
    "output.out_energy.0.0.weight": torch.ones(8, 8),
    "task_steps.oc20.sum_value": torch.ones(()),
}
PARAMETERS = [name for name in OTHERS if name.endswith("weight")]


def structure(atoms):
    periodic = bool(atoms.pbc.any())
    return Structure(
        numbers=atoms.numbers,
        positions=atoms.positions,
        source="x",
        label="x",
        cell=atoms.cell[:] if periodic else None,
        pbc=tuple(atoms.pbc),
        tags=atoms.get_tags() if periodic else None,
    )


def pair(shift):
    other = molecule("CH3CH2OH")
    other.positions += shift
    return molecule("CH3CH2OH") + other


def make_structures(width=2):
    """Two molecules that see each other in part, a slab whose atoms have too many neighbours, and a small molecule."""
    slab = fcc111("Cu", (width, width, 3), vacuum=6.0)
    add_adsorbate(slab, molecule("CO"), 1.9, "ontop")
    slab.pbc = True
    slab.set_tags([0] * (2 * width**2) + [1] * width**2 + [2] * 2)
    members = [pair([0.0, 6.0, 5.0]), slab, molecule("H2O")]
    for atoms in members:
        atoms.positions += np.random.default_rng(0).normal(scale=0.05, size=atoms.positions.shape)
    return [structure(atoms) for atoms in members]


@pytest.fixture
def structures():
    return make_structures()


def values(name, shape):
    """Weights that their name and shape alone decide, of a size that keeps activations near 1."""
    draw = np.random.default_rng(zlib.crc32(name.replace("seq_energy_pre", "layers").encode()))
    if name.endswith("scale_factor"):
        return torch.tensor(draw.uniform(0.25, 0.5), dtype=torch.float32)
    fan = 1 if name.startswith("embedding.") else shape[1] if len(shape) == 2 else shape[0]
    return torch.tensor(draw.standard_normal(shape) * fan**-0.5, dtype=torch.float32)


def published_name(name):
    """JMP's name of a tensor of ours."""
    if name.startswith("atom_emb."):
        return "embedding.atom_embedding.weight"
    name = name.replace("edge_emb.", "bases.edge_emb.").replace("out_mlp_E.", "out_mlp_E.out_mlp.")
    return f"backbone.{name}"


def published(size):
    """A state dict in JMP's layout."""
    ours = {published_name(name): tensor for name, tensor in jmp(size).state_dict().items()}
    twice = {name.replace(".layers.", ".seq_energy_pre."): x for name, x in ours.items() if ".out_blocks." in name}
    number = jmp(size).bases.sizes.num_radial
    constants = {"offset": torch.linspace(0, 1, number), "temps": torch.full((number,), 0.5 * (number - 1) ** 2)}
    return {name: values(name, tuple(tensor.shape)) for name, tensor in (ours | twice).items()} | {
        f"backbone.bases.{basis}.rbf.{name}": tensor for basis in RADIAL_BASES for name, tensor in constants.items()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint of JMP-S."""
    path = tmp_path_factory.mktemp("jmp") / "jmp-s.pt"
    torch.save({"state_dict": {**published("JMP-S"), **OTHERS}}, path)
    return path


@pytest.fixture
def tiny(monkeypatch):
    """The state dict of a model with one block, which extractors know meanwhile."""
    monkeypatch.setitem(SETTINGS, "JMP-tiny", TINY)
    return {**published("JMP-tiny"), **OTHERS}


def features(path, content, members):
    torch.save(content, path)
    return np.concatenate(GemNetOCExtractor(checkpoint=path).features(members))


def test_layout(small):
    """Names and shapes of all tensors in JMP's own JMP-S but for those of forces and heads."""
    state = torch.load(small, weights_only=True)["state_dict"]
    lines = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in state.items() if name not in OTHERS)
    assert len(lines) == 393
    digest = "e9d71bb6656ff8dc8fb88231d7727e2ff1e5897103712ccca6f8ea501367e178"
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest


@pytest.mark.parametrize(
    ("width", "options", "norms", "expected"),
    [
        (
            3,
            {},
            [11.89839, 18.37288, 4.85813],
            {
                0: [0.3681515, -0.3810661, -0.1055587],
                20: [0.1012864, -0.0088118, -0.051374],
                46: [0.6013293, -0.3167606, -0.2573391],
                49: [-0.0029501, -0.0832902, -0.1142089],
            },
        ),
        (
            2,
            {"cutoff": 7.0, "max_neighbors": 20},
            [11.84187, 11.06711, 4.85813],
            {
                0: [0.363427, -0.379435, -0.1048781],
                20: [0.0374594, -0.0182491, 0.0196414],
                31: [0.5419459, -0.329898, -0.176885],
                34: [-0.0029501, -0.0832902, -0.1142089],
            },
        ),
    ],
)
def test_features_are_those_of_jmp(small, width, options, norms, expected):
    """JMP's graphs and backbone in float32, each structure with its own cutoff, with the same weights.

    The wider slab was computed with commit 8a2231a of atomcsi, on fairchem's blocks, which gave JMP's numbers for the
    narrow one. In that one the limit of 30 neighbours cuts between images at one distance, of which JMP keeps some by
    an accident of an unstable sort.
    """
    extractor = GemNetOCExtractor(checkpoint=small, **options)
    assert extractor.dim == 256
    found = extractor.features(make_structures(width))
    np.testing.assert_allclose([np.linalg.norm(rows) for rows in found], norms, rtol=1e-5)
    rows = np.concatenate(found)
    # 1e-5 of the largest feature of any atom, 0.88.
    np.testing.assert_allclose(rows[list(expected)][:, [0, 100, 255]], list(expected.values()), rtol=0, atol=9e-6)


def test_cutoffs(tiny, tmp_path):
    """Molecules see 8 Angstrom far, whatever else is in the batch, unless told otherwise."""
    path = tmp_path / "jmp.pt"
    torch.save({"state_dict": tiny}, path)
    extractor = GemNetOCExtractor(checkpoint=path)
    assert (extractor.cutoff, extractor.max_neighbors) == (12.0, 30)
    far = structure(pair([0.0, 0.0, 11.0]))
    crystal = fcc111("Cu", (1, 1, 2), vacuum=6.0)
    crystal.pbc = True
    found, _ = extractor.features([far, structure(crystal)])
    (alone,) = extractor.features([structure(molecule("CH3CH2OH"))])
    np.testing.assert_allclose(found, np.tile(alone, (2, 1)), rtol=0, atol=1e-5 * np.abs(alone).max())
    (seen,) = GemNetOCExtractor(checkpoint=path, cutoff=12.0).features([far])
    assert np.abs(seen - found).max() > 1e-3 * np.abs(alone).max()


def test_a_batch_equals_its_structures_singly(tiny, tmp_path, structures):
    expected = np.concatenate([features(tmp_path / "jmp.pt", {"state_dict": tiny}, [each]) for each in structures])
    found = features(tmp_path / "jmp.pt", {"state_dict": tiny}, structures)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_isolated_atoms(tiny, tmp_path, capfd, caplog):
    atom, water = structure(Atoms("H")), structure(molecule("H2O"))
    alone = features(tmp_path / "jmp.pt", {"state_dict": tiny}, [atom, atom])
    found = features(tmp_path / "jmp.pt", {"state_dict": tiny}, [atom, water])
    expected = features(tmp_path / "jmp.pt", {"state_dict": tiny}, [water])
    np.testing.assert_allclose(found[[0, 0]], alone, rtol=0, atol=1e-5 * np.abs(alone).max())
    np.testing.assert_allclose(found[1:], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_moving_averages_are_preferred(tiny, tmp_path, structures):
    """They have no names: a tuple in the order of the parameters, those of heads and forces included."""
    expected = features(tmp_path / "plain.pt", {"state_dict": tiny}, structures)
    buffers = ("rbf.offset", "rbf.temps", "scale_factor", "sum_value")
    trained = [name for name in tiny if not name.endswith(buffers) and "seq_energy_pre" not in name]
    assert set(PARAMETERS) < set(trained)
    raw = {name: tensor if name.endswith(buffers) else torch.zeros_like(tensor) for name, tensor in tiny.items()}
    averages = tuple(tiny[name].clone() for name in trained)
    content = {"state_dict": raw, "optimizer_states": [{"opt": {}, "ema": averages, "decay": 0.99}]}
    assert np.array_equal(features(tmp_path / "averaged.pt", content, structures), expected)
    without = {"state_dict": tiny, "optimizer_states": [{"state": {}, "param_groups": []}]}
    assert np.array_equal(features(tmp_path / "without.pt", without, structures), expected)
    content["optimizer_states"][0]["ema"] = averages[:-1]
    with pytest.raises(InputError, match=rf"its moving averages are not those of its {len(trained)} parameters"):
        features(tmp_path / "short.pt", content, structures)


def test_scale_factors_that_were_never_fitted_have_no_effect(tiny, tmp_path, structures):
    """JMP saves them as 0 and leaves activations alone."""
    ones = {name: torch.ones(()) if name.endswith("scale_factor") else tensor for name, tensor in tiny.items()}
    zeros = {name: torch.zeros(()) if name.endswith("scale_factor") else tensor for name, tensor in tiny.items()}
    expected = features(tmp_path / "ones.pt", {"state_dict": ones}, structures)
    assert np.array_equal(features(tmp_path / "zeros.pt", {"state_dict": zeros}, structures), expected)


class Config:
    """Stands for a class of JMP's."""

    def __init__(self):
        self.folder = PurePosixPath("runs")
        self.inner = {"parts": {1, 2}, "scale": np.float64(2.0)}


class Runs:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_foreign_objects_are_skipped(tiny, tmp_path, structures):
    expected = features(tmp_path / "plain.pt", {"state_dict": tiny}, structures)
    marker = tmp_path / "executed"
    extra = {"hyper_parameters": {"backbone": Config(), "hook": Runs(subprocess.call, ["touch", str(marker)])}}
    found = features(tmp_path / "whole.pt", {"state_dict": tiny, **extra}, structures)
    assert np.array_equal(found, expected)
    assert not marker.exists()
    trusted = {str(entry) for entry in torch.serialization.get_safe_globals()}
    assert not trusted & {str(entry) for entry in SAFE_GLOBALS}
    assert not [entry for entry in trusted if "_Inert" in entry]


class Options(dict):
    """Stands for a dictionary of a class of JMP's."""


def test_foreign_dictionaries_cannot_be_skipped(tiny, tmp_path, structures):
    content = {"state_dict": tiny, "hyper_parameters": Options(lr=0.1)}
    with pytest.raises(InputError, match=r"foreign classes, .* \(.*save its state_dict and optimizer_states only\)"):
        features(tmp_path / "options.pt", content, structures)


def test_weights_are_no_foreign_objects(tiny, tmp_path, structures):
    hidden = {**tiny, "embedding.atom_embedding.weight": Config()}
    with pytest.raises(InputError, match=r"1 tensors of another shape, such as 'atom_emb\.embeddings\.weight'"):
        features(tmp_path / "hidden.pt", {"state_dict": hidden}, structures)


def test_calls_of_the_system_are_refused(tiny, tmp_path, structures):
    marker = tmp_path / "executed"
    with pytest.raises(InputError, match=r"hostile\.pt: holds '\w+\.system', .* was not run"):
        features(tmp_path / "hostile.pt", {"state_dict": tiny, "hook": Runs(os.system, f"touch {marker}")}, structures)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"backbone.int_blocks.1.x": torch.ones(1)}, "is no checkpoint of JMP-S or JMP-L or JMP-tiny: it has 2"),
        ({"backbone.extra": torch.ones(1)}, "does not fit JMP-tiny: 1 tensors unexpected, such as 'extra'"),
        ({"embedding.atom_embedding.weight": torch.ones(90, 8)}, "1 tensors of another shape, such as 'atom_emb"),
        ({"embedding.atom_embedding.weight": torch.full((120, 8), torch.nan)}, "holds weights that are not finite"),
    ],
)
def test_other_weights(tiny, tmp_path, structures, change, problem):
    with pytest.raises(InputError, match=re.escape(problem)):
        features(tmp_path / "other.pt", {"state_dict": tiny | change}, structures)


def test_other_files(tmp_path):
    with pytest.raises(InputError, match=r"jmp-s\.pt: no such checkpoint"):
        GemNetOCExtractor(checkpoint=tmp_path / "jmp-s.pt")
    for content in (b"", b"Not found", b"PK\x03\x04 cut off"):
        (tmp_path / "jmp-s.pt").write_bytes(content)
        with pytest.raises(InputError, match=r"jmp-s\.pt: is not a checkpoint of PyTorch"):
            GemNetOCExtractor(checkpoint=tmp_path / "jmp-s.pt")


def test_options(tmp_path):
    with pytest.raises(ConfigError, match=r"the cutoff of gemnet-oc must be positive, not -1\.0"):
        GemNetOCExtractor(checkpoint=tmp_path / "jmp-s.pt", cutoff=-1.0)
    with pytest.raises(ConfigError, match="max_neighbors of gemnet-oc must be at least 4, not 3"):
        GemNetOCExtractor(checkpoint=tmp_path / "jmp-s.pt", max_neighbors=3)
    with pytest.raises(ConfigError, match="for JMP only"):
        GemNetOCExtractor(checkpoint=tmp_path, cutoff=8.0)
