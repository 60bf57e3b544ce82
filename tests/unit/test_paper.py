import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from atomcsi.errors import AtomcsiError, InputError
from atomcsi.paper import KEYS, compare, read_paper_numbers, same_csi_order, same_order
from atomcsi.project import load_project

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def paper():
    return read_paper_numbers(ROOT / "resources" / "paper")


@pytest.fixture(scope="module")
def project():
    return load_project(path=ROOT / "config" / "paper.yaml", root=ROOT)


def mae(paper, backbone, init, structures, epochs, task, source=None) -> float:
    found = paper.finetuning
    found = found[(found[KEYS] == [backbone, init, structures, epochs, task]).all(axis=1)]
    found = found[found["source"] == source] if source else found[found["source"] != "later version"]
    (value,) = found["mae"]
    return value


@pytest.mark.parametrize(
    ("start", "task", "value"),
    [
        (("gemnet-oc-s", "ani1x", 2_000_000, 5), "rmd17-aspirin-forces", 5.4),
        (("gemnet-oc-s", "oc22", 2_000_000, 5), "spice-solvated-amino-acids-forces", 10.73),
        (("gemnet-oc-s", "transition1x", 1_000_000, 5), "rmd17-aspirin-forces", 11.7),
        (("gemnet-oc-s", "oc20-2m", 3_000_000, 5), "spice-solvated-amino-acids-forces", 10.44),
        (("gemnet-oc-s", "oc20-2m", 1_000_000, 10), "spice-solvated-amino-acids-forces", 10.16),
        (("gemnet-oc-l", "oc22", 2_000_000, 5), "qm9-u0", 4.0),
        (("gemnet-oc-s", "temperature", 2_000_000, 5), "md22-ac-ala3-nhme-forces", 4.03),
        (("gemnet-oc-s", "aligned-and-misaligned", 3_000_000, 5), "rmd17-aspirin-forces", 7.8),
        (("gemnet-oc-s", "oc22", 500_000, 5), "spice-solvated-amino-acids-forces", 13.05),
        (("jmp-l", "jmp-l", 120_000_000, 2), "md22-ac-ala3-nhme-forces", 1.92),
        (("jmp-s", "jmp-s", 120_000_000, 2), "qmof-bandgap", 0.18),
        (("gemnet-oc-s", "transition1x", 2_000_000, 5), "matbench-phonons-fold0", 52.22),
        (("gemnet-oc-s", "oc22", 2_000_000, 5), "matbench-phonons", 27.55),
    ],
)
def test_numbers_are_those_of_the_paper(paper, start, task, value):
    assert mae(paper, *start, task) == value


def test_every_number_is_there_once(paper):
    """148: the main table 32, its later version 4, budgets 64, one mix 4, the large backbone 16, out of domain 28."""
    assert len(paper.finetuning) == 148
    assert not paper.finetuning.duplicated([*KEYS, "source"]).any()
    assert paper.finetuning.notna().all(axis=None) and (paper.finetuning["mae"] > 0).all()


def test_jmp_costs_24_times_as_much(paper):
    budget = (paper.finetuning["structures"] * paper.finetuning["epochs"]).groupby(paper.finetuning["init"]).max()
    main = paper.finetuning[paper.finetuning["source"] == "main table"]
    assert set((main["structures"] * main["epochs"]).groupby(main["init"]).first()["ani1x":"balanced"]) == {10_000_000}
    assert budget["jmp-s"] / 10_000_000 == 24


def test_ids_are_those_of_the_catalogue(paper, project):
    families = set(project.datasets.raw.values())
    finetuning = paper.finetuning
    assert set(finetuning["backbone"]) <= set(project.backbones)
    assert set(finetuning["init"]) <= {*project.run.upstream, *project.mixes, "jmp-s", "jmp-l"}
    tasks = set(finetuning["task"]) - {"matbench-phonons"}
    assert tasks <= set(project.tasks) and "matbench-phonons" in families
    for task, unit in set(zip(finetuning["task"], finetuning["unit"], strict=True)):
        assert project.tasks[task if task in tasks else "matbench-phonons-fold0"].unit == unit
    assert set(paper.unique_classes["dataset"]) == set(project.run.upstream)
    assert set(paper.csi_order["upstream"]) <= set(project.run.upstream)
    assert set(paper.csi_order["downstream"]) <= set(project.downstream)
    assert set(paper.csi_order["place"]) == {"lowest", "highest"}


def test_unique_classes(paper):
    classes = paper.unique_classes.set_index("dataset")
    assert classes.loc["oc20-2m", ["structures", "random", "balanced", "whole"]].tolist() == [10000, 4676, 8478, 8478]


def our(init, task, *maes, **changes):
    """Runs of one start, a seed each."""
    start = {"backbone": "gemnet-oc-s", "init": init, "structures": 2_000_000, "epochs": 5, "task": task}
    start |= {"unit": "meV" if task == "qm9-u0" else "meV/angstrom"} | changes
    return [start | {"seed": seed, "mae": mae} for seed, mae in enumerate(maes)]


@pytest.mark.parametrize(
    ("runs", "verdict"),
    [
        (our("transition1x", "rmd17-aspirin-forces", 10.5, 10.4, 10.6), "agrees within 5 %"),
        (our("ani1x", "rmd17-aspirin-forces", 5.0), "agrees within 5 %"),  # of the later version's 5.2
        (our("oc22", "rmd17-aspirin-forces", 9.0, 10.0, 11.0), "better beyond the seeds"),
        (our("oc22", "rmd17-aspirin-forces", 9.0, 14.0, 17.0), "better, within the seeds"),
        (our("oc22", "rmd17-aspirin-forces", 17.0, 18.0, 19.0), "worse beyond the seeds"),
        (our("oc22", "rmd17-aspirin-forces", 15.0, 18.0, 19.0), "worse, within the seeds"),
        (our("oc22", "rmd17-aspirin-forces", 18.0), "worse, one seed only"),
        (our("oc22", "rmd17-aspirin-forces", 18.0, structures=2_000_001), "not in the paper"),
        (our("scratch", "rmd17-aspirin-forces", 18.0, structures=0, epochs=0), "not in the paper"),
    ],
)
def test_verdicts(paper, runs, verdict):
    (found,) = compare(pd.DataFrame(runs), paper).to_dict("records")
    assert found["verdict"] == verdict
    maes = [run["mae"] for run in runs]
    assert (found["seeds"], found["low"], found["high"]) == (len(maes), min(maes), max(maes))


def test_differences_and_ratios(paper):
    found = compare(pd.DataFrame(our("oc22", "qm9-u0", 2.0, 3.7) + our("ani1x", "qm9-u0", 5.8)), paper)
    assert found["mean"].tolist() == pytest.approx([2.85, 5.8])
    assert found["paper"].tolist() == [5.7, 2.9]
    assert found["later"].fillna(0).tolist() == [0, 3.1]
    assert found["difference"].tolist() == pytest.approx([-2.85, 2.9])
    assert found["ratio"].tolist() == pytest.approx([0.5, 2])


def test_other_units_are_refused(paper):
    with pytest.raises(AtomcsiError, match="qm9-u0: errors are in eV, the paper's in meV"):
        compare(pd.DataFrame(our("oc22", "qm9-u0", 2.85, unit="eV")), paper)


def test_the_order_of_a_task(paper):
    """QM9: 2.9, 3.2, 3.2 and 5.7, of which Transition-1x and the balanced mix are no pair."""
    means = {"ani1x": 3.0, "transition1x": 3.5, "balanced": 2.0, "oc22": 9.0, "mine": 1.0}
    runs = [run for init, mean in means.items() for run in our(init, "qm9-u0", mean)]
    compared = compare(pd.DataFrame(runs), paper)
    assert same_order(compared).to_dict("records") == [
        {"task": "qm9-u0", "n": 4, "pairs": 5, "alike": 4, "same_order": False}
    ]
    assert same_order(compared[compared["init"] != "balanced"])["same_order"].tolist() == [True]
    assert same_order(compared[compared["init"] == "ani1x"])["same_order"].tolist() == [None]


def test_the_order_of_csi(paper):
    upstreams = ["ani1x", "transition1x", "oc20-2m", "oc22"]
    ours = {
        "rmd17-aspirin": [1, 2, 4, 3],
        "qmof": [3, 2, 4, 5],
        "matbench-phonons-fold0": [9, 9, 1, 2],
        "mine": [1] * 4,
    }
    distances = pd.DataFrame(
        [
            {"downstream": downstream, "upstream": upstream, "estimate": value}
            for downstream, values in ours.items()
            for upstream, value in zip(upstreams, values, strict=True)
        ]
    )
    found = same_csi_order(distances, paper).set_index("downstream")
    # Told are, for rMD17: ANI-1x below all, Transition-1x below OC20 and OC22.
    assert found.loc["rmd17-aspirin"].tolist() == ["ani1x", 5, 5, True]
    assert found.loc["qmof"].tolist() == ["transition1x", 3, 2, False]
    assert found.loc["matbench-phonons-fold0"].tolist() == ["oc20-2m", 4, 4, True]
    assert "mine" not in found.index


def test_files_that_are_not_the_papers(tmp_path):
    folder = shutil.copytree(ROOT / "resources" / "paper", tmp_path / "paper")
    table = folder / "csi_order.csv"
    table.write_text(re.sub("place", "rank", table.read_text()))
    with pytest.raises(InputError, match=r"csi_order\.csv: lacks the column place"):
        read_paper_numbers(folder)
    table.unlink()
    with pytest.raises(InputError, match=r"csi_order\.csv: is missing"):
        read_paper_numbers(folder)
