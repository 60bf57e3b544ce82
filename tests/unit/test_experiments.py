"""Experiments of the configuration: stand-ins, budgets, names of results, and mistakes."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from atomcsi.config import RunConfig
from atomcsi.errors import ConfigError
from atomcsi.experiments import Experiment, StandIns
from atomcsi.project import Project, load_project
from atomcsi.project_checks import RUN_FIGURES
from atomcsi.report.figures import FIGURES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo() -> Project:
    return load_project(path=ROOT / "config" / "demo.yaml", root=ROOT)


@pytest.fixture(scope="module")
def paper() -> Project:
    return load_project(path=ROOT / "config" / "paper.yaml", root=ROOT)


def starts(project: Project, name: str) -> dict[str, tuple[int, int]]:
    """Structures and epochs of an experiment's pretrainings, by the name of their results."""
    return {cell.start.name: (cell.start.structures, cell.start.epochs) for cell in cells(project, name)}


def cells(project: Project, name: str):
    return project.cells(project.experiments[name])


def test_budgets_of_the_paper_are_written_as_it_writes_them(paper):
    """Section 1: N = 2M, E = 5, C = 10M; the ablation has 1M x 10 beside it, the same C."""
    found = starts(paper, "budget")
    assert found["ani1x"] == (2_000_000, 5)
    assert found["ani1x-n1000000-e10"] == (1_000_000, 10)
    assert found["scratch"] == (0, 0)
    budgets = {structures * epochs for structures, epochs in found.values()}
    assert budgets == {0, 2_500_000, 5_000_000, 10_000_000}


def test_a_pretraining_with_the_runs_budget_is_the_runs(paper):
    """So it is trained once, whatever names it."""
    shared = {name: set(starts(paper, name)) for name in ("main", "budget", "misaligned", "first-check")}
    assert all("ani1x" in names for names in shared.values())
    assert paper.pretrainings["ani1x"].spec is None
    assert paper.pretrain_settings("ani1x-n1000000-e10").structures == 1_000_000
    assert paper.pretrain_settings("ani1x-n1000000-e10").epochs == 10


def test_a_counted_mix_has_its_own_number_of_structures(paper):
    """Section 4: ANI-1x 2M + OC22 1M, five epochs."""
    assert starts(paper, "misaligned")["aligned-and-misaligned"] == (3_000_000, 5)


def test_stand_ins_shrink_numbers_as_the_runs_own_budget_is_shrunk(demo):
    """The demo's 240 x 8 stands for 2M x 5: 1M is 120, and the mix of 2M + 1M is 240 + 120."""
    assert starts(demo, "misaligned")["aligned-and-misaligned"] == (360, 8)
    assert demo.mixes["aligned-and-misaligned"].structures == {"ani1x-mini": 240, "oc22-mini": 120}
    own = {name for name in starts(demo, "budget") if name.startswith("ani1x-mini")}
    assert own == {"ani1x-mini", "ani1x-mini-n60", "ani1x-mini-n120", "ani1x-mini-n120-e16"}


def test_no_name_of_the_paper_is_left_at_demo_scale(demo):
    for name in demo.experiments:
        for cell in cells(demo, name):
            assert not {cell.task, cell.start.init, cell.backbone} & set(demo.run.stand_ins), (name, cell)


def test_what_nothing_stands_in_for_is_left_out():
    run = RunConfig.model_construct(
        pretrain=load_project(path=ROOT / "config" / "demo.yaml", root=ROOT).run.pretrain,
        stand_ins={"ani1x": "small", "oc20": "small", "qmof": None},
    )
    content = {
        "tasks": ["qmof"],
        "inits": ["ani1x", "oc20", "qmof", "scratch"],
        "comparisons": [{"label": "a", "extractor": "qmof"}, {"label": "b", "extractor": "ani1x"}],
        "budgets": [{"structures": 1, "epochs": 1}],
    }
    found = StandIns(run).experiment(content)
    # Two datasets with one stand-in are one.
    assert (found["tasks"], found["inits"]) == ([], ["small", "scratch"])
    assert found["comparisons"] == [{"label": "b", "extractor": "small"}]
    # A budget never shrinks to nothing.
    assert found["budgets"] == [{"structures": 1, "epochs": 2}]


def test_a_run_without_stand_ins_takes_the_paper_at_its_word(paper):
    content = {"budgets": [{"structures": 500_000}], "demo": {"seeds": [7]}}
    assert StandIns(paper.run).experiment(content) == {"budgets": [{"structures": 500_000}]}


def test_what_an_experiment_leaves_out_is_the_runs(demo):
    found = demo.experiments["csi"]
    assert (found.backbones, found.seeds) == ([demo.run.backbone], demo.run.seeds)
    (measured, *_) = demo.measurements(found)
    assert (measured.comparison, measured.aggregation, measured.distance) == ("sevennet-0", "flat", "frechet")


def test_a_comparison_with_samples_of_its_own_has_results_of_its_own(demo):
    entry = Experiment.model_validate(
        {
            "title": "t",
            "question": "q",
            "source": "s",
            "plot": "csi",
            "tasks": ["rmd17-mini-forces"],
            "comparisons": [
                {"label": "as the run"},
                {"label": "mean", "aggregation": "mean"},
                {"label": "random", "method": "random"},
                {"label": "few", "structures": 7},
            ],
        }
    )
    names = [found.comparison for found in demo.measurements(entry)]
    assert names == ["sevennet-0", "sevennet-0", "sevennet-0-random", "sevennet-0-n7"]
    assert [found.aggregation for found in demo.measurements(entry)] == ["flat", "mean", "flat", "flat"]


def test_every_experiment_has_what_its_figure_needs(demo, paper):
    for project in (demo, paper):
        for name, found in project.experiments.items():
            assert found.tasks and found.seeds and found.title and found.question.endswith("?"), name
            assert bool(found.inits) == found.trains


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("main.yaml", "ani1x, ", "ani2x, ", r"main.yaml:\d+: inits: unknown init 'ani2x'; known: .*ani1x-mini"),
        ("main.yaml", "qm9-u0", "qm9-u1", r"main.yaml:\d+: tasks: unknown task 'qm9-u1'; did you mean"),
        ("main.yaml", "question:", "questoin:", r"main.yaml:\d+: questoin: unknown key; did you mean 'question'\?"),
        ("main.yaml", "plot: finetuning", "plot: finetunig", r"main.yaml:\d+: plot: .*did you mean 'finetuning'"),
        ("csi.yaml", "plot: csi", "plot: csi\ninits: [ani1x]", r"csi.yaml: .*'inits' are for figures of trainings"),
        ("size.yaml", "gemnet-oc-s,", "gemnet-s,", r"size.yaml:\d+: backbones: unknown backbone 'gemnet-s'; did you"),
        ("budget.yaml", "{structures: 500000}", "{structures: 0}", r"budget.yaml:\d+: budgets.0.structures: .*greater"),
        ("csi.yaml", "plot: csi", "plot: csi\ncomparisons: [{label: a}, {label: a}]", "two comparisons have one label"),
        ("main.yaml", "plot: finetuning", "plot: finetuning\nsizes: {ani1x: 2}", "'sizes' are for 'selectors'"),
        ("csi-against-error.yaml", "[ani1x, transition1x, oc20-2m, oc22, s", "[ani1x, s", "of two upstreams at least"),
        ("csi-against-error.yaml", "[{label: CSI}]", "[{label: a}, {label: b}]", "the distances of one comparison"),
        ("csi-against-error.yaml", "place: 4", "budgets: [{}, {structures: 9}]", "of one backbone with one budget"),
        (
            "csi.yaml",
            "plot: csi",
            "plot: csi\ncomparisons: [{label: a, distance: freched}]",
            r"csi.yaml:\d+: comparisons.0.distance: unknown distance 'freched'; did you mean 'frechet'",
        ),
    ],
)
def test_a_mistake_is_named_with_file_line_and_field(tmp_path, file, old, new, message):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    path = tmp_path / "config" / "experiments" / file
    text = path.read_text()
    assert old in text
    # The demo lays entries of its own over some experiments.
    text = re.sub(r"\n(#[^\n]*\n)*demo:.*", "\n", text.replace(old, new, 1), flags=re.DOTALL)
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_project(path=tmp_path / "config" / "demo.yaml", root=ROOT)


def test_sizes_are_of_known_datasets_and_not_of_stand_ins(tmp_path, demo, paper):
    assert paper.experiments["selectors"].sizes["oc20-2m"] == 1e8 and not demo.experiments["selectors"].sizes
    shutil.copytree(ROOT / "config", tmp_path / "config")
    path = tmp_path / "config" / "experiments" / "selectors.yaml"
    path.write_text(path.read_text().replace("sizes: {ani1x:", "sizes: {ani2x:"))
    with pytest.raises(ConfigError, match=r"selectors.yaml:\d+: sizes: unknown dataset 'ani2x'"):
        load_project(path=tmp_path / "config" / "paper.yaml", root=ROOT)


def test_an_experiment_that_the_report_shows_must_exist(tmp_path):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    path = tmp_path / "config" / "demo.yaml"
    path.write_text(path.read_text().replace("experiments: [csi,", "experiments: [cis,"))
    with pytest.raises(
        ConfigError, match=r"demo.yaml:\d+: experiments.0: unknown experiment 'cis'; did you mean 'csi'"
    ):
        load_project(path=path, root=ROOT)


def test_a_run_that_names_no_experiments_knows_none(tmp_path):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    path = tmp_path / "config" / "demo.yaml"
    path.write_text(re.sub(r"\nexperiments: .*", "", path.read_text()))
    project = load_project(path=path, root=ROOT)
    assert (dict(project.experiments), project.reported) == ({}, [])


def test_experiments_that_need_other_upstreams_are_set_aside():
    content = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
    content |= {"upstream": ["ani1x-mini", "oc22-mini"], "inits": ["ani1x-mini"], "experiments": ["csi", "budget"]}
    project = load_project(content, path=ROOT / "config" / "demo.yaml", root=ROOT)
    assert {"csi", "budget", "effective-rank"} <= set(project.experiments)
    assert {"first-check", "main", "selectors", "difficulty"} <= set(project.unfit)
    message = r"first-check.yaml: this experiment needs oc20-mini, which is not in the run's 'upstream' \(add it"
    assert re.search(message, str(project.unfit["first-check"]))
    with pytest.raises(ConfigError, match=message):
        load_project(content | {"experiments": ["first-check"]}, path=ROOT / "config" / "demo.yaml", root=ROOT)
    content |= {"upstream": ["oc20-mini", "oc22-mini"], "inits": ["oc22-mini"], "experiments": ["csi"]}
    project = load_project(content, path=ROOT / "config" / "demo.yaml", root=ROOT)
    assert "ani1x-mini" in str(project.unfit["design"])


def test_experiments_stand_in_their_place(demo):
    places = [experiment.place for experiment in demo.experiments.values() if experiment.place]
    assert places == sorted(set(places)) and next(iter(demo.experiments)) == "first-check"


def test_experiments_without_a_place_come_last(tmp_path):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    path = tmp_path / "config" / "experiments"
    for name in ("mine", "another"):
        (path / f"{name}.yaml").write_text(re.sub(r"place: .*\n", "", (path / "csi.yaml").read_text()))
    project = load_project(path=tmp_path / "config" / "demo.yaml", root=ROOT)
    names = list(project.experiments)
    placed = [name for name in names if project.experiments[name].place]
    assert names == placed + sorted(set(names) - set(placed)) and {"another", "mine"} <= set(names) - set(placed)


def test_a_downstream_dataset_is_no_init(tmp_path):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    path = tmp_path / "config" / "experiments" / "first-check.yaml"
    path.write_text(path.read_text().replace("inits: [ani1x,", "inits: [rmd17-mini,"))
    with pytest.raises(ConfigError, match=r"first-check.yaml:\d+: inits: unknown init 'rmd17-mini'"):
        load_project(path=tmp_path / "config" / "demo.yaml", root=ROOT)


def test_experiments_cannot_have_the_name_of_a_figure():
    assert set(RUN_FIGURES) == set(FIGURES)
