import json

import pandas as pd
import pytest

from atomcsi.config import ExtractorSpec, Sampling
from atomcsi.embeddings import embed
from atomcsi.errors import InputError
from atomcsi.extractors.composition import CompositionExtractor
from atomcsi.selection import compare, select, write_selection


def table(**values) -> pd.DataFrame:
    return pd.DataFrame([{"upstream": name, "downstream": "d", "value": value} for name, value in values.items()])


def test_the_least_distance_is_chosen():
    found = select(table(far=30.0, near=10.0, middle=15.0), "d")
    assert (found["selected"], found["runner_up"]) == ("near", "middle")
    assert found["margin"] == pytest.approx(0.5)
    assert [entry["upstream"] for entry in found["ranking"]] == ["near", "middle", "far"]


def test_other_downstream_sets_do_not_count():
    both = pd.concat([table(a=1.0, b=2.0), table(a=5.0, b=3.0).assign(downstream="e")])
    assert select(both, "d")["selected"] == "a"
    assert select(both, "e")["selected"] == "b"


def test_ties_go_by_name_and_zero_has_no_margin(tmp_path):
    table(b=0.0, a=0.0).to_csv(tmp_path / "t.csv", index=False)
    write_selection(tmp_path / "t.csv", tmp_path / "s.json", "d")
    found = json.loads((tmp_path / "s.json").read_text())
    assert (found["selected"], found["margin"]) == ("a", None)


def test_different_extractors_cannot_be_compared(tmp_path, toy_lmdb):
    for name in ("one", "two"):
        embed(
            toy_lmdb(4),
            tmp_path / f"{name}.h5",
            extractor=CompositionExtractor(),
            name=name,
            spec=ExtractorSpec(implementation="composition"),
            sampling=Sampling(method="random", structures=4),
        )
    with pytest.raises(InputError, match="was embedded with extractor two"):
        compare(tmp_path / "one.h5", tmp_path / "two.h5", distance="frechet")
    assert compare(tmp_path / "one.h5", tmp_path / "one.h5", distance="frechet")["value"] == pytest.approx(0, abs=1e-12)
