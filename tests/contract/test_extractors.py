"""What every extractor of the registry must do."""

import copy

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import fcc111, molecule
from published_checkpoint import SMALL, EquiformerV2Backbone, publish, small_config

from atomcsi.errors import AtomcsiError, ConfigError
from atomcsi.extractors.base import Extractor
from atomcsi.models.potential import Potential, build_backbone
from atomcsi.registry import EXTRACTORS, load
from atomcsi.structure import Structure
from atomcsi.training.model_files import save_model

#: Relative to the largest feature. float32 gives 1e-6; EquiformerV2 sees each edge in a random frame, which its grids
#: turn into differences of 2e-5 in this small model.
TOLERANCE = 1e-4
#: What the small EquiformerV2 has beside; what is not named is at fairchem's defaults.
EQUIFORMER = {
    "max_num_elements": 90,
    "max_neighbors": 20,
    "max_radius": 8.0,
    "norm_type": "layer_norm_sh",
    "regress_forces": True,
}
GEMNET = {
    "implementation": "gemnet-oc",
    "settings": {"num_blocks": 1, "emb_size_atom": 8, "emb_size_edge": 8, "num_radial": 8, "cutoff": 6.0},
}


def structure(atoms):
    atoms.positions += np.random.default_rng(0).normal(scale=0.05, size=atoms.positions.shape)
    cell = atoms.cell[:] if atoms.pbc.any() else None
    return Structure(
        numbers=atoms.numbers, positions=atoms.positions, source="x", label="x", cell=cell, pbc=tuple(atoms.pbc)
    )


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Constructor options of the extractors that need some."""
    torch.manual_seed(0)
    checkpoint = tmp_path_factory.mktemp("checkpoints") / "small.pt"
    publish(checkpoint, EquiformerV2Backbone(**SMALL, **EQUIFORMER), config=small_config(**EQUIFORMER))
    pretrained = tmp_path_factory.mktemp("pretrained")
    save_model(pretrained, Potential(build_backbone(GEMNET)), {"backbone": GEMNET})
    return {
        "equiformer-v2": {"checkpoint": checkpoint},
        "gemnet-oc": {"checkpoint": pretrained / "model.safetensors"},
    }


@pytest.fixture(scope="module", params=sorted(EXTRACTORS))
def extractor(request, options):
    return load(EXTRACTORS, request.param)(**options.get(request.param, {}))


@pytest.fixture
def structures():
    slab = fcc111("Cu", (2, 2, 2), vacuum=6.0)
    slab.pbc = True
    return [structure(molecule("CH3OH")), structure(slab), structure(molecule("H2O"))]


def test_shapes_and_types(extractor, structures):
    assert isinstance(extractor, Extractor)
    assert {1, 6, 8, 29} <= extractor.elements <= set(range(1, 119))
    before = copy.deepcopy(structures)
    found = extractor.features(structures)
    assert [rows.shape for rows in found] == [(len(s), extractor.dim) for s in structures]
    assert {rows.dtype for rows in found} == {np.dtype("float32")}
    assert all(np.isfinite(rows).all() for rows in found)
    for old, new in zip(before, structures, strict=True):
        assert np.array_equal(old.positions, new.positions)


def test_same_again(extractor, structures):
    torch.manual_seed(1)  # the caller's random state must not matter, nor change
    state = torch.get_rng_state()
    first = extractor.features(structures)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    for a, b in zip(first, extractor.features(structures), strict=True):
        assert np.array_equal(a, b)


def test_a_batch_equals_its_structures_singly(extractor, structures):
    for rows, single in zip(extractor.features(structures), structures, strict=True):
        (expected,) = extractor.features([single])
        np.testing.assert_allclose(rows, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def test_features_ignore_translation(extractor, structures):
    before = extractor.features(structures)
    for each in structures:
        each.positions = each.positions + np.array([1.0, -2.0, 0.5])
    for rows, expected in zip(extractor.features(structures), before, strict=True):
        np.testing.assert_allclose(rows, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def test_edges_are_counted(extractor, structures):
    """None without a graph; else all pairs of a molecule that is smaller than the cutoff, both ways."""
    assert extractor.count_edges(structures[2]) == (3 * 2 if extractor.cutoff else 0)


def test_isolated_atoms(extractor):
    atom = structure(Atoms("H"))
    try:
        found = extractor.features([atom, atom])
    except AtomcsiError as error:
        assert "isolated" in str(error)
    else:
        assert [rows.shape for rows in found] == [(1, extractor.dim)] * 2


def test_unknown_elements(extractor):
    unknown = sorted(set(range(1, 119)) - extractor.elements)
    if unknown:
        with pytest.raises(AtomcsiError, match=r"does not know .* held by 'x'"):
            extractor.features([structure(Atoms([unknown[0], 1], positions=[[0, 0, 0], [0, 0, 1.5]]))])


@pytest.mark.parametrize("name", sorted(EXTRACTORS))
def test_checkpoint_is_given_where_needed(name, tmp_path):
    kind = load(EXTRACTORS, name)
    with pytest.raises(ConfigError, match="checkpoint"):
        kind() if kind.needs_checkpoint else kind(checkpoint=tmp_path / "x.pt")


@pytest.mark.parametrize("name", sorted(EXTRACTORS))
def test_is_quiet(name, options, structures, capfd, recwarn):
    load(EXTRACTORS, name)(**options.get(name, {})).features(structures)
    assert capfd.readouterr() == ("", "")
    assert not [w for w in recwarn if not issubclass(w.category, DeprecationWarning)]  # those Python hides by default
