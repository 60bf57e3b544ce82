"""Figures, findings and the page of experiments, from made-up numbers."""

import math
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from atomcsi.errors import AtomcsiError
from atomcsi.experiments import Experiment
from atomcsi.files import read_json, write_json
from atomcsi.paper import PaperNumbers, read_paper_numbers
from atomcsi.report.experiment import SCHEMA, Results, write_experiment
from atomcsi.report.experiment_figures import PLOTS
from atomcsi.report.experiment_findings import FINDINGS
from atomcsi.report.experiment_page import shown_experiments
from atomcsi.report.experiment_table import error_table, short
from atomcsi.report.page import templates
from atomcsi.training.model_files import METRICS_SCHEMA

UNITS = {"rmd17-aspirin-forces": "meV/angstrom", "qm9-u0": "meV"}
ASPIRIN, QM9 = UNITS
S, L = "gemnet-oc-s", "gemnet-oc-l"
MAIN = (2_000_000, 5)


@pytest.fixture(scope="module")
def numbers() -> PaperNumbers:
    return read_paper_numbers(Path(__file__).parents[2] / "resources" / "paper")


def entry(plot: str) -> Experiment:
    trains = plot in ("finetuning", "budget", "csi-against-error", "selectors")
    inits = ["near", "far", "scratch"] if trains else []
    content = {"title": f"all about {plot}", "question": "Is it?", "source": "section 4", "plot": plot, "inits": inits}
    more = {"caption": "The end.", "seeds": [0, 1, 2], "comparisons": [{"label": "CSI"}]}
    return Experiment.model_validate(content | more)


def results(plot: str, *, paper: PaperNumbers | None = None, **tables: pd.DataFrame) -> Results:
    return Results(plot, entry(plot), "demo" if paper is None else "full", paper=paper, **tables)


def runs(errors: dict[tuple, list[float]], task: str = ASPIRIN, backbone: str = S) -> pd.DataFrame:
    """Finetunings from errors by seed of (init, structures, epochs), or of an init with the main budget."""
    rows = []
    for start, maes in errors.items():
        init, *budget = (start,) if isinstance(start, str) else start
        structures, epochs = (0, 0) if init == "scratch" else budget or MAIN
        for seed, mae in enumerate(maes):
            names = {"backbone": backbone, "init": init, "structures": structures, "epochs": epochs, "task": task}
            names |= {"budget": structures * epochs, "dataset": task, "unit": UNITS[task], "seed": seed}
            costs = {"gpu_hours": 2.0 + seed, "kwh": 0.7, "seconds": 60.0}
            rows.append(names | {"mae": float(mae), "test_structures": 25} | costs)
    return pd.DataFrame(rows)


def distances(estimates: dict[str, dict[str, list[float]]]) -> pd.DataFrame:
    """Distances by label and downstream dataset, of three upstreams."""
    names = {"extractor": "features", "aggregation": "flat", "distance": "frechet", "p_best": 0.5}
    names |= {"beyond_best_low": 0.0, "beyond_best_high": 1.0, "upstream_population": 1000}
    names |= {"upstream_sampling": "balanced", "upstream_classes": 7}
    return pd.DataFrame(
        [
            {"label": label, "downstream": downstream, "upstream": upstream, "estimate": value, **names}
            | {"low": value - 1, "high": value + 1, "upstream_structures": 200, "downstream_structures": 50}
            for label, rows in estimates.items()
            for downstream, values in rows.items()
            for upstream, value in zip(("ani1x", "oc20-2m", "oc22"), values, strict=True)
        ]
    )


def ranks(of_atoms: float, of_structures: float, sizes: tuple[int, ...] = (100, 1000)) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"dataset": dataset, "extractor": "features", "aggregation": aggregation, "structures": size}
            | {"repeat": repeat, "effective_rank": rank + repeat, "dim": 3200}
            for dataset in ("qm9", "oc22")
            for aggregation, rank in (("flat", of_atoms), ("mean", of_structures), ("max", 2.0))
            for size in sizes
            for repeat in range(3)
        ]
    )


def findings(found: Results) -> list[str]:
    _, table, _ = PLOTS[found.experiment.plot](found)
    return FINDINGS[found.experiment.plot](found, table)


def test_every_plot_says_what_it_found():
    assert FINDINGS.keys() == PLOTS.keys()


def test_errors_over_seeds_with_what_they_cost():
    table = error_table(results("finetuning", finetuning=runs({"near": [4, 5, 9], "scratch": [20]})))
    near, scratch = table.to_dict("records")
    assert (near["start"], near["seeds"], near["mean"], near["low"], near["high"]) == ("near", 3, 6.0, 4.0, 9.0)
    assert near["std"] == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert (near["budget"], near["test_structures"], near["gpu_hours"]) == (10_000_000, 25, 3.0)
    assert near["kwh"] == pytest.approx(0.7)
    assert (scratch["budget"], scratch["seeds"]) == (0, 1) and math.isnan(scratch["std"])


def test_one_init_with_several_budgets_is_several_starts():
    errors = {("near", 1_000_000, 10): [4.0], ("near", 500_000, 5): [5.0], ("far", 500_000, 5): [6.0]}
    table = error_table(results("finetuning", finetuning=runs(errors)))
    assert list(table["start"]) == ["near, 1M × 10", "near, 500k × 5", "far"]
    assert [short(count) for count in (240, 1920, 5000, 500_000, 2_000_000)] == ["240", "1,920", "5k", "500k", "2M"]


def test_a_finetuning_without_an_error_is_named():
    with pytest.raises(AtomcsiError, match=f"{ASPIRIN} from near, seed 1: the test error is nan"):
        error_table(results("finetuning", finetuning=runs({"near": [4, math.nan]})))


def test_at_full_scale_the_papers_numbers_and_jmps_stand_beside_ours(numbers):
    """Section 2: 5.4 from ANI-1x, 16.0 from OC22; 6.7 and 5.1 of JMP-S and -L, at 240M."""
    finetuning = runs({"ani1x": [5.3, 5.4, 5.5], "oc22": [17.5, 18.0, 18.5], "near": [7.0]})
    table = error_table(results("finetuning", finetuning=finetuning, paper=numbers)).set_index("start")
    assert table["paper"].to_dict() == pytest.approx(
        {"ani1x": 5.4, "oc22": 16.0, "near": math.nan, "jmp-s": 6.7, "jmp-l": 5.1}, nan_ok=True
    )
    assert table.loc["oc22", "difference"] == pytest.approx(2.0)
    assert table.loc[["ani1x", "oc22"], "verdict"].tolist() == ["agrees within 5 %", "worse beyond the seeds"]
    assert table.loc[["jmp-s", "jmp-l"], "budget"].tolist() == [240_000_000] * 2
    assert table.loc[["jmp-s", "jmp-l"], "seeds"].tolist() == [0, 0]


def test_our_finetuning_of_a_published_model_is_beside_the_papers(tmp_path):
    metrics, starts = [], []
    for init, seed, mae in (("jmp-s", 0, 7.0), ("jmp-s", 1, 6.6), ("scratch", 0, 20.0), ("scratch", 1, 21.0)):
        metrics.append(tmp_path / f"{init}-{seed}.json")
        found = {"task": ASPIRIN, "dataset": "rmd17-aspirin", "unit": UNITS[ASPIRIN], "seed": seed, "mae": mae}
        write_json(metrics[-1], METRICS_SCHEMA, found | {"structures": 25})
        starts.append({"backbone": "jmp-s", "init": init, "structures": 0, "epochs": 0, "family": None, "card": None})
    paper = Path(__file__).parents[2] / "resources" / "paper"
    found = Results.read("ours", entry("finetuning"), scale="full", metrics=metrics, starts=starts, paper=paper)
    first, *_ = findings(found)
    assert first == f"{ASPIRIN}: jmp-s has the least error, 6.80 meV/Å; scratch is 201% above, beyond the seeds."
    table = error_table(found)
    # Lines over the budget are of what was pretrained here.
    assert FINDINGS["budget"](found, table) == ["Beside the paper's numbers: agrees within 5 % (1)."]
    table = table.set_index("start")
    assert table.index.tolist() == ["jmp-s", "scratch", "jmp-l"]
    assert table.loc["jmp-s", ["seeds", "budget", "paper"]].tolist() == [2, 240_000_000, 6.7]
    assert table.loc["jmp-s", "verdict"] == "agrees within 5 %"
    assert table.loc["scratch", "budget"] == 0


def test_at_demo_scale_no_number_is_the_papers():
    figure, table, caption = PLOTS["finetuning"](results("finetuning", finetuning=runs({"ani1x": [5.3]})))
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "paper" not in table and "paper" not in caption and "paper" not in texts and "5.40" not in texts


@pytest.mark.parametrize(
    ("near", "far", "sentence"),
    [
        ([10, 11, 12], [20, 22, 24], "near has the least error, 11.0 meV/Å; far is 100% above, beyond the seeds"),
        ([10, 11, 21], [20, 21, 22], "near has the least error, 14.0 meV/Å; far is 50% above, within the noise of the"),
        ([20, 22, 24], [10, 11, 12], "far has the least error, 11.0 meV/Å; near is 100% above, beyond the seeds"),
        ([10], [20], "near has the least error, 10.0 meV/Å; far is 100% above, with one seed only"),
    ],
    ids=["wins", "wins within the noise", "loses", "one seed"],
)
def test_who_has_the_least_error(near, far, sentence):
    found, *_ = findings(results("finetuning", finetuning=runs({"near": near, "far": far})))
    assert found.startswith(f"{ASPIRIN}: {sentence}")


def test_pretraining_that_does_not_pay():
    (found,) = findings(results("finetuning", finetuning=runs({"near": [10, 11], "far": [30], "scratch": [8, 9]})))
    assert found == (
        f"{ASPIRIN}: scratch has the least error, 8.50 meV/Å; near is 24% above, beyond the seeds; no pretraining paid."
    )


def test_wins_are_counted_over_tasks_and_backbones():
    parts = [
        runs({"near": [1, 2], "far": [3, 4], "scratch": [8, 9]}),
        runs({"near": [1, 2], "far": [2, 4], "scratch": [8, 9]}, task=QM9),
        runs({"near": [5, 6], "far": [3, 4], "scratch": [8, 9]}, backbone=L),
    ]
    summary, first, *_, last, odds = findings(results("finetuning", finetuning=pd.concat(parts)))
    assert summary == (
        "Who has the least mean error in 3 pairs of task and backbone: near in 2 and far in 1;"
        " the seeds of best and second best do not overlap in 2 of 3."
    )
    assert first.startswith(f"{ASPIRIN}, {S}: near") and "; scratch is 467% above, beyond the seeds." in first
    assert last.startswith(f"{ASPIRIN}, {L}: far")
    # Of the 6 ways to deal four numbers into two pairs, 2 keep them apart.
    assert odds == "Luck alone keeps 2 seeds each of two equals apart in 1 of 3 cases."


def test_errors_in_the_papers_order(numbers):
    """The paper: ANI-1x 5.4, Transition-1x 10.1, OC20 14.6, OC22 16.0 for aspirin; 2.9, 3.2, 4.8, 5.7 for QM9."""
    in_order = {"ani1x": [5.5, 5.6], "transition1x": [11, 12], "oc20-2m": [15, 16], "oc22": [17, 18]}
    reversed_ends = {"ani1x": [6.0, 6.1], "transition1x": [3.2, 3.3], "oc20-2m": [4.8], "oc22": [5.7]}
    finetuning = pd.concat([runs(in_order), runs(reversed_ends, task=QM9)])
    *_, verdicts, order = findings(results("finetuning", finetuning=finetuning, paper=numbers))
    assert verdicts.startswith("Beside the paper's numbers: ") and "agrees within 5 % (" in verdicts
    assert order == "Errors are in the paper's order in 1 of 2 comparisons, 9 of 12 pairs that it tells apart."


def test_what_the_paper_has_no_numbers_of(numbers):
    *_, last = findings(results("finetuning", finetuning=runs({"near": [1], "far": [2]}), paper=numbers))
    assert last == "The paper has no numbers of this."


BUDGETS = {
    ("near", 60, 8): [40, 42],
    ("mix", 60, 8): [50, 52],
    ("near", 120, 8): [36, 38],
    ("mix", 120, 8): [37, 39],
    ("near", 240, 8): [30, 32],
    ("mix", 240, 8): [20, 22],
    ("near", 120, 16): [34, 35],
    ("mix", 120, 16): [21, 23],
    ("scratch",): [60, 61],
}


def test_at_which_budget_one_overtakes_another():
    """C = 480, 960 and, with two ways to spend it, 1920."""
    summary, course, paid, more, longer = findings(results("budget", finetuning=runs(BUDGETS)))
    assert summary.startswith("Who has the least mean error in 4 comparisons at equal budget: near in 2 and mix in 2;")
    assert course == (
        f"{ASPIRIN}: near has the least error at the smallest budget, mix overtakes at C = 1,920;"
        " the seeds of best and second best do not overlap in 3 of 4."
    )
    assert paid == (
        f"{ASPIRIN}: better than from scratch are near at 4 of 4 budgets, 4 of them beyond the seeds and mix at 4 of 4"
        " budgets, 4 of them beyond the seeds."
    )
    assert more == (
        f"{ASPIRIN}: from C = 480 to 1,920 errors change by −24% (near, beyond the seeds) and −59% (mix, beyond the"
        " seeds)."
    )
    assert longer == (
        f"{ASPIRIN}: with 120 × 16 instead of 240 × 8 errors change by +11% (near, beyond the seeds) and"
        " +4.8% (mix, within the noise of the seeds)."
    )


def test_the_best_at_every_budget():
    errors = {start: maes for start, maes in BUDGETS.items() if start[0] != "mix"}
    errors |= {("far", *start[1:]): [mae + 30 for mae in maes] for start, maes in errors.items() if len(start) == 3}
    course = findings(results("budget", finetuning=runs(errors)))[1]
    assert course.startswith(f"{ASPIRIN}: near has the least error at every budget;")


def test_the_nearest_by_several_comparisons(numbers):
    estimates = {
        "atoms": {"rmd17-aspirin": [1.0, 30.0, 20.0], "qmof": [9.0, -0.5, 3.0]},
        "mean": {"rmd17-aspirin": [4.0, 3.0, 2.0], "qmof": [9.0, 0.0, 3.0]},
    }
    found = results("csi", csi=distances(estimates), paper=numbers)
    assert findings(found) == [
        "Nearest by atoms is ani1x to rmd17-aspirin; oc20-2m to qmof.",
        "By mean: 1 of 2 choices the same; nearest is oc22 to rmd17-aspirin.",
        # The text puts ANI-1x lowest for both, and OC20 and OC22 highest for aspirin.
        "CSI is in the paper's order in 1 of 2 downstream datasets, 2 of 4 pairs that it tells apart;"
        " the paper tells it of the ends only.",
    ]
    _, table, _ = PLOTS["csi"](found)
    assert table["rank"].tolist() == [1, 3, 2, 3, 1, 2, 3, 2, 1, 3, 1, 2]


def test_classes_in_samples_beside_the_papers(numbers):
    table = distances({label: {"qmof": [1.0, 2.0, 3.0]} for label in ("as in the run", "random", "few")})
    table["upstream_structures"] = table["label"].map({"few": 500}).fillna(10_000).astype(int)
    random = table["label"] == "random"
    table.loc[random, ["upstream_sampling", "upstream_classes"]] = ["random", 5]
    sentence = "Classes in a sample, by how it was drawn: "
    ours = "ani1x has 7 balanced and 5 random among 10,000 structures"
    assert findings(results("csi", csi=table))[-1].startswith(f"{sentence}{ours}; oc20-2m has 7 balanced and 5 random")
    beside = findings(results("csi", csi=table, paper=numbers))[-1]
    assert "ani1x has 7 balanced (paper: 2,434) and 5 random (paper: 1,032) among 10,000 structures" in beside
    assert "500" not in beside
    assert not any("Classes" in each for each in findings(results("csi", csi=table[~random])))
    # A third way, that only one size was drawn in, takes nothing from the others.
    stratified = table[table["label"] == "few"].assign(label="more", upstream_sampling="stratified")
    assert (
        "ani1x has 7 balanced and 7 stratified among 500 structures; ani1x has 7 balanced and 5 random"
        in findings(results("csi", csi=pd.concat([table, stratified])))[-1]
    )


def test_ranks_of_atoms_and_structures():
    table = ranks(of_atoms=40.0, of_structures=20.0)
    summary, atoms, *_ = findings(results("effective-rank", ranks=table))
    assert summary == (
        "Features of atoms vary in more directions than features of structures in 2 of 2 datasets, at 1,000 structures."
    )
    assert atoms == "Effective rank of atoms: 41.0 of 3,200."
    _, drawn, _ = PLOTS["effective-rank"](results("effective-rank", ranks=table))
    assert drawn.iloc[0][["resamples", "mean", "low", "high"]].tolist() == [3, 41.0, 40.0, 42.0]


def test_distances_against_errors(numbers):
    """In the order of the distances but for one pair of three: a Spearman coefficient of 0.5 (1 - 6 * 2 / 24)."""
    errors = runs({"ani1x": [5.3, 5.4, 5.5], "oc20-2m": [14.0, 15.0, 16.0], "oc22": [17.5, 18.0, 18.5]})
    errors = pd.concat([errors, runs({"scratch": [20.0, 21.0, 22.0], "ani1x": [9.0]}, QM9)])
    measured = distances({"CSI": {ASPIRIN: [1.5, 30.0, 20.0], "elsewhere": [3.0, 2.0, 1.0]}})
    found = results("csi-against-error", finetuning=errors, csi=measured, paper=numbers)
    figure, table, caption = PLOTS["csi-against-error"](found)
    assert table["upstream"].tolist() == ["ani1x", "oc20-2m", "oc22"] and set(table["task"]) == {ASPIRIN}
    assert table["csi"].tolist() == [1.5, 30.0, 20.0] and table["csi_high"].tolist() == [2.5, 31.0, 21.0]
    assert table["spearman"].tolist() == pytest.approx([0.5] * 3)
    assert table["paper"].tolist()[::2] == [5.4, 16.0] and table["jmp_share"].tolist() == pytest.approx([1 / 24] * 3)
    (axes,) = figure.axes
    assert axes.get_title().splitlines()[:2] == [ASPIRIN, "3 seeds, 25 test structures"]
    assert axes.get_xlabel() == "CSI (squared feature units), n = 3" and axes.get_xscale() == "log"
    assert "Hollow markers are the paper's" in caption
    said = findings(found)
    assert said[0].startswith("Right in 1 of 1 task;") and "Spearman +0.50" in said[0]
    assert said[1] == "It chose the best upstream."
    assert said[2].startswith("Beside the paper's numbers: agrees within 5 % (2)")


def test_an_interval_that_reaches_zero_is_not_drawn_on_a_logarithmic_axis():
    errors = runs({"ani1x": [5], "oc20-2m": [9], "oc22": [7]})
    for nearest, scale in ((0.9, "linear"), (1.1, "log")):
        measured = distances({"CSI": {ASPIRIN: [nearest, 30.0, 20.0]}})
        figure, _, _ = PLOTS["csi-against-error"](results("csi-against-error", finetuning=errors, csi=measured))
        assert figure.axes[0].get_xscale() == scale


MADE_UP = {
    "csi": {"csi": distances({"": {"rmd17-aspirin": [1.0, 30.0, 20.0], "qmof": [math.nan, 5.0, 3.0]}})},
    "effective-rank": {"ranks": ranks(40.0, 20.0)},
    "finetuning": {"finetuning": pd.concat([runs({"ani1x": [5, 6], "scratch": [90]}), runs({"ani1x": [7]}, QM9, L)])},
    "budget": {"finetuning": runs(BUDGETS)},
    "csi-against-error": {
        "csi": distances({"CSI": {ASPIRIN: [1.5, 30.0, 20.0]}}),
        "finetuning": runs({"ani1x": [5, 6, 6], "oc20-2m": [9, 9, 10], "oc22": [7, 8, 8], "scratch": [20, 21, 22]}),
    },
    "selectors": {
        "csi": distances({"CSI": {ASPIRIN: [1.0, 30.0, 20.0]}}),
        "finetuning": runs({"ani1x": [5, 6, 6], "oc20-2m": [7, 8, 8], "oc22": [9, 9, 10]}),
    },
}


@pytest.mark.parametrize("plot", PLOTS)
def test_figures_repeat_and_keep_their_table(plot, tmp_path, numbers):
    found = results(plot, paper=numbers, **MADE_UP[plot])
    for name in ("a", "b"):
        write_experiment(found, tmp_path / name)
    svg = (tmp_path / "a.svg").read_bytes()
    assert svg == (tmp_path / "b.svg").read_bytes()
    assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert len(pd.read_csv(tmp_path / "a.csv")) > 0
    record = read_json(tmp_path / "a.json", SCHEMA)
    assert record["caption"].endswith("The end.") and record["findings"] and record["scale"] == "full"
    assert record["seeds"] == ([0, 1, 2] if found.experiment.trains else [])


def test_errors_that_are_far_apart_are_drawn_on_a_logarithmic_axis():
    for worst, scale in ((39, "linear"), (41, "log")):
        figure, _, _ = PLOTS["finetuning"](results("finetuning", finetuning=runs({"near": [10], "far": [worst]})))
        assert figure.axes[0].get_xscale() == scale


def rendered(records: list[Path], scale: str = "demo") -> str:
    """The page's section on experiments."""
    more = [{"name": "size", "title": "A larger <model>", "question": "Is it?"}]
    section = templates().get_template("experiments.html.jinja")
    run = SimpleNamespace(scale=scale)
    return section.render(run=run, experiments=shown_experiments(records), more_experiments=more)


def test_the_page_shows_every_experiment_with_its_table(tmp_path):
    for plot in PLOTS:
        write_experiment(results(plot, **MADE_UP[plot]), tmp_path / plot)
    text = rendered([tmp_path / f"{plot}.json" for plot in PLOTS])
    page = ET.fromstring(f"<main>{text}</main>")
    words = " ".join(" ".join(page.itertext()).split())
    ids = [element.get("id") for element in page.iter() if element.get("id")]
    links = {element.get("href") for element in page.iter("a")}
    assert len(set(ids)) == len(ids)
    for plot in PLOTS:
        assert f"experiment-{plot}" in ids and {f"#experiment-{plot}", f"figures/{plot}.csv"} <= links
        assert f"all about {plot}" in words
        assert f"snakemake --profile profiles/local results/figures/{plot}.svg" in words
    for phrase in (
        "near has the least error at the smallest budget, mix overtakes at C = 1,920",
        "Nearest is ani1x to rmd17-aspirin; oc22 to qmof.",
        "they neither confirm nor refute the paper",
        "In the paper: section 4. Seeds: 0, 1, 2. Drawn with atomcsi",
        "Experiments that this page does not show",
        "A larger <model>",
        "snakemake --profile profiles/local results/figures/size.svg",
    ):
        assert phrase in words
    # Numbers are sorted as numbers, and missing ones are no words.
    assert '<td class="n" data-value="41.0">41.0</td>' in text and '<td class="n" data-value="nan">–</td>' in text
    assert "nan" not in words and "<NA>" not in words


def test_the_page_at_full_scale_names_its_commands(tmp_path, numbers):
    write_experiment(results("csi", paper=numbers, **MADE_UP["csi"]), tmp_path / "csi")
    text = rendered([tmp_path / "csi.json"], scale="full")
    assert "results/figures/csi.svg --config scale=full</code>" in text and "paper --config scale=full</code>" in text
    assert "stand-ins" not in text and "Seeds" not in text


def test_a_budget_that_only_one_start_has_is_no_contest():
    """A mix of given numbers of structures has an N of its own."""
    errors = {("near", 240, 8): [10, 11], ("mix", 360, 8): [8, 9]}
    assert findings(results("budget", finetuning=runs(errors))) == ["There is nothing to compare."]
