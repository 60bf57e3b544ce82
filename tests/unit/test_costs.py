"""Costs by hand: rates of round numbers, and jobs of which one can say what they take."""

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
from pipeline import ROOT
from snakemake_interface_logger_plugins.common import LogEvent

from atomcsi.config import extractor_catalogue
from atomcsi.costs.announcement import Announcement
from atomcsi.costs.bill import Bill
from atomcsi.costs.estimate import UNKNOWN, Cost, Estimator, Step
from atomcsi.costs.rates import Gpu, Rates, Speed, Training, Work
from atomcsi.errors import ConfigError
from atomcsi.mixes import CountedMix
from atomcsi.project import load_project
from atomcsi.training.settings import TrainSettings

GPU = {"name": "Fast", "teraflops": 100, "share": 0.1, "operation": 1e-5}
WORK = {"seconds": {10: 0.1, 20: 0.4}, "gigaflop": {10: 10, 20: 20}, "operations": 1000}
RATES = Rates.model_validate(
    {
        "gpu": GPU,
        "start": {"fetch": 1},
        "start_of_others": 5,
        "convert": 0.001,
        "csi": {10: 2},
        "product": 1e-4,
        "spectrum": 1e-3,
        "step": 0.01,
        "gradient": 2,
        "evaluation": 0.5,
        "backbones": {"known": {"parameters": 1000, **WORK}},
        "extractors": {"sevennet-0": {"features": 10, **WORK}},
        "others": {scale: {"backbone": "known", "extractor": "sevennet-0"} for scale in ("demo", "full")},
    }
)
SETTINGS = TrainSettings(structures=100, epochs=4, batch_size=10, learning_rate=1e-3, val_interval=0.5)


@pytest.fixture(scope="module")
def project():
    return load_project(path=ROOT / "config" / "demo.yaml", root=ROOT)


def estimator(project, folder, device="cpu"):
    return Estimator(project, RATES, folder, device)


def step_of(rule, project, init="ani1x-mini", task="rmd17-mini-forces", **more):
    params = {
        "settings": project.pretrain_settings(init).model_dump_json(),
        "task": project.tasks[task].model_dump_json(),
    }
    return Step(rule, {"backbone": "gemnet-oc-tiny", "init": init, "task": task}, params, **more)


def test_rates_are_of_what_the_configs_name():
    rates = Rates.load(ROOT / "config" / "rates.yaml")
    assert set(rates.backbones) <= {path.stem for path in (ROOT / "config" / "backbones").glob("*.yaml")}
    assert set(rates.extractors) <= set(extractor_catalogue())
    for file in ("demo", "paper"):
        run = load_project(path=ROOT / "config" / f"{file}.yaml", root=ROOT).run
        assert run.backbone in rates.backbones and run.embedding.extractor in rates.extractors
    for others in rates.others.values():
        assert others.backbone in rates.backbones and others.extractor in rates.extractors


def test_a_mistake_in_the_rates_is_found(tmp_path):
    file = tmp_path / "rates.yaml"
    file.write_text("gpu: {name: Fast, teraflop: 100}\n")
    with pytest.raises(ConfigError, match=r"rates.yaml:1: gpu.teraflop: unknown key; did you mean 'teraflops'"):
        Rates.load(file)


def test_work_between_known_sizes_and_beyond():
    """An atom costs 0.01 s among 10 atoms and 0.02 s among 20, so 0.015 s among 15."""
    work = Work.model_validate(WORK)
    found = [work.on_core(atoms) for atoms in (5, 10, 15, 20, 40)]
    assert found == pytest.approx([0.05, 0.1, 0.225, 0.4, 0.8])


def test_a_gpu_is_limited_by_arithmetic_or_by_how_fast_operations_start():
    """10 GFLOP at 10 % of 100 TFLOP/s take 1 ms; 1000 operations of 10 us take 10 ms a batch."""
    work, gpu = Work.model_validate(WORK), Gpu.model_validate(GPU)
    assert work.on_gpu(10, 100, gpu) == pytest.approx(1e-3)
    assert work.on_gpu(10, 2, gpu) == pytest.approx(5e-3)


def test_structures_that_are_validated_and_tested_count_for_less():
    """400 to train on, eight validations of 20 and a test of 40 at half the cost, twice as much with gradients."""
    training = Training(SETTINGS, atoms=10, validation=20, test=40)
    assert training.steps(RATES) == 400 + 0.5 * (8 * 20 + 40)
    gradients = Training(SETTINGS.model_copy(update={"forces": "gradient"}), atoms=10, validation=20, test=40)
    assert gradients.steps(RATES) == 2 * training.steps(RATES)
    without = Training(SETTINGS.model_copy(update={"forces": "gradient", "force_weight": 0.0}), atoms=10, validation=0)
    assert without.steps(RATES) == 400


def card(folder, seconds, *, device="cpu", backbone=None, processes=1):
    settings = SETTINGS.model_dump(mode="json")
    content = {"settings": settings, "atoms": 1000, "structures": 100, "seconds": seconds, "parameters": 7}
    content |= {"costs": {"device": device, "processes": processes}, "backbone": backbone or {}, "datasets": [{}]}
    path = folder / "results" / "pretrain" / "known" / "near" / f"seed{seconds}" / "model.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))


def test_trainings_of_this_folder_come_before_the_rates(tmp_path):
    """One took 2 and one 4 times as long as expected: 400 structures and eight validations of 2000 at half the cost."""
    training = Training(SETTINGS, atoms=20, validation=0)
    expected = 400 * (0.4 + 0.001)
    assert Speed(RATES, tmp_path, "demo").seconds(training, "known", {}, "cpu") == (
        pytest.approx(expected), "by config/rates.yaml, on a core",
    )  # fmt: skip
    as_expected = (400 + 0.5 * 8 * 2000) * (0.1 + 0.001)
    card(tmp_path, 2 * as_expected)
    card(tmp_path, 4 * as_expected)
    # Neither a card of another backbone nor one of another version tells anything.
    card(tmp_path, 99 * as_expected, backbone={"implementation": "other"})
    (tmp_path / "results" / "pretrain" / "known" / "near" / "seed9").mkdir()
    (tmp_path / "results" / "pretrain" / "known" / "near" / "seed9" / "model.json").write_text('{"settings": 1}')
    speed = Speed(RATES, tmp_path, "demo")
    seconds, source = speed.seconds(training, "known", {}, "cpu")
    assert seconds == pytest.approx(3 * expected)
    assert source == "by 2 trainings in results/, on a core"
    assert (speed.model_bytes("known", {}), speed.model_bytes("known", {"implementation": "new"})) == (28, 4000)


def test_trainings_on_a_gpu_make_its_rate_a_measured_one(tmp_path):
    """Two processes for as long as one should take: half as fast as assumed."""
    training = Training(SETTINGS, atoms=10, validation=0)
    expected, source = Speed(RATES, tmp_path, "demo").seconds(training, "known", {}, "cuda")
    assert (expected, source) == (pytest.approx(400 * 1e-3), "assumed, not measured, on Fast")
    card(tmp_path, (400 + 0.5 * 8 * 2000) * 1e-3, device="NVIDIA Real", processes=2)
    seconds, source = Speed(RATES, tmp_path, "demo").seconds(training, "known", {}, "cuda")
    assert (seconds, source) == (pytest.approx(2 * expected), "by 1 training in results/, NVIDIA Real")


def test_an_unknown_backbone_is_taken_to_be_like_another(tmp_path):
    _, source = Speed(RATES, tmp_path, "full").seconds(Training(SETTINGS, 10, 0), "new", {}, "cpu")
    assert source == "by config/rates.yaml, on a core, those of known"


def test_trainings_by_hand(project, tmp_path):
    """ani1x-mini has 13 atoms a structure: 0.013 s an atom. 240 x 8 structures, 8 validations of 24, a batch of 8."""
    a_structure = 13 * 0.013 + 0.01 / 8
    found = estimator(project, tmp_path).cost(step_of("pretrain", project))
    assert found.structures == 1920
    assert found.seconds == pytest.approx(5 + (1920 + 0.5 * 8 * 24) * a_structure)
    # 30 x 6 structures of 21 atoms, 6 validations of 10 and 100 to test; a batch of 4.
    found = estimator(project, tmp_path).cost(step_of("finetune", project))
    assert found.structures == 180
    assert found.seconds == pytest.approx(5 + (180 + 0.5 * (6 * 10 + 100)) * (0.42 + 0.01 / 4))


def test_a_training_that_is_shared_takes_less_time_of_more_devices(project, tmp_path):
    one, two = (
        estimator(project, tmp_path, "cuda").cost(step_of("pretrain", project, processes=processes))
        for processes in (1, 2)
    )
    assert two.seconds - 5 == pytest.approx((one.seconds - 5) / 2)
    assert two.device_seconds == pytest.approx(one.device_seconds + 5)


def test_scoring_is_a_prediction_for_each_structure(project, tmp_path):
    """At half the cost of a step, of 13 atoms each."""
    train = project.datasets["ani1x-mini"].size.train
    wildcards = {"backbone": "gemnet-oc-tiny", "judge": "oc20-mini", "dataset": "ani1x-mini"}
    found = estimator(project, tmp_path).cost(Step("score", wildcards))
    assert found.structures == train
    assert found.seconds == pytest.approx(5 + (0.5 * train + 1) * (13 * 0.013 + 0.01 / 8))


def test_mixes_have_the_structures_of_their_parts(project, tmp_path):
    mix = CountedMix(kind="counted", structures={"ani1x-mini": 30, "oc22-mini": 10})
    run = project.run.model_copy(update={"inits": ["both"]})
    mixed = replace(project, run=run, mixes={"both": mix})
    found = estimator(mixed, tmp_path).cost(step_of("pretrain", mixed, init="both"))
    # (30 x 13 + 10 x 25) / 40 = 16 atoms; 24 structures of each dataset are validated on.
    assert found.structures == 8 * 40
    assert found.seconds == pytest.approx(5 + (320 + 0.5 * 8 * 48) * (16 * 0.016 + 0.01 / 8))


def test_data_and_distances_by_hand(project, tmp_path):
    here = estimator(project, tmp_path)
    found = here.cost(Step("convert", {"dataset": "qm9-mini"}))
    assert (found.structures, found.seconds) == (700, pytest.approx(5.7))
    sampling = project.run.embedding.upstream.model_dump(mode="json")
    params = {"name": "sevennet-0", "sampling": sampling}
    found = here.cost(Step("embed", {"dataset": "oc22-mini"}, params))
    # 200 structures of 25 atoms at 0.02 s; 10 features an atom, and 20 blocks of 10 x 10 moments.
    assert (found.structures, found.seconds) == (200, pytest.approx(5 + 200 * 0.5))
    assert found.bytes == 4 * (200 * 25 * 10 + 20 * 100)
    found = here.cost(Step("csi", {"comparison": "sevennet-0", "downstream": "qm9-mini"}))
    assert found.seconds == 5 + 4 * 2
    found = here.cost(
        Step("effective_rank", {"extractor": "sevennet-0", "dataset": "oc22-mini"}, {"sizes": [100, 200]})
    )
    # Five resamples: 300 structures of 25 atoms, by atoms and in three ways by structures, and eight spectra.
    assert found.seconds == pytest.approx(5 + 5 * (300 * 28 * 100 * 1e-4 + 8 * 1000 * 1e-3))
    package = tmp_path / "package"
    package.write_bytes(bytes(1000))
    found = here.cost(Step("fetch", {"raw": "ani1x"}, inputs=[package]))
    assert (found.seconds, found.bytes) == (1, 5e9)
    assert here.cost(Step("fetch", {"raw": "ani1x-mini"}, inputs=[package])).bytes == 2000
    assert here.cost(Step("anything")).seconds == 5
    assert not here.unsized


def test_a_dataset_of_unknown_size_is_said_to_be(project, tmp_path):
    here = estimator(project, tmp_path)
    found = here.cost(Step("convert", {"dataset": "spice-2-0-1"}))
    assert found.structures == UNKNOWN.train + UNKNOWN.val + UNKNOWN.test
    assert here.unsized == {"spice-2-0-1"}


def test_jobs_that_wait_for_the_choice_have_an_upper_bound(project, tmp_path):
    """Two upstreams that nothing else names, four tasks, three seeds."""
    run = project.run.model_copy(update={"inits": ["csi", "oc20-mini", "oc22-mini"]})
    found = estimator(replace(project, run=run), tmp_path).after_the_choice()
    assert [cost.rule for cost in found] == ["pretrain"] * 6 + ["finetune"] * 12
    assert estimator(project, tmp_path).after_the_choice() == []


COSTS = [
    *[Cost("finetune", 100.0, structures=10, bytes=1e6, network="model", source="by hand")] * 3,
    Cost("pretrain", 400.0, device="cuda", processes=2, structures=60_000_000, bytes=5e6),
    Cost("select", 1.0),
]


def test_a_bill_adds_up():
    bill = Bill.of(COSTS, chain=150, slots=2)
    assert [(item.name, item.jobs) for item in bill.items] == [("pretrain", 1), ("finetune", 3), ("others", 1)]
    for name in ("jobs", "structures", "core_hours", "gpu_hours", "bytes", "kwh"):
        assert getattr(bill.total, name) == pytest.approx(sum(getattr(item, name) for item in bill.items))
    assert bill.total.gpu_hours == pytest.approx(800 / 3600)
    # 300 W a GPU, 10 W a core.
    assert bill.total.kwh == pytest.approx((800 * 300 + 301 * 10) / 3.6e6)


@pytest.mark.parametrize(
    ("chain", "slots", "gpus", "seconds"), [(150, 2, None, 350.5), (600, 2, None, 600), (150, 2, 1, 800)]
)
def test_a_run_takes_as_long_as_what_holds_it_up_most(chain, slots, gpus, seconds):
    assert Bill.of(COSTS, chain=chain, slots=slots, gpus=gpus).seconds == seconds


def test_what_is_printed():
    waiting = Bill.of(COSTS[:3], chain=0).items
    full, demo = (
        "\n".join(Bill.of(COSTS, chain=0, slots=2, unsized={"far"}).lines(scale=scale, waiting=waiting))
        for scale in ("full", "demo")
    )
    assert "Estimated cost (full scale): about 5.84 min, 2 jobs at once; 0.222 GPU-hours; 0.0675 kWh" in full
    assert "rates by hand: model" in full and "guessed for want of `size` in the catalogue: far" in full
    assert "+ at most 3 finetune that only the choice of CSI will name: 0.0833 core-hours, 0 GPU-hours" in full
    # 60M of 240M.
    assert "C of these pretrainings over JMP's 240M: 0.250 together, 0.250 the largest" in full
    assert "JMP" not in demo


def record(event):
    found = logging.makeLogRecord({"msg": "Job stats:", "levelno": logging.INFO})
    found.event = event
    return found


def test_an_estimate_that_fails_is_one_warning(project, tmp_path, caplog):
    announcement = Announcement(SimpleNamespace(basedir=tmp_path), project)
    for event in (LogEvent.JOB_INFO, LogEvent.RUN_INFO, LogEvent.RUN_INFO):
        announcement.emit(record(event))
    assert [(found.levelname, found.message) for found in caplog.records] == [
        ("WARNING", f"The costs of this run cannot be estimated: {tmp_path}/config/rates.yaml: no such file")
    ]
