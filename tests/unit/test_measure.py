import numpy as np
import pandas as pd
import pytest

from atomcsi.embeddings import Embedding
from atomcsi.errors import InputError
from atomcsi.files import read_json
from atomcsi.measure import SCHEMA, distance_table, element_table, measure, read_measurements, write_measurement


def cloud(seed, shift, structures=200):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(3, 4)) + shift for _ in range(structures)]


@pytest.fixture
def sets(embedding):
    return {
        "far": embedding(cloud(0, 2.0), "far"),
        "near": embedding(cloud(1, 0.3), "near"),
        "mine": embedding(cloud(2, 0.0, 100), "mine", blocks=10),
    }


def run(sets, distance="frechet", **options):
    return measure([sets["far"], sets["near"]], sets["mine"], distance=distance, **options)


def test_the_nearest_comes_first(sets):
    found = run(sets)
    near, far = found["upstreams"]
    assert [near["upstream"], far["upstream"]] == ["near", "far"]
    # The truth is |shift|^2: 4 features of 0.3 and of 2.
    assert near["low"] <= 0.36 <= near["high"] and far["low"] <= 16 <= far["high"]
    assert near["estimate"] == near["corrected"] < near["value"]
    assert (near["p_best"], far["p_best"]) == (1, 0)
    assert near["beyond_best"] == 0 and far["beyond_best_low"] < 16 - 0.36 < far["beyond_best_high"]
    assert near["terms"]["mean_term"] + near["terms"]["covariance_term"] == pytest.approx(near["value"])
    assert [entry["share"] for entry in near["by_share"]] == [1.0, 0.5, 0.25]
    assert (near["upstream_structures"], near["upstream_atoms"], found["downstream_structures"]) == (200, 600, 100)
    assert (near["upstream_population"], near["upstream_sampling"], near["upstream_classes"]) == (200, "random", 3)


def test_without_an_error_bar_the_plain_value_ranks(sets, embedding):
    """A dataset of one class cannot be resampled by classes."""
    sets["near"] = embedding(cloud(1, 0.3), "near", blocks=1)
    near, far = run(sets)["upstreams"]
    assert near["upstream"] == "near" and near["estimate"] == near["value"] and far["estimate"] == far["value"]
    assert [near[key] for key in ("corrected", "low", "p_best", "beyond_best_low")] == [None] * 4
    assert far["p_best"] is None and far["low"] > 0


def test_a_single_upstream_is_no_choice(sets):
    (near,) = measure([sets["near"]], sets["mine"], distance="frechet")["upstreams"]
    assert near["p_best"] is None and near["low"] is not None


def test_same_seed_same_result(sets):
    assert run(sets) == run(sets)
    assert run(sets, seed=1)["upstreams"][0]["corrected"] != run(sets)["upstreams"][0]["corrected"]


def test_aggregated_rows(sets):
    aggregated = {name: Embedding(embedding.path, "mean") for name, embedding in sets.items()}
    near = run(aggregated)["upstreams"][0]
    assert near["upstream"] == "near" and near["elements"] == []
    assert near["low"] <= 0.36 <= near["high"]


def test_tables(sets, tmp_path):
    paths = []
    for distance in ("frechet", "coverage"):
        paths.append(tmp_path / f"{distance}.json")
        write_measurement(paths[-1], run(sets, distance))
    assert read_json(paths[1], SCHEMA)["distance"] == "coverage"
    measurements = read_measurements(paths)
    table = distance_table(measurements)
    assert table[["distance", "upstream"]].to_numpy().tolist() == [
        ["frechet", "near"], ["frechet", "far"], ["coverage", "near"], ["coverage", "far"],
    ]  # fmt: skip
    assert table["coverage"].isna().tolist() == [True, True, False, False]
    assert (table["value_quarter"][:1] > table["value_half"][:1]).all()
    elements = element_table(measurements)
    assert elements["symbol"].tolist() == ["H", "H"]
    csi = table["value"][:2].tolist()
    assert elements["upstream_csi"].tolist() == pytest.approx(csi)
    assert pd.isna(elements).sum().sum() == 0


def test_different_extractors_cannot_be_compared(sets, embedding):
    sets["near"] = embedding(cloud(1, 0.3), "near", extractor="other")
    with pytest.raises(InputError, match=r"mine.h5: was embedded with extractor toy, .*near.h5 with other"):
        run(sets)
