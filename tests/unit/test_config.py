# ruff: noqa: E501 - a table of mistakes reads best with one row each
import re
import shutil
from pathlib import Path

import pytest
import yaml

from atomcsi.config import TrainSettings, extractor_catalogue
from atomcsi.errors import ConfigError
from atomcsi.project import Project, load_project, missing_checkpoint, missing_init


@pytest.fixture
def catalogue(tmp_path, repository):
    """A copy of the repository's config that a test may spoil; packaged files stay where they are."""
    shutil.copytree(repository / "config", tmp_path / "config")

    def spoil(file: str, old: str, new: str) -> Path:
        path = tmp_path / "config" / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        return tmp_path / "config" / "demo.yaml"

    return spoil


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("demo.yaml", "pretrain:", "pretrian:", r"demo.yaml:\d+: pretrian: unknown key; did you mean 'pretrain'\?"),
        ("demo.yaml", "  batch_size", "  batch_sise", r"pretrain.batch_sise: unknown key; did you mean 'batch_size'"),
        ("demo.yaml", "[ani1x-mini,", "[ani1-mini,", r"upstream.0: unknown dataset 'ani1-mini'; did you mean 'ani1x-mini'"),
        ("demo.yaml", "[ani1x-mini,", "[qm9-mini,", r"upstream.0: dataset 'qm9-mini' has the role 'downstream'"),
        ("demo.yaml", "[rmd17-mini-forces,", "[rmd17-forces,", r"tasks.0: unknown task .* did you mean 'rmd17-mini-forces'"),
        ("demo.yaml", "sevennet-0", "sevenet-0", r"extractor: unknown extractor 'sevenet-0'; did you mean 'sevennet-0'"),
        ("demo.yaml", "distance: frechet", "distance: freched", r"distance: .* did you mean 'frechet'"),
        ("demo.yaml", "gemnet-oc-tiny", "gemnet-tiny", r"backbone: unknown backbone .* did you mean 'gemnet-oc-tiny'"),
        ("demo.yaml", "scratch]", "scratch, csi]", r"inits: names something twice"),
        ("demo.yaml", "epochs: 8", "epochs: many", r"pretrain.epochs: .*valid integer.*not 'many'"),
        ("demo.yaml", "epochs: 8", "epochs: 0", r"pretrain.epochs: .*greater than 0"),
        ("demo.yaml", "method: balanced", "method: balance", r"method: .*did you mean 'balanced'"),
        ("demo.yaml", "scale: demo", "scale: demo\nscale: full", r"demo.yaml:\d+: 'scale' is given twice"),
        ("demo.yaml", "seeds: [0,", "seeds: [-1,", r"seeds.0: .*greater than or equal to 0"),
        ("demo.yaml", "clip_norm: 1.0", "clip_norm: 1.0\n  clip_value: 1.0", r"pretrain: takes either 'clip_norm' or 'clip_value'"),
        ("demo.yaml", "distance: frechet", "distance: [frechet", r"demo.yaml: is no valid YAML"),
        ("datasets.yaml", "energy: hartree", "energy: hartee", r"datasets.yaml:\d+: .*units.energy: .*did you mean 'hartree'"),
        ("datasets.yaml", "units:", "unit:", r"ani1x-mini.unit: unknown key; did you mean 'units'"),
        ("datasets.yaml", "format: ani1x", "format: ani2x", r"reader: unknown format 'ani2x'; did you mean 'ani1x'"),
        ("datasets.yaml", "format: ani1x, file", "format: ani1x, fil", r"reader: ani1x: .*unexpected keyword argument 'fil'"),
        ("datasets.yaml", "path: resources/demo/ani1x", "path: resources/demo/ani9x", r"files.0.path: no such file: resources"),
        ("datasets.yaml", "hash: sha256:", "hash: sha1:", r"files.0.hash: "),
        ("datasets.yaml", "    - name: ani1x-mini.h5\n", "    - name: ../x.h5\n", r"files.0.name: "),
        ("datasets.yaml", "\nani1x-mini:", "\nANI1x_mini:", r"an id has lower-case letters"),
        ("tasks.yaml", "force_weight: 0\n", "force_weight: 1\n", r"qm9-mini-u0: finetune.force_weight must be 0: U0 has no forces"),
        ("tasks.yaml", "force_weight: 1\n", "force_weight: 0\n", r"finetune: energy_weight and force_weight are both 0"),
        ("datasets.yaml", "properties: {U0:", "properties: {U9:", r"qm9-mini.properties.U9: unknown property 'U9'; did you mean 'U'"),
        ("datasets.yaml", "val: 100, test: 100, seed: 42}\n", "val: 100, seed: 42}\n", r"dataset 'rmd17-mini' has no test split"),
        ("extractors.yaml", "options: {features:", "options: {featurs:", r"extractors.yaml:\d+: equiformer-v2-odac: unknown option 'featurs' of equiformer-v2; did you mean 'features'"),
        ("backbones/gemnet-oc-tiny.yaml", "cutoff:", "cutof:", r"unknown setting 'cutof' of gemnet-oc; did you mean 'cutoff'"),
        ("tasks.yaml", "target: U0", "target: U1", r"qm9-mini-u0.target: unknown target 'U1'"),
        ("tasks.yaml", "unit: meV\n", "unit: meV/angstrom\n", r"unit: 'meV/angstrom' is no unit of U0"),
        ("tasks.yaml", "unit: meV\n", "unit: 1/cm\n", r"qm9-mini-u0.unit: '1/cm' is no unit of U0"),
        ("tasks.yaml", "readout: max", "readout: maximum", r"matbench-phonons-mini-peak.readout: .*did you mean 'max'"),
        ("tasks.yaml", "  forces: gradient", "  forces: gradients", r"finetune.forces: .*did you mean 'gradient'"),
        ("tasks.yaml", "reference: none", "reference: mean", r"is-metal-fold0: .*cross-entropy is for classes"),
        ("tasks.yaml", "target: forces", "target: forces\n  readout: mean", r"readout and reference must be sum and elements"),
        ("extractors.yaml", "\ngemnet-oc:", "\nmine: {implementation: sevenet}\ngemnet-oc:", r"extractors.yaml:\d+: mine: .* did you mean 'sevennet'"),
        ("extractors.yaml", "\ngemnet-oc:", "\nsevennet-0: {max_edges: 0}\ngemnet-oc:", r"extractors.yaml:\d+: sevennet-0.max_edges: .*greater than 0"),
        ("extractors.yaml", "\ngemnet-oc:", "\nsevennet-1:\n  chunk: 3\ngemnet-oc:", r"extractors.yaml:\d+: sevennet-1.implementation: Field required"),
        ("extractors.yaml", "\ngemnet-oc:", "\nsevennet-0: 3\ngemnet-oc:", r"extractors.yaml:\d+: sevennet-0: must hold"),
        ("extractors.yaml", "equiformer-v2:\n", "equiformer-v2:\n  options: {checkpoint: x.pt}\n", r"extractors.yaml:\d+: equiformer-v2: takes either 'source' or 'options.checkpoint'"),
        ("extractors.yaml", "url: https", "urls: https", r"extractors.yaml:\d+: equiformer-v2.source.urls: unknown key; did you mean 'url'"),
        ("datasets.yaml", "  source: ", "  sauce: ", r"ani1x-mini.sauce: unknown key; did you mean 'source'"),
        ("extractors.yaml", "url: https", "unpack: true\n    url: https", r"equiformer-v2: source: takes 'name', 'url' and 'hash' only"),
        ("extractors.yaml", "\ngemnet-oc:", "\ncomposition: {source: {name: x, url: 'http://x'}}\ngemnet-oc:", r"composition: source: composition takes no checkpoint"),
        ("backbones/gemnet-oc-tiny.yaml", "implementation: gemnet-oc", "implementation: gemnet", r"did you mean 'gemnet-oc'"),
    ],
)  # fmt: skip
def test_mistakes_name_file_field_and_mend(catalogue, repository, file, old, new, message):
    path = catalogue(file, old, new)
    with pytest.raises(ConfigError, match=message) as caught:
        load_project(path=path, root=repository)
    assert "\n" not in str(caught.value)


def test_lines_are_those_of_the_mistake(catalogue, repository):
    path = catalogue("demo.yaml", "  batch_size: 8", "  batch_size: eight")
    line = path.read_text().splitlines().index("  batch_size: eight") + 1
    with pytest.raises(ConfigError, match=f"demo.yaml:{line}: pretrain.batch_size"):
        load_project(path=path, root=repository)


def test_a_missing_checkpoint_is_told_but_stops_nothing_before_embedding(catalogue, repository):
    path = catalogue("demo.yaml", "extractor: sevennet-0", "extractor: equiformer-v2")
    assert missing_checkpoint(load_project(path=path, root=repository), path, repository) is None  # it is fetched
    path = catalogue("demo.yaml", "extractor: equiformer-v2", "extractor: equiformer-v2-mptrj")
    problem = str(missing_checkpoint(load_project(path=path, root=repository), path, repository))
    assert re.search(r"extractors.yaml:\d+: equiformer-v2-mptrj.options.checkpoint: no such file: resources/", problem)
    demo = repository / "config" / "demo.yaml"
    assert missing_checkpoint(load_project(path=demo, root=repository), demo, repository) is None


def test_a_published_checkpoint_is_an_init(catalogue, repository):
    path = catalogue("demo.yaml", "inits: [", "checkpoints: {jmp-s: jmp-s.pt}\ninits: [jmp-s, ")
    project = load_project(path=path, root=repository)
    assert project.start("jmp-s", "qm9-mini-u0") == "jmp-s" and "jmp-s" not in project.pretrainings
    problem = str(missing_init(project, "jmp-s", path, repository))
    assert re.search(r"demo.yaml:\d+: checkpoints.jmp-s: no such file: jmp-s.pt \(put it there to finetune", problem)
    (path.parent / "jmp-s.pt").touch()
    assert missing_init(project, "jmp-s", path, path.parent) is None
    path = catalogue("demo.yaml", "{jmp-s: ", "{csi: ")
    with pytest.raises(ConfigError, match=r"checkpoints.csi: is the name of another init"):
        load_project(path=path, root=repository)


def test_extractors_come_with_the_package(tmp_path):
    known = extractor_catalogue()
    assert extractor_catalogue(tmp_path / "none.yaml") == known
    assert {"sevennet-0", "chgnet", "equiformer-v2", "gemnet-oc", "composition"} == known.keys()


def test_a_project_changes_and_adds_extractors(tmp_path):
    path = tmp_path / "extractors.yaml"
    path.write_text("equiformer-v2: {options: {checkpoint: x.pt}, chunk: 9}\nmine: {implementation: composition}\n")
    known, found = extractor_catalogue(), extractor_catalogue(path)
    assert found.keys() == known.keys() | {"mine"}
    equiformer, ours = found.pop("equiformer-v2"), known.pop("equiformer-v2")
    assert equiformer.options == {**ours.options, "checkpoint": "x.pt"}
    assert (equiformer.max_atoms, equiformer.chunk) == (ours.max_atoms, 9)
    assert {name: found[name] for name in known} == known


def test_missing_config(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_project(path=tmp_path / "demo.yaml")


def test_yaml_tags_are_refused(catalogue, repository, ledger):
    path = catalogue("demo.yaml", "distance: frechet", "distance: !!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigError, match="is no valid YAML"):
        load_project(path=path, root=repository)
    ledger.add("YAML tag that calls a program", "refused by name; nothing was run")


def test_every_task_fits_its_dataset(repository):
    """A run config may name any: each has a downstream dataset with that target, in that unit, and a test split."""
    path = repository / "config" / "demo.yaml"
    tasks = list(yaml.safe_load((repository / "config" / "tasks.yaml").read_text()))
    project = load_project(yaml.safe_load(path.read_text()) | {"tasks": tasks}, path=path, root=repository)
    assert set(project.tasks) == set(tasks)


def test_overrides_win_over_the_file(repository):
    path = repository / "config" / "demo.yaml"
    config = yaml.safe_load(path.read_text()) | {"seeds": [7]}
    assert load_project(config, path=path, root=repository).run.seeds == [7]


def test_entries_round_trip(repository):
    project = load_project(path=repository / "config" / "demo.yaml", root=repository)
    again = Project.from_entries(project.entries())
    assert again.run == project.run
    assert again.datasets == {name: project.datasets[name] for name in project.reported_datasets}


def test_the_papers_finetunings(repository):
    """Its table of section 1: batch, epochs, weights of forces, where forces come from, and readouts."""
    project = load_project(path=repository / "config" / "paper.yaml", root=repository)
    table = {
        name: (task.finetune.batch_size, task.finetune.epochs, task.finetune.force_weight, task.finetune.forces)
        if task.target == "forces"
        else (task.finetune.batch_size, task.finetune.epochs, task.readout, task.reference)
        for name, task in project.tasks.items()
        if name in project.run.tasks
    }
    assert table == {
        "rmd17-aspirin-forces": (4, 600, 10, "gradient"),
        "md22-ac-ala3-nhme-forces": (2, 100, 100, "direct"),
        "spice-solvated-amino-acids-forces": (1, 250, 100, "gradient"),
        "qm9-u0": (48, 200, "sum", "elements"),
        "qm9-gap": (48, 200, "sum", "mean"),
        "qmof-bandgap": (4, 40, "mean", "mean"),
        **{f"matbench-phonons-fold{fold}": (8, 120, "max", "mean") for fold in range(5)},
    }


def test_budget_is_epochs_times_structures():
    """The paper's main runs: 5 epochs of 2M structures are C = 10M (section 1)."""
    settings = TrainSettings(structures=2_000_000, epochs=5, batch_size=20, learning_rate=1e-4)
    assert settings.budget == 10_000_000
