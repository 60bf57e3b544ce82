import json

import pytest

from atomcsi.files import write_json
from atomcsi.measure import SCHEMA
from atomcsi.selection import select, write_selection


def measured(**estimates):
    """What :func:`atomcsi.measure.measure` returns, the nearest first."""
    records = [
        {"upstream": name, "value": value + 1, "estimate": value, "low": value - 2, "high": value + 2}
        | {"p_best": 0.9 if i == 0 else 0.1, "beyond_best": 0.0, "beyond_best_low": 0.0, "beyond_best_high": 0.0}
        for i, (name, value) in enumerate(estimates.items())
    ]
    names = {"downstream": "d", "extractor": "toy", "aggregation": "flat", "distance": "frechet"}
    return {**names, "upstreams": records}


def test_the_first_is_chosen():
    found = select(measured(near=10.0, middle=15.0, far=30.0))
    assert (found["selected"], found["runner_up"], found["p_best"]) == ("near", "middle", 0.9)
    assert found["margin"] == pytest.approx(0.5)
    assert [entry["upstream"] for entry in found["ranking"]] == ["near", "middle", "far"]


def test_zero_has_no_margin(tmp_path):
    write_json(tmp_path / "d.json", SCHEMA, measured(a=0.0, b=1.0))
    write_selection(tmp_path / "d.json", tmp_path / "s.json")
    found = json.loads((tmp_path / "s.json").read_text())
    assert (found["selected"], found["margin"], found["distance"]) == ("a", None, "frechet")
