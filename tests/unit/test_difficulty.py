"""Parts of a dataset by difficulty: which structures, by whose judgement, and what is trained on."""

import json
import shutil
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from atomcsi.cli import main
from atomcsi.config import BackboneSpec, TrainSettings
from atomcsi.difficulty import choose, read_difficulties
from atomcsi.errors import AtomcsiError, ConfigError, InputError
from atomcsi.mixes import NamedMix
from atomcsi.models.batch import collate
from atomcsi.models.potential import Prediction
from atomcsi.project import load_project
from atomcsi.training import scoring
from atomcsi.training.model_files import TrainedModel
from atomcsi.training.normalisation import Normaliser
from atomcsi.training.processes import Execution
from atomcsi.training.train import pretrain
from atomcsi.training.training_data import TrainingData

ROOT = Path(__file__).parents[2]
TINY = BackboneSpec(**yaml.safe_load((ROOT / "tests/data/config/backbones/schnet-test.yaml").read_text()))
SETTINGS = TrainSettings(structures=6, epochs=1, batch_size=4, learning_rate=1e-3)
CPU = Execution(device="cpu")
#: Ranks of the structures 0 ... 9 are 9, 4, 0, 8, 5, 1, 6, 2, 7, 3; 7 and 9 are as difficult as each other.
DIFFICULTY = np.array([9.0, 4.0, 0.5, 8.0, 5.0, 1.0, 6.0, 2.0, 7.0, 2.0])


@pytest.mark.parametrize(
    ("part", "structures", "expected"),
    [
        ("easy", 3, [2, 5, 7]),
        ("easy", 4, [2, 5, 7, 9]),
        ("hard", 3, [0, 3, 8]),
        ("middle", 3, [1, 4, 9]),
        ("middle", 4, [1, 4, 6, 9]),
        ("mixed", 3, [0, 2, 1]),
        ("mixed", 4, [2, 5, 4, 0]),
        ("mixed", 6, [2, 5, 1, 4, 3, 0]),
    ],
)
def test_parts_by_rank(part, structures, expected):
    """Of ten structures; of two that are equal the first is the easier one."""
    assert choose(DIFFICULTY, structures, part).tolist() == sorted(expected)


@pytest.mark.parametrize("count", range(3, 12))
def test_a_mixed_part_has_no_structure_twice(count):
    for structures in range(1, count + 1):
        found = choose(np.arange(count)[::-1], structures, "mixed")
        assert len(np.unique(found)) == structures
    for part in ("easy", "middle", "hard", "mixed"):
        assert choose(np.zeros(count), count, part).tolist() == list(range(count))


class Answers(torch.nn.Module):
    """Predicts no forces at all."""

    def forward(self, batch):
        return Prediction(forces=torch.zeros_like(batch.positions))


def test_the_difficulty_is_the_mean_length_of_force_errors(toy_lmdb, tmp_path, monkeypatch):
    """Of a model that predicts zeros: the mean length of the forces; in chunks as in one pass, and after a break."""
    store = toy_lmdb(9)
    unit = torch.ones(1, dtype=torch.float64)
    card = {
        "datasets": [{"dataset": "judge"}],
        "heads": ["forces"],
        "graphs": [None],
        "settings": SETTINGS.model_dump(mode="json"),
        "backbone": {"implementation": "zeros"},
    }
    potential = Answers()
    potential.heads = {}
    model = TrainedModel(
        potential, Normaliser(torch.zeros(1, 119), 0 * unit, unit, unit), torch.device("cpu"),
        partial(collate, vacuum=5.0), card,
    )  # fmt: skip
    monkeypatch.setattr(scoring, "load_model", lambda folder, device: model)
    monkeypatch.setattr(scoring, "start_record", lambda folder: {"dataset": "judge", "seed": 0})
    scoring.score(tmp_path, store, tmp_path / "whole.h5")
    difficulty, provenance = read_difficulties(tmp_path / "whole.h5")
    expected = [np.linalg.norm(structure.forces, axis=1).mean() for structure in store]
    np.testing.assert_allclose(difficulty, expected, rtol=1e-6)
    assert provenance["fingerprint"] == store.metadata["fingerprint"]

    monkeypatch.setattr(scoring, "_CHUNK", 4)
    original, asked = scoring._difficulties, []

    def breaks(model, store, indices, *rest):
        asked.append(indices.tolist())
        if len(asked) == 2:
            raise AtomcsiError("the power is out")
        return original(model, store, indices, *rest)

    monkeypatch.setattr(scoring, "_difficulties", breaks)
    with pytest.raises(AtomcsiError, match="power"):
        scoring.score(tmp_path, store, tmp_path / "parts.h5")
    assert not (tmp_path / "parts.h5").exists()
    scoring.score(tmp_path, store, tmp_path / "parts.h5")
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7], [8]]
    np.testing.assert_array_equal(read_difficulties(tmp_path / "parts.h5")[0], difficulty)
    assert not (tmp_path / "parts.h5.parts").exists()


def ranked(part="hard", judge="judge", **pretrain_settings) -> NamedMix:
    entry = {"kind": "ranked", "dataset": "a", "judge": judge, "part": part, "pretrain": pretrain_settings}
    return NamedMix.model_validate({"name": "a-part", "mix": entry})


@pytest.fixture
def judged(toy_lmdb, tmp_path):
    """A dataset and its difficulties for a model that was pretrained on another one."""
    others, val, store = toy_lmdb(10, "judge", 5), toy_lmdb(6, "val", 6), toy_lmdb(20, "a", 7)
    pretrain([others], [val], tmp_path / "judge", backbone=TINY, settings=SETTINGS, seed=0, execution=CPU)
    scoring.score(tmp_path / "judge", store, tmp_path / "a.h5", device="cpu")
    return store, val, tmp_path / "a.h5"


def test_training_on_a_part(judged, tmp_path, monkeypatch, capsys):
    """The structures that are ranked so, no others, whatever the seed; the card and its page say which."""
    store, val, path = judged
    drawn, original = [], TrainingData.draw.__func__

    def remembers(cls, *arguments, **options):
        data = original(cls, *arguments, **options)
        drawn.append(data.train.indices.tolist())
        return data

    monkeypatch.setattr(TrainingData, "draw", classmethod(remembers))
    for seed in (0, 1):
        folder = tmp_path / f"seed{seed}"
        pretrain(
            [store], [val], folder, backbone=TINY, settings=SETTINGS, seed=seed, mix=ranked(), difficulty=path,
            execution=CPU,
        )  # fmt: skip
    difficulty = read_difficulties(path)[0]
    hardest = np.argsort(difficulty)[-6:]
    assert drawn == [sorted(hardest.tolist())] * 2
    card = json.loads((folder / "model.json").read_text())
    chosen = card["datasets"][0]["chosen"]
    assert (card["dataset"], card["structures"]) == ("a-part", 6)
    assert (chosen["part"], chosen["ranked"]) == ("hard", 20)
    assert (chosen["judge"]["dataset"], chosen["judge"]["seed"]) == ("judge", 0)
    assert chosen["difficulty"]["least"] == difficulty[hardest].min()
    assert "The 6 structures of a are the hard ones of 20, by the mean" in (folder / "README.md").read_text()
    main(["info", str(path)])
    assert json.loads(capsys.readouterr().out)["judge"] == chosen["judge"]


def test_what_cannot_be_chosen(judged, toy_lmdb, tmp_path):
    store, val, path = judged
    train = partial(
        pretrain, val=[val], folder=tmp_path / "out", backbone=TINY, settings=SETTINGS, seed=0, execution=CPU
    )
    with pytest.raises(ConfigError, match=r"needs the difficulties of its structures \(give --difficulty"):
        train([store], mix=ranked())
    with pytest.raises(InputError, match="has the judgement of 'judge', not of 'another'"):
        train([store], mix=ranked(judge="another"), difficulty=path)
    larger = SETTINGS.model_copy(update={"structures": 21})
    with pytest.raises(InputError, match="has 20 structures where 21 are to be trained on"):
        train([store], mix=ranked(), difficulty=path, settings=larger)
    with pytest.raises(InputError, match="tells of other structures than those of"):
        train([toy_lmdb(20, "a", 8)], mix=ranked(), difficulty=path)
    with pytest.raises(InputError, match="cannot be read"):
        train([store], mix=ranked(), difficulty=store.path)
    with h5py.File(path, "a") as file:
        file.attrs["schema"] = "atomcsi.embeddings/2"
    with pytest.raises(InputError, match=r"is no file of difficulties of atomcsi \(see the rule `score`"):
        train([store], mix=ranked(), difficulty=path)
    assert not (tmp_path / "out").exists()


def test_a_judge_that_knows_no_forces(toy_lmdb, tmp_path):
    store = toy_lmdb(8, "a")
    for changes, message in (
        ({"force_weight": 0}, "tells of a model without forces to judge by"),
        ({"denoise_sigma": 0.1, "energy_weight": 0}, "tells of a model that was pretrained to denoise"),
    ):
        settings = SETTINGS.model_copy(update=changes)
        pretrain([store], [store], tmp_path / "judge", backbone=TINY, settings=settings, seed=0, execution=CPU)
        with pytest.raises(InputError, match=message):
            scoring.score(tmp_path / "judge", store, tmp_path / "a.h5", device="cpu")
        assert not (tmp_path / "a.h5").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"part": "middel"}, r"demo.yaml:\d+: mixes.some.part: .*did you mean 'middle'"),
        ({"dataset": "ani1-mini"}, r"mixes.some: unknown upstream 'ani1-mini'; did you mean 'ani1x-mini'"),
        ({"judge": "oc2-mini"}, r"demo.yaml:\d+: mixes.some.judge: unknown upstream 'oc2-mini'; did you mean 'oc2"),
        ({"judge": "csi"}, r"mixes.some.judge: 'csi' cannot judge structures: a judge is the pretraining on one"),
        ({"judge": "nearest"}, r"mixes.some.judge: 'nearest' cannot judge structures"),
        ({"judge": "some"}, r"mixes.some.judge: 'some' cannot judge structures"),
        ({"judgement": "x"}, r"mixes.some.judgement: unknown key; did you mean 'judge'"),
        ({"pretrain": {"structure": 3}}, r"mixes.some.pretrain.structure: unknown key; did you mean 'structures'"),
    ],
)
def test_mistakes_in_ranked_mixes(tmp_path, repository, changes, message):
    shutil.copytree(repository / "config", tmp_path / "config")
    path = tmp_path / "config" / "demo.yaml"
    entry = {"kind": "ranked", "dataset": "ani1x-mini", "judge": "oc20-mini", "part": "easy", **changes}
    path.write_text(path.read_text() + yaml.safe_dump({"mixes": {"some": entry}}))
    with pytest.raises(ConfigError, match=message):
        load_project(path=path, root=repository)


def test_a_judge_whose_pretraining_has_no_forces(repository):
    content = yaml.safe_load((repository / "config" / "demo.yaml").read_text())
    content["inits"] = ["aligned-hard"]
    content["pretrain"]["force_weight"] = 0
    with pytest.raises(ConfigError, match=r"inits\.0: 'aligned-hard' needs a judge, which learns no forces"):
        load_project(content, path=repository / "config" / "demo.yaml", root=repository)


def test_the_paper_s_parts_on_the_stand_ins(repository):
    """500 000 of the paper's 2M are 60 of the demo's 240."""
    path = repository / "config" / "demo.yaml"
    content = yaml.safe_load(path.read_text()) | {"experiments": "all"}
    project = load_project(content, path=path, root=repository)
    found = project.pretrainings["aligned-middle-n60"]
    assert (found.spec.dataset, found.spec.judge, found.spec.part) == ("ani1x-mini", "oc20-mini", "middle")
    assert project.pretrain_settings("aligned-middle-n60").structures == 60
    budgets = {(cell.start.structures, cell.start.epochs) for cell in project.cells(project.experiments["difficulty"])}
    assert budgets == {(60, 8)}
