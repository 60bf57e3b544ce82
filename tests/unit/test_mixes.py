import numpy as np
import pytest
from pydantic import TypeAdapter

from atomcsi.errors import ConfigError
from atomcsi.mixes import MixSpec, structures_of
from atomcsi.project import load_project
from atomcsi.structure_batch import StructureBatch
from atomcsi.training.data import LabelledStructures
from atomcsi.training.joined import JoinedStructures

SIZES = {"ani1x": 2_000_000, "transition1x": 10_000_000, "oc20": 100_000_000, "oc22": 8_000_000}


def mix(**entry) -> MixSpec:
    return TypeAdapter(MixSpec).validate_python(entry)


def test_the_papers_mixes():
    """Balanced is N/4 of each; temperature 2 gives the shares of its section 1, .0813, .1817, .5746 and .1625."""
    balanced = structures_of(mix(kind="equal"), SIZES, 2_000_000)
    assert balanced == dict.fromkeys(SIZES, 500_000)
    tempered = structures_of(mix(kind="tempered", temperature=2), SIZES, 10_000)
    assert tempered == {"ani1x": 813, "transition1x": 1817, "oc20": 5745, "oc22": 1625}
    added = mix(kind="counted", structures={"ani1x": 2_000_000, "oc22": 1_000_000})
    assert structures_of(added, {"ani1x": 5, "oc22": 5}, 7) == {"ani1x": 2_000_000, "oc22": 1_000_000}


def test_a_temperature_goes_by_given_sizes():
    given = mix(kind="tempered", temperature=1, sizes={"a": 3.0, "b": 1.0})
    assert structures_of(given, {"a": 10, "b": 999}, 8) == {"a": 6, "b": 2}


def test_weights():
    assert structures_of(mix(kind="weighted", weights={"a": 2, "b": 1}), {"a": 9, "b": 9}, 10) == {"a": 7, "b": 3}


def test_the_mix_of_least_csi_is_what_was_found():
    found = {"best": {"structures": {"a": 30, "b": 0, "c": 10}}}
    sizes = dict.fromkeys("cab", 100)
    assert list(structures_of(mix(kind="nearest"), sizes, 40, found).items()) == [("c", 10), ("a", 30)]
    with pytest.raises(ConfigError, match="give --mixtures"):
        structures_of(mix(kind="nearest"), sizes, 40)
    with pytest.raises(ConfigError, match="differ in d"):
        structures_of(mix(kind="nearest"), sizes | {"d": 3}, 40, found)


def test_inits_that_stand_for_mixes(repository):
    """A mix by CSI is one for every downstream dataset, which its tasks share; all others are one for all."""
    project = load_project(path=repository / "config" / "paper.yaml", root=repository)
    assert project.start("balanced", "qm9-gap") == "balanced"
    assert project.start("nearest", "qm9-gap") == project.start("nearest", "qm9-u0") == "nearest-qm9"
    pretrainings = project.pretrainings
    assert pretrainings["nearest-qm9"].downstream == "qm9"
    assert pretrainings["balanced"].datasets == project.run.upstream
    assert pretrainings["aligned-and-misaligned"].datasets == ["ani1x", "oc22"]
    assert {name for name, found in pretrainings.items() if found.mix == "nearest"} == {
        f"nearest-{dataset}" for dataset in project.all_downstream
    }


def test_settings_of_its_own(repository):
    """A mix of one dataset is that dataset with another budget, as for experiments, or another objective."""
    project = load_project(path=repository / "config" / "paper.yaml", root=repository)
    assert project.pretrain_settings("ani1x") == project.pretrain_settings("balanced") == project.run.pretrain
    assert project.pretrain_settings("ani1x-n1000000-e10").budget == 10_000_000
    denoised = project.pretrain_settings("aligned-denoised")
    assert (denoised.denoise_sigma, denoised.budget) == (0.1, project.run.pretrain.budget)
    assert structures_of(project.mixes["aligned-denoised"], {"ani1x": 5}, 4) == {"ani1x": 4}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("balanced: {kind: equl}", r"demo.yaml:\d+: mixes.balanced: .*'equal'"),
        ("balanced: {kind: equal, dataset: []}", r"mixes.balanced.dataset: unknown key; did you mean 'datasets'"),
        ("some: {kind: weighted, weights: {ani1-mini: 1}}", r"mixes.some: unknown upstream 'ani1-mini'; did you mean"),
        ("some: {kind: counted, structures: {ani1x-mini: 0}}", r"mixes.some.*ani1x-mini: .*greater than 0"),
        ("some: {kind: equal, pretrain: {epoch: 3}}", r"mixes.some.pretrain.epoch: unknown key; did you mean 'epochs'"),
        (
            "some: {kind: equal, pretrain: {denoise_sigma: 1}}",
            r"mixes.some.pretrain: denoise_sigma needs energy",
        ),
        ("some: {kind: nearest, pretrain: {structures: 9}}", r"mixes.some: a mix by CSI has the run's number"),
        ("csi: {kind: equal}", r"mixes.csi: is the name of another init"),
    ],
)
def test_mistakes_in_mixes(tmp_path, repository, entry, message):
    import shutil

    shutil.copytree(repository / "config", tmp_path / "config")
    path = tmp_path / "config" / "demo.yaml"
    path.write_text(path.read_text() + f"\nmixes:\n  {entry}\n")
    with pytest.raises(ConfigError, match=message):
        load_project(path=path, root=repository)


def test_joined_structures(toy_lmdb):
    """Every structure of the draws once, with its own labels, and told where it is from."""
    stores = [toy_lmdb(12, "a", 0), toy_lmdb(20, "b", 1)]
    parts = [
        LabelledStructures(store, target="forces", limit=n, seed=3) for store, n in zip(stores, (5, 7), strict=True)
    ]
    joined = JoinedStructures(parts)
    assert len(joined) == 12
    batch = joined.__getitems__([11, 0, 6, 4, 5])
    assert batch.dataset.tolist() == [0, 0, 1, 1, 1]
    expected = [parts[0][0], parts[0][4], parts[1][6], parts[1][1], parts[1][0]]
    assert batch.energy.tolist() == [structure.energy for structure in expected]
    np.testing.assert_array_equal(batch.positions, np.concatenate([s.positions for s in expected]))
    np.testing.assert_array_equal(joined.natoms, [len(joined[position]) for position in range(12)])
    assert joined[5].energy == parts[1][0].energy


def test_joining_batches(toy_structures):
    first, second = StructureBatch.of(toy_structures(3)), StructureBatch.of(toy_structures(4, 1))
    found, expected = (
        StructureBatch.join([first, second]),
        StructureBatch.of([*toy_structures(3), *toy_structures(4, 1)]),
    )
    for name in StructureBatch.__slots__:
        left, right = getattr(found, name), getattr(expected, name)
        assert (left is right) if left is None else np.array_equal(left, right)
    second.dataset = np.ones(4, int)
    assert StructureBatch.join([first, second]).dataset.tolist() == [0, 0, 0, 1, 1, 1, 1]
