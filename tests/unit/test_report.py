import dataclasses
import math
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pandas as pd
import pytest

from atomcsi.catalogue import Dataset
from atomcsi.config import BackboneSpec, ExtractorSpec, RunConfig, Task
from atomcsi.errors import AtomcsiError
from atomcsi.files import write_json
from atomcsi.project import Project
from atomcsi.quantities import duration, number
from atomcsi.report.figures import FIGURES, draw
from atomcsi.report.outcome import (
    Errors,
    chance,
    correlations,
    csi_against_mae,
    judge,
    least_p,
    overall,
    percent,
    signed,
    summarise,
    verdict,
)
from atomcsi.report.page import badge, best_mixes, costs, merged_versions, other_distances, write_report
from atomcsi.report.tables import Tables
from atomcsi.selection import SCHEMA as SELECTION_SCHEMA
from atomcsi.selection import select

UPSTREAMS = ["near", "middle", "far"]
TASKS = {"drug-forces": "drug", "salt-forces": "salt"}
CSI = {"drug": [10.0, 20.0, 400.0], "salt": [30.0, 31.5, 90.0]}
P_BEST = {"drug": [0.99999, 0.00001, 0.0], "salt": [0.62, 0.38, 0.0]}
#: CSI is right for the drug, beyond the noise; for the salt it misses `middle`, within the noise.
MAE = {
    "drug-forces": {"near": [10, 12, 14], "middle": [15, 16, 20], "far": [30, 33, 36], "scratch": [24, 24, 24]},
    "salt-forces": {"near": [22, 24, 26], "middle": [18, 20, 22], "far": [40, 44, 48], "scratch": [20, 22, 24]},
}


def make_tables(seeds: int = 3) -> Tables:
    csi = pd.DataFrame(
        [
            {"extractor": "composition", "aggregation": "flat", "distance": "frechet"}
            | {"upstream": upstream, "downstream": downstream}
            | {"value": value + 1, "estimate": value, "corrected": value, "low": value - 2, "high": value + 2}
            | {"p_best": p_best, "beyond_best": value - values[0], "beyond_best_low": 0.0, "beyond_best_high": 0.0}
            | {"value_half": value + 2, "value_quarter": value + 4}
            | {
                "upstream_structures": 200,
                "downstream_structures": 50,
                "upstream_atoms": 2000,
                "downstream_atoms": 700,
                "upstream_embedding_seconds": 4.0,
                "downstream_embedding_seconds": 1.5,
            }
            for downstream, values in CSI.items()
            for upstream, value, p_best in zip(UPSTREAMS, values, P_BEST[downstream], strict=True)
        ]
    )
    others = csi.assign(distance="energy", estimate=[3.0, 2.0, 9.0] * 2)
    elements = pd.DataFrame(
        [
            {"extractor": "composition", "aggregation": "flat", "distance": "frechet", "downstream": downstream}
            | {"upstream": upstream, "symbol": symbol, "upstream_share": 0.5, "downstream_share": 0.5}
            | {"upstream_csi": value * share, "downstream_csi": value / 2}
            for downstream, values in CSI.items()
            for upstream, value in zip(UPSTREAMS, values, strict=True)
            for symbol, share in (("H", 0.3), ("O", 0.7))
        ]
    )
    mixes = {"best": (8.0, [0.7, 0.3, 0.0]), "equal": (60.0, [0.3, 0.3, 0.4])}
    mixtures = pd.DataFrame(
        [
            {"extractor": "composition", "downstream": "drug", "mix": mix, "csi": csi_of_mix, "upstream": upstream}
            | {"weight": weight, "structures": 100 * weight}
            for mix, (csi_of_mix, weights) in mixes.items()
            for upstream, weight in zip(UPSTREAMS, weights, strict=True)
        ]
        + [
            {"downstream": "drug", "mix": f"only {upstream}", "csi": value, "upstream": upstream, "weight": 1.0}
            for upstream, value in zip(UPSTREAMS, CSI["drug"], strict=True)
        ]
    )
    finetuning = pd.DataFrame(
        [
            {"task": task, "dataset": TASKS[task], "target": "forces", "unit": "meV/angstrom", "init": init}
            | {"seed": seed, "mae": float(mae), "labels": 900, "structures": 25, "seconds": 10.0, "budget": 320}
            | {"gpu_hours": 0.0, "kwh": 0.5}
            for task, inits in MAE.items()
            for init, maes in inits.items()
            for seed, mae in enumerate(maes[:seeds])
        ]
    )
    cards = [
        {"dataset": upstream, "seed": seed, "structures": 240, "budget": 480, "atoms": 3000, "parameters": 1000}
        | {"best_epoch": 2, "seconds": 60.0, "gpu_hours": 1.5, "kwh": 0.25}
        | {
            "history": [
                {
                    "epoch": epoch,
                    "train_loss": 2.0,
                    "val_loss": 2.0 / epoch,
                    "learning_rate": 1e-3,
                    "seconds": 30.0,
                }
                for epoch in (1, 2)
            ]
        }
        for upstream in UPSTREAMS
        for seed in range(seeds)
    ]
    columns = ["seed", "structures", "budget", "atoms", "parameters", "best_epoch", "seconds", "gpu_hours", "kwh"]
    pretraining = pd.DataFrame(
        [{"init": card["dataset"], "val_loss": 1.0} | {name: card[name] for name in columns} for card in cards]
    )
    return Tables(csi, selections(csi), finetuning, pretraining, cards, others, elements, mixtures)


def selections(csi: pd.DataFrame) -> list[dict[str, object]]:
    """The choices that the records of a table lead to, NaN being unknown."""
    found = []
    for downstream in CSI:
        rows = csi[csi["downstream"] == downstream].sort_values(["estimate", "upstream"])
        rows = rows.astype(object).where(rows.notna(), None)
        names = {"downstream": downstream, "extractor": "composition", "aggregation": "flat", "distance": "frechet"}
        found.append(select({**names, "upstreams": rows.to_dict("records")}))
    return found


def make_project(scale: str = "demo", extractor: str = "sevennet", title: str = "A run") -> Project:
    def dataset(name: str, role: str, **changes: str) -> Dataset:
        entry = {"title": name, "role": role, "licence": "CC0-1.0", "source": "a recipe", "files": []}
        conversion = {
            "reader": {"format": "user"},
            "units": {"energy": "eV"},
            "split": {"kind": "random", "val": 10, "test": 10},
        }
        return Dataset.model_validate(entry | conversion | changes)

    schedule = {"structures": 40, "epochs": 8, "batch_size": 4, "learning_rate": 1e-3}
    sampling = {"method": "random", "structures": 200}
    run = RunConfig.model_validate(
        {
            "title": title,
            "scale": scale,
            "upstream": UPSTREAMS,
            "tasks": list(TASKS),
            "embedding": {"extractor": "features", "upstream": sampling, "downstream": sampling},
            "backbone": "tiny",
            "pretrain": schedule,
            "inits": [*UPSTREAMS, "csi", "scratch"],
            "seeds": [0, 1, 2],
        }
    )
    datasets = {name: dataset(name, "upstream") for name in UPSTREAMS}
    datasets["drug"] = dataset("drug", "downstream", stand_in_for="Drugs & Co", source="https://example.org/drug")
    datasets["salt"] = dataset("salt", "downstream", licence="<b>bold</b>")
    tasks = {
        name: Task(title=f"title of {name}", dataset=dataset, target="forces", unit="meV/angstrom", finetune=schedule)
        for name, dataset in TASKS.items()
    }
    extractors = {"features": ExtractorSpec(implementation=extractor)}
    return Project(run, datasets, tasks, extractors, {"tiny": BackboneSpec(implementation="gemnet-oc", settings={})})


def judged(tables: Tables, task: str):
    return judge(tables, task, dataset=TASKS[task], unit="meV/angstrom")


@pytest.fixture(scope="module")
def tables() -> Tables:
    return make_tables()


def test_summary_over_seeds(tables):
    row = summarise(tables.finetuning).query("task == 'drug-forces' and init == 'middle'").iloc[0]
    assert (row["seeds"], row["mean"], row["low"], row["high"], row["structures"]) == (3, 17.0, 15.0, 20.0, 25)
    assert row["std"] == pytest.approx(math.sqrt((4 + 1 + 9) / 2))


def test_a_run_without_an_error_is_named(tables):
    runs = tables.finetuning.copy()
    runs.loc[(runs["task"] == "drug-forces") & (runs["init"] == "near") & (runs["seed"] == 0), "mae"] = math.nan
    with pytest.raises(AtomcsiError, match="drug-forces from near, seed 0: the test error is nan"):
        judged(dataclasses.replace(tables, finetuning=runs), "drug-forces")


def test_a_choice_that_wins(tables):
    outcome = judged(tables, "drug-forces")
    assert (outcome.selected, outcome.runner_up, outcome.rival.init) == ("near", "middle", "middle")
    assert outcome.margin == pytest.approx(1.0)
    assert outcome.won and outcome.clear and outcome.regret == 0
    assert outcome.random_regret == pytest.approx((12 + 17 + 33) / 3 / 12 - 1)
    assert outcome.gain == pytest.approx(0.5) and outcome.gain_clear
    assert badge(outcome) == ("good", "✓ best of 3, beyond the noise")
    assert verdict(outcome) == (
        "CSI chose near, which has the lowest mean error of 3 upstreams, and every seed of it is better than every"
        " seed of the next best, middle. Pretraining on it takes 50% off the error from scratch."
    )


def test_a_choice_that_misses_and_does_not_pay(tables):
    outcome = judged(tables, "salt-forces")
    assert outcome.won is False and outcome.clear is False
    assert outcome.regret == pytest.approx(0.2)
    assert outcome.gain == pytest.approx(1 - 24 / 22)
    assert badge(outcome) == ("even", "≈ not the best, within the noise")
    assert verdict(outcome) == (
        "CSI chose near, but middle was better: the choice's mean error is 20% higher, though the seeds overlap: the"
        " miss is within the noise. Pretraining on it did not pay: the choice's mean error is 9.1% higher than"
        " from scratch, which is within the noise."
    )


def test_the_overall_verdict_names_failures_and_the_rule_of_thumb(tables):
    assert overall([judged(tables, task) for task in TASKS]) == [
        "CSI chose the best upstream in 1 of 2 tasks, beyond the noise of the seeds in 1; it failed for salt-forces"
        " (error 20% above the best, middle).",
        "On average its choice's error is 10% above the best upstream's; a choice at random would be 59% above.",
        "Pretraining on the choice beat training from scratch in 1 of 2 tasks, beyond the noise of the seeds in 1.",
        "The choice is near for every task, so this run cannot tell CSI from a rule of thumb that always takes it.",
    ]


def test_ranges_that_touch_overlap():
    a, b, c = (Errors("x", 2.0, low, high, 0.5, 3) for low, high in ((1.0, 2.0), (2.0, 3.0), (2.1, 3.0)))
    assert a.apart_from(b) is False
    assert a.apart_from(c) is True and c.apart_from(a) is True
    assert a.apart_from(dataclasses.replace(c, seeds=1)) is None


def test_a_mix_is_shown_but_is_no_choice(tables, tmp_path):
    """CSI chose among single upstreams: a mix that beats them is no miss of it."""
    blend = tables.finetuning[tables.finetuning["init"] == "near"].assign(init="blend", mae=1.0)
    cards = [*tables.cards, *({**card, "dataset": "blend"} for card in tables.cards if card["dataset"] == "near")]
    more = dataclasses.replace(tables, finetuning=pd.concat([tables.finetuning, blend]), cards=cards)
    assert judged(more, "drug-forces") == judged(tables, "drug-forces")
    for name in ("finetuning", "learning-curves"):
        draw(name, more, tmp_path / f"{name}.svg")
        assert "blend" in set(pd.read_csv(tmp_path / f"{name}.csv")["init"])
    assert "other upstream or mix" in (tmp_path / "finetuning.svg").read_text()


def test_what_was_not_finetuned_is_not_judged(tables):
    runs = tables.finetuning[tables.finetuning["init"] != "near"]
    outcome = judged(dataclasses.replace(tables, finetuning=runs), "drug-forces")
    assert (outcome.won, outcome.regret, outcome.gain, badge(outcome)[0]) == (None, None, None, "none")
    assert "cannot be judged" in verdict(outcome)
    assert overall([outcome]) == ["1 task cannot be judged: too few upstreams were finetuned."]


def test_rank_correlations(tables):
    found = correlations(csi_against_mae(tables)).set_index("task")
    assert found.loc["drug-forces"].tolist() == pytest.approx([3, 1, 1])
    # Salt: ranks 1 2 3 against 2 1 3, so rho = 1 - 6 * 2 / 24 and 2 of 3 pairs agree.
    assert found.loc["salt-forces"].tolist() == pytest.approx([3, 0.5, 1 / 3])
    assert found.loc["all tasks"].tolist() == pytest.approx([6, 0.75, 4 / 6])


def test_tasks_of_different_size_are_pooled_by_pairs(tables):
    paired = csi_against_mae(tables)
    paired = paired[~((paired["task"] == "salt-forces") & (paired["upstream"] == "far"))]
    found = correlations(paired).set_index("task")
    assert found.loc["salt-forces"].tolist() == pytest.approx([2, -1, -1])
    # Centred ranks: -1 0 1 against themselves, and -.5 .5 against .5 -.5; 3 pairs agree and 1 does not.
    assert found.loc["all tasks"].tolist() == pytest.approx([5, 1.5 / 2.5, 2 / 4])
    assert correlations(paired[paired["upstream"] == "near"])["spearman"].isna().all()


def test_a_perfect_order_of_four_is_no_proof():
    assert least_p(4) == pytest.approx(1 / 12)
    assert least_p(1) == 1


def test_costs(tables):
    found = costs(tables, {"near"})
    assert (found["pretraining_seconds"], found["finetuning_seconds"]) == (540, 240)
    # Three upstreams and two downstream datasets, each embedded once; the choice costs that and its pretraining.
    assert (found["embedded"], found["embedding_seconds"], found["chosen"]) == (5, 15, 195)
    first = found["pretraining"][0]
    assert (first["budget"], first["seen"], first["gpu_hours"], first["kwh"]) == (480, 3 * 480, 4.5, 0.75)
    # Half a millionth of JMP's 240M.
    assert first["share"] == pytest.approx(2e-6)
    assert [(row["seen"], row["gpu_hours"], row["kwh"]) for row in found["finetuning"]] == [(12 * 320, 0, 6)] * 2
    assert costs(tables, {"elsewhere"})["chosen"] is None


def test_budgets_are_compared_with_that_of_jmp_at_full_scale_only(tables, tmp_path):
    column = "C / C<sub>JMP</sub>"
    full, demo = (write_page(tables, tmp_path, scale=scale) for scale in ("full", "demo"))
    assert column in full and column not in demo
    for page in (full, demo):
        assert "13.5" in page and "2.25" in page  # GPU-hours and kWh of all pretrainings


def test_versions_that_differ_are_said_to():
    found = merged_versions([{"torch": "2.1", "numpy": "2.0"}, {"torch": "2.2", "numpy": "2.0"}])
    assert found == {"torch": "2.1 and 2.2 (they differ)", "numpy": "2.0"}


def test_a_choice_that_costs_half_as_much_again(tables):
    runs = tables.finetuning.copy()
    runs.loc[runs["init"] == "near", "mae"], runs.loc[runs["init"] == "scratch", "mae"] = 150.0, 100.0
    outcome = judged(dataclasses.replace(tables, finetuning=runs), "drug-forces")
    assert "the choice's mean error is 50% higher than from scratch." in verdict(outcome)


def test_numbers_are_written_as_people_do():
    assert [number(value) for value in (1234.4, 150.4, 12.345, 0.012345, 0, None, math.nan)] == (
        ["1,234", "150", "12.3", "0.0123", "0", "–", "–"]
    )
    assert [percent(share) for share in (0.1234, 0.0123, -1.5, 0, None)] == ["12%", "1.2%", "-150%", "0%", "–"]
    assert [signed(value) for value in (0.8, -0.333, math.nan)] == ["+0.80", "−0.33", "–"]
    assert [duration(seconds) for seconds in (12, 120, 7200, 2e5)] == ["12.0 s", "2.00 min", "2.00 h", "2.31 d"]


@pytest.mark.parametrize("name", FIGURES)
def test_figures_repeat_and_keep_their_table(name, tables, tmp_path):
    draw(name, tables, tmp_path / "a.svg")
    draw(name, tables, tmp_path / "b.svg")
    svg = (tmp_path / "a.svg").read_bytes()
    assert svg == (tmp_path / "b.svg").read_bytes()
    assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert b"near" in svg and b"metadata" not in svg
    assert len(pd.read_csv(tmp_path / "a.csv")) > 0
    assert not list(tmp_path.glob(".*"))


def test_the_csi_matrix_needs_no_training(tables, tmp_path):
    pd.concat([tables.csi, tables.others]).to_csv(tmp_path / "csi.csv", index=False)
    tables.elements.to_csv(tmp_path / "elements.csv", index=False)
    paths = []
    for selection in tables.selections:
        paths.append(tmp_path / f"{selection['downstream']}.json")
        write_json(paths[-1], SELECTION_SCHEMA, selection)
    read = Tables.read(csi=tmp_path / "csi.csv", selections=paths, elements=tmp_path / "elements.csv")
    draw("csi-matrix", read, tmp_path / "a.svg")
    draw("csi-matrix", tables, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_unknown_figure(tables, tmp_path):
    with pytest.raises(KeyError, match="did you mean 'csi-matrix'"):
        draw("csi-matrx", tables, tmp_path / "a.svg")


class Page(HTMLParser):
    """Checks that elements nest, and collects what tests ask for."""

    VOID = frozenset({"meta", "br", "link", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.refs, self.loads, self.text = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag, attrs):
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            elif key == "xlink:href" and not value.startswith("data:"):
                self.refs.append(value.removeprefix("#"))
            elif key in ("src", "srcset", "data") or (key == "href" and tag != "a"):
                self.loads.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def write_page(tables: Tables, folder, more_trainings=None, **options: str) -> str:
    figures = {name: folder / f"{name}.svg" for name in FIGURES}
    for name, path in figures.items():
        draw(name, tables, path)
    provenance = {"versions": {"atomcsi": "0.1.0"}, "made with": "<script>alert(1)</script>"}
    write_report(
        folder / "r.html",
        project=make_project(**options),
        tables=tables,
        figures=figures,
        provenance=provenance,
        more_trainings=more_trainings,
    )
    return (folder / "r.html").read_text(encoding="utf-8")


def test_trainings_of_experiments_only_are_summed_up_beside_the_runs_own(tables, tmp_path):
    more = tables.pretraining.assign(seconds=3600.0, budget=1_000, gpu_hours=0.5, kwh=0.25)
    trainings = {"pretraining": more, "finetuning": tables.finetuning.iloc[:0]}
    page = Page(write_page(tables, tmp_path, more_trainings=trainings))
    words = " ".join(" ".join(page.text).split())
    runs = len(more)
    row = f"pretraining for experiments only {runs} {duration(3600.0 * runs)} {1000 * runs:,} {number(0.5 * runs)}"
    assert row in words and "finetuning for experiments only" not in words


def test_the_page_holds_everything_and_loads_nothing(tables, tmp_path):
    text = write_page(tables, tmp_path)
    page = Page(text)
    words = " ".join(" ".join(page.text).split())
    assert not page.loads and "@import" not in text and "url(http" not in text
    assert len(set(page.ids)) == len(page.ids)
    assert page.refs and set(page.refs) <= set(page.ids)
    for name, task in make_project().tasks.items():
        assert name in words and task.title in words
    for phrase in (
        "Demo with stand-ins.",
        "Drugs & Co",
        "Mind the extractor.",
        "CSI chose the best upstream in 1 of 2 tasks",
        "Pretraining on it did not pay",
        "embedding for CSI 5 15.0 s",
        "pretrains only what it chose: 3.25 min, embedding included, instead of 9.00 min of pretraining.",
        "In the demo, ani1x-mini",
        "2.00 times as much.",
        "CSI 10.0 (8.00 to 12.0); the runner-up, middle, has 20.0 (18.0 to 22.0), 2.00 times as much.",
        "with a probability of more than 99.9%.",
        "with a probability of 62%: a close call.",
        "drug energy distance middle 2.00",
        "70 of near; 30 of middle",
        "1 of 10 cases",
        "atomcsi: 0.1.0",
        "learning_rate: 0.001",
    ):
        assert phrase in words
    assert '<a href="https://example.org/drug">' in text
    contents = {part.split('"')[0] for part in text.split('<a href="#')[1:]}
    assert contents == {"answer", "csi", "finetuning", "pretraining", "costs", "sources"} & set(page.ids)
    assert "<b>bold</b>" not in text and "alert(1)</script>" not in text


def test_a_full_run_has_no_demo_banner_and_only_7net_a_warning(tables, tmp_path):
    text = write_page(tables, tmp_path, scale="full", extractor="composition", title="<i>x</i>")
    assert "Demo with stand-ins" not in text and "In the demo" not in text and "Mind the extractor" not in text
    assert "<i>x</i>" not in text


def test_gaps_and_single_seeds(tmp_path):
    tables = make_tables(seeds=1)
    runs, csi = tables.finetuning.copy(), tables.csi.copy()
    runs = runs[runs["init"] != "far"]
    csi.loc[csi["upstream"] == "far", ["value", "estimate"]] = math.nan
    csi.loc[0, ["value", "estimate"]] = 0.0
    csi[["corrected", "low", "high", "p_best"]] = math.nan
    runs = runs[runs["task"] == "drug-forces"]
    text = write_page(dataclasses.replace(tables, finetuning=runs, csi=csi, selections=selections(csi)), tmp_path)
    words = " ".join(" ".join(Page(text).text).split())
    assert "≈ best of 2, one seed only" in words and "not judged" in words and "nan" not in words.split("isNaN")[0]


def test_other_distances_and_mixes(tables):
    rows = {(row["downstream"], row["distance"]): row for row in other_distances(tables)}
    assert (rows["drug", "frechet"]["upstream"], rows["drug", "frechet"]["agrees"]) == ("near", True)
    assert (rows["drug", "energy"]["upstream"], rows["drug", "energy"]["agrees"]) == ("middle", False)
    (mix,) = best_mixes(tables)
    assert (mix["single"], mix["single_csi"], mix["equal_csi"], mix["csi"]) == ("near", 10.0, 60.0, 8.0)
    assert [(part["upstream"], part["weight"]) for part in mix["parts"]] == [("near", 0.7), ("middle", 0.3)]
    assert other_distances(dataclasses.replace(tables, others=pd.DataFrame())) == []
    assert best_mixes(dataclasses.replace(tables, mixtures=pd.DataFrame())) == []


@pytest.mark.parametrize(
    ("probability", "words"),
    [(1.0, "more than 99.9%"), (0.62, "62%"), (0.0004, "less than 0.1%"), (None, "–"), (math.nan, "–")],
)
def test_chance(probability, words):
    assert chance(probability) == words
