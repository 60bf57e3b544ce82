import numpy as np
import pytest

from atomcsi.distances.frechet import frechet
from atomcsi.files import read_json
from atomcsi.mixtures import (
    SCHEMA,
    Upstream,
    adding,
    best_mix,
    budget,
    measure_mixes,
    mix_of_structures,
    mixed,
    mixture_table,
    write_mixes,
)
from atomcsi.moments import Moments


def cloud(seed, d=6, n=400):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, d)) @ (np.eye(d) + 0.3 * generator.normal(size=(d, d))) + generator.normal(size=d)


@pytest.fixture
def upstreams():
    return [Upstream(f"u{seed}", Moments.of(cloud(seed)), atoms=4.0 + 2 * seed) for seed in range(4)]


def test_a_mix_has_the_moments_of_its_rows_together():
    """800 and 200 rows in one array, up to the n - 1 of a covariance."""
    x, y = cloud(0, n=800), cloud(1, n=200)
    found, expected = mixed([Moments.of(x), Moments.of(y)], [0.8, 0.2]), Moments.of(np.concatenate([x, y]))
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=0.01)


def test_the_best_mix_of_a_mix_is_found(upstreams):
    target = mixed([each.moments for each in upstreams], [0.3, 0, 0.7, 0])
    found = best_mix(upstreams, target)
    assert list(found.weights.values()) == pytest.approx([0.3, 0, 0.7, 0], abs=1e-3)
    assert found.csi == pytest.approx(0, abs=1e-5)


def test_no_other_mix_is_nearer(upstreams):
    target = Moments.of(cloud(9))
    found = best_mix(upstreams, target)
    assert sum(found.weights.values()) == pytest.approx(1, abs=1e-12)
    parts = [each.moments for each in upstreams]
    generator = np.random.default_rng(0)
    others = [frechet(mixed(parts, weights), target).value for weights in generator.dirichlet(np.ones(4), 300)]
    singles = [frechet(part, target).value for part in parts]
    assert found.csi <= min(others + singles)
    assert found.csi < 0.9 * min(singles)  # here a mix is worth it
    again = frechet(mixed(parts, list(found.weights.values())), target).value
    assert found.csi == pytest.approx(again, rel=1e-9)


def test_one_dataset_alone_is_a_mix(upstreams):
    found = best_mix(upstreams, upstreams[1].moments)
    assert found.weights == {"u0": 0, "u1": 1, "u2": 0, "u3": 0}
    assert found.csi == pytest.approx(0, abs=1e-9)


def test_structures_follow_from_shares_of_atoms(upstreams):
    """Equal shares of atoms of structures of 4, 6, 8 and 10 atoms: structures as 1/4 : 1/6 : 1/8 : 1/10."""
    mix = mix_of_structures(upstreams, [1 / 4, 1 / 6, 1 / 8, 1 / 10], Moments.of(cloud(9)))
    assert list(mix.weights.values()) == pytest.approx([0.25] * 4)
    assert budget(upstreams, mix, 77) == {"u0": 30, "u1": 20, "u2": 15, "u3": 12}


def test_adding_a_far_dataset_moves_away(upstreams):
    far = Upstream("far", Moments.of(cloud(5) + 10), atoms=50.0)
    effect = adding(upstreams[0], far, upstreams[0].moments)
    assert list(effect) == sorted(effect)
    values = [mix.csi for mix in effect.values()]
    assert values == sorted(values) and values[0] > 0
    # Half as many structures of 50 atoms as of 4: 25 of 29 atoms.
    assert effect[0.5].weights["far"] == pytest.approx(25 / 29)


def test_from_files(embedding, tmp_path):
    sets = {name: [cloud(seed, n=4) for seed in range(100, 140)] for name in ("one", "two")}
    sets["two"] = [rows + 1 for rows in sets["two"]]
    files = {name: embedding(structures, name) for name, structures in sets.items()}
    target = embedding([rows + 0.5 for rows in sets["one"]], "mine")
    found = measure_mixes(list(files.values()), target, structures=100)
    # The target lies midway.
    assert found["best"]["weights"]["one"] == pytest.approx(0.5, abs=0.01)
    assert found["best"]["csi"] <= found["equal"]["csi"] * (1 + 1e-9) < min(found["single"].values())
    assert sum(found["best"]["structures"].values()) == 100
    write_mixes(tmp_path / "m.json", found)
    assert read_json(tmp_path / "m.json", SCHEMA)["downstream"] == "mine"
    table = mixture_table([tmp_path / "m.json"])
    assert table["mix"].drop_duplicates().tolist()[:4] == ["best", "equal", "only one", "only two"]
    assert table["mix"].iloc[-1] == "one + 1 two"
