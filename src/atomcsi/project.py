"""A project: a run config with the catalogue beside it, checked before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from atomcsi.catalogue import ID_PATTERN, Catalogue, Dataset
from atomcsi.config import BackboneSpec, ExtractorSpec, RunConfig, Task, extractor_catalogue
from atomcsi.errors import ConfigError, did_you_mean
from atomcsi.experiments import (
    Cell,
    Comparison,
    Experiment,
    Measurement,
    Sampled,
    Start,
    read_experiment,
    read_mixes,
    sampled,
    starts,
    suffix,
)
from atomcsi.mixes import MixSpec, Pretraining, name_of_mix, pretrainings
from atomcsi.registry import DISTANCES, READERS, load
from atomcsi.structure import ENERGY_UNITS
from atomcsi.training.settings import TrainSettings
from atomcsi.yaml_source import YamlSource


@dataclass(frozen=True)
class Project:
    """A checked run config with the catalogue entries it can refer to.

    Attributes:
        run: The run config.
        datasets: Every dataset of the catalogue by id.
        tasks: Every task of the catalogue by id.
        extractors: Every extractor of the catalogue by id.
        backbones: Every backbone of the catalogue by id.
        mixes: Every mix that can be an init, by name.
        experiments: Every experiment by name.
    """

    run: RunConfig
    datasets: Catalogue | Mapping[str, Dataset]
    tasks: Mapping[str, Task]
    extractors: Mapping[str, ExtractorSpec]
    backbones: Mapping[str, BackboneSpec]
    mixes: Mapping[str, MixSpec] = field(default_factory=dict)
    experiments: Mapping[str, Experiment] = field(default_factory=dict)

    @property
    def downstream(self) -> list[str]:
        """Downstream datasets of the run's tasks, each once, in the order of the tasks."""
        return list(dict.fromkeys(self.tasks[task].dataset for task in self.run.tasks))

    @cached_property
    def pretrainings(self) -> dict[str, Pretraining]:
        """Every pretraining that an init of the run or of an experiment can stand for, by the name of its results."""
        mixes = {name: mix for name, mix in self.mixes.items() if name in {*self.run.inits, *self.run.mixes}}
        for experiment in self.experiments.values():
            mixes |= {start.name: start.mix for start in starts(experiment, self.run, self.mixes) if start.mix}
        return pretrainings(self.run.upstream, mixes, self.all_downstream)

    def pretrain_settings(self, name: str) -> TrainSettings:
        """The settings of a pretraining, which mixes may change."""
        spec = self.pretrainings[name].spec
        return TrainSettings.model_validate(self.run.pretrain.model_dump() | (spec.pretrain if spec else {}))

    def start(self, init: str, task: str) -> str:
        """Name of the pretraining that an init stands for in a task, but for ``csi``, which is not known before."""
        mix = self.mixes.get(init)
        return name_of_mix(init, self.tasks[task].dataset if mix is not None and mix.kind == "nearest" else None)

    def downstream_of(self, experiment: Experiment) -> list[str]:
        """Downstream datasets of an experiment's tasks, each once."""
        return list(dict.fromkeys(self.tasks[task].dataset for task in experiment.tasks))

    @property
    def all_downstream(self) -> list[str]:
        """Downstream datasets of the run and of all experiments, each once."""
        known = (dataset for experiment in self.experiments.values() for dataset in self.downstream_of(experiment))
        return list(dict.fromkeys([*self.downstream, *known]))

    def cells(self, experiment: Experiment) -> list[Cell]:
        """Returns every finetuning of an experiment."""
        return [
            Cell(backbone, replace(start, name=self._name(start, task)), task, seed)
            for backbone in experiment.backbones
            for start in starts(experiment, self.run, self.mixes)
            for task in experiment.tasks
            for seed in experiment.seeds
        ]

    def _name(self, start: Start, task: str) -> str:
        by_csi = start.mix is not None and start.mix.kind == "nearest"
        return name_of_mix(start.name, self.tasks[task].dataset if by_csi else None)

    def measurements(self, experiment: Experiment) -> list[Measurement]:
        """Returns what an experiment measures: every comparison to every downstream dataset."""
        embedding = self.run.embedding
        return [
            Measurement(
                comparison.label,
                sampled(comparison, self.run)[0],
                comparison.aggregation or embedding.aggregation,
                comparison.distance or self.run.distance,
                downstream,
            )
            for comparison in experiment.comparisons
            for downstream in self.downstream_of(experiment)
        ]

    def name_of_embedding(self, sampled: Sampled, role: Literal["upstream", "downstream"]) -> str:
        """Name of the embeddings of a role: the extractor, with the sampling where that is not the run's."""
        return sampled.extractor + suffix(getattr(sampled, role), getattr(self.run.embedding, role))

    @cached_property
    def samples(self) -> dict[str, Sampled]:
        """Every extractor with the samples that it embeds, by the name of its results."""
        known = (comparison for experiment in self.experiments.values() for comparison in experiment.comparisons)
        return dict(sampled(comparison, self.run) for comparison in (Comparison(label=""), *known))

    @property
    def distances(self) -> list[str]:
        """Every distance that the run measures; the first one selects."""
        return [self.run.distance, *self.run.also_measure]

    @property
    def reported(self) -> list[str]:
        """Names of the experiments that the report shows."""
        return list(self.experiments) if self.run.experiments == "all" else self.run.experiments or []

    @property
    def used_datasets(self) -> list[str]:
        """Every dataset that the run needs, upstream first."""
        return [*self.run.upstream, *self.downstream]

    def entries(self) -> dict[str, Any]:
        """Returns the run config and the entries it uses as plain data; :meth:`from_entries` takes them back."""
        used = {
            "datasets": self.used_datasets,
            "tasks": self.run.tasks,
            "extractors": [self.run.embedding.extractor],
            "backbones": [self.run.backbone],
        }
        # Where files were taken from changes nothing in the results.
        return {"run": self.run.model_dump(mode="json", exclude={"mirror"})} | {
            kind: {name: getattr(self, kind)[name].model_dump(mode="json") for name in names}
            for kind, names in used.items()
        }

    @classmethod
    def from_entries(cls, entries: Mapping[str, Any]) -> Project:
        """Returns a project of the entries that :meth:`entries` gave."""
        models = {"datasets": Dataset, "tasks": Task, "extractors": ExtractorSpec, "backbones": BackboneSpec}
        return cls(
            run=RunConfig.model_validate(entries["run"]),
            **{
                kind: {name: model.model_validate(entry) for name, entry in entries[kind].items()}
                for kind, model in models.items()
            },
        )


def load_project(
    config: Mapping[str, Any] | None = None,
    *,
    path: Path | str = "config/demo.yaml",
    root: Path | str = ".",
) -> Project:
    """Loads and checks a run config and the catalogue beside it.

    Args:
        config: The run config as Snakemake merged it from files and ``--config``; None to read it from ``path``.
        path: The run config's file, for messages, and the folder of the catalogue.
        root: Folder that packaged files (``files: [{path: ...}]``) are relative to.

    Raises:
        ConfigError: Anything is wrong; names file, line, field and the likely meaning.
    """
    path = Path(path)
    run_source = YamlSource(path) if path.exists() or config is None else YamlSource(path, {})
    run = run_source.parse(RunConfig, run_source.content if config is None else dict(config))
    catalogue = path.parent
    datasets = Catalogue(catalogue)
    tasks = YamlSource(catalogue / "tasks.yaml").parse_all(Task, ID_PATTERN)
    extractors = extractor_catalogue(catalogue / "extractors.yaml")
    backbones = {
        file.stem: source.parse(BackboneSpec, source.content)
        for file in sorted((catalogue / "backbones").glob("*.yaml"))
        for source in [YamlSource(file)]
    }
    known = catalogue / "mixes.yaml"
    mixes = read_mixes(YamlSource(known), run) if known.exists() else {}
    sources = [] if run.experiments is None else map(YamlSource, sorted((catalogue / "experiments").glob("*.yaml")))
    sources = {source.path.stem: source for source in sources}
    experiments = {name: read_experiment(source, run) for name, source in sources.items()}
    project = Project(run, datasets, tasks, extractors, backbones, mixes | run.mixes, experiments)
    _check_run(project, run_source)
    for name, source in sources.items():
        _check_experiment(project, experiments[name], source)
    _check_tasks(project, YamlSource(catalogue / "tasks.yaml"), Path(root))
    return project


def _check_dataset(datasets: Catalogue, name: str, root: Path) -> None:
    """Checks what the entry of a dataset says of its reader and of its packaged files."""
    dataset = datasets[name]
    if not {"train", "val"} <= set(dataset.splits):
        raise datasets.error(name, ("split",), "needs a train and a val split")
    implementation = load(READERS, dataset.reader.format)
    try:
        inspect.signature(implementation).bind(root, part=None, **dataset.reader.options)
    except TypeError as error:
        raise datasets.error(name, ("reader",), f"{dataset.reader.format}: {error}") from None
    for key in dataset.properties:
        if key not in implementation.properties:
            hint = did_you_mean(key, implementation.properties)
            raise datasets.error(name, ("properties", key), f"unknown property '{key}'{hint}")
    for position, file in enumerate(dataset.files):
        if file.path is not None and not (root / file.path).is_file():
            raise datasets.error(name, ("files", position, "path"), f"no such file: {file.path}")


def _check_inits(project: Project, run_source: YamlSource) -> None:
    """Checks that mixes are made of upstreams, and that inits have names of their own."""
    run = project.run
    taken = {*run.upstream, "csi", "scratch", *(set(project.mixes) - set(run.mixes))}
    for key, names in (("mixes", run.mixes), ("checkpoints", run.checkpoints)):
        for name in names:
            if name in taken:
                raise run_source.error((key, name), "is the name of another init")
        taken |= set(names)
    for name, mix in run.mixes.items():
        _check_mix(project, mix, run_source, "mixes", name)
        for dataset in getattr(mix, "sizes", {}):
            run_source.known("mixes", name, name=dataset, entries=run.upstream, kind="upstream")
        run_source.parse(TrainSettings, run.pretrain.model_dump() | mix.pretrain, ("mixes", name, "pretrain"))


def _check_mix(project: Project, mix: MixSpec, source: YamlSource, *loc: str | int) -> None:
    """Checks that a mix, and its judge, are of upstreams of the run."""
    run = project.run
    for dataset in mix.datasets:
        source.known(*loc, name=dataset, entries=run.upstream, kind="upstream")
    if mix.kind != "ranked":
        return
    if mix.judge in {*project.mixes, *run.checkpoints, "csi", "scratch"}:
        problem = f"'{mix.judge}' cannot judge structures: a judge is the pretraining on one upstream"
        raise source.error((*loc, "judge"), problem)
    source.known(*loc, "judge", name=mix.judge, entries=run.upstream, kind="upstream")


def _check_experiment(project: Project, experiment: Experiment, source: YamlSource) -> None:
    """Checks that what an experiment names exists, stand-ins put in its place."""
    run = project.run
    known = {
        "tasks": ("task", project.tasks),
        "inits": ("init", {*run.upstream, *project.mixes, *run.checkpoints, "scratch"}),
        "backbones": ("backbone", project.backbones),
    }
    for key, (kind, entries) in known.items():
        for name in getattr(experiment, key):
            source.known(key, name=name, entries=entries, kind=kind)
    for position, comparison in enumerate(experiment.comparisons):
        for key, entries in (("extractor", project.extractors), ("distance", DISTANCES)):
            if (name := getattr(comparison, key)) is not None:
                source.known("comparisons", position, key, name=name, entries=entries, kind=key)
    for start in starts(experiment, run, project.mixes):
        if start.mix is not None:
            _check_mix(project, start.mix, source, "inits", experiment.inits.index(start.init))


def _check_run(project: Project, run_source: YamlSource) -> None:
    """Checks what no single entry of a run can know: that ids exist, and roles fit."""
    run = project.run
    for position, name in enumerate(run.upstream):
        run_source.known("upstream", position, name=name, entries=project.datasets, kind="dataset")
        if project.datasets[name].role != "upstream":
            raise run_source.error(("upstream", position), f"dataset '{name}' has the role 'downstream'")
    for position, name in enumerate(run.tasks):
        run_source.known("tasks", position, name=name, entries=project.tasks, kind="task")
    extractor = run.embedding.extractor
    run_source.known("embedding", "extractor", name=extractor, entries=project.extractors, kind="extractor")
    run_source.known("distance", name=run.distance, entries=DISTANCES, kind="distance")
    for position, name in enumerate(run.also_measure):
        run_source.known("also_measure", position, name=name, entries=DISTANCES, kind="distance")
    if run.distance in run.also_measure:
        raise run_source.error(("also_measure",), f"names '{run.distance}', which is the distance already")
    run_source.known("backbone", name=run.backbone, entries=project.backbones, kind="backbone")
    _check_inits(project, run_source)
    inits = {*run.upstream, *project.mixes, *run.checkpoints, "csi", "scratch"}
    for position, name in enumerate(run.inits):
        run_source.known("inits", position, name=name, entries=inits, kind="init")
        if name in project.mixes:
            _check_mix(project, project.mixes[name], run_source, "inits", position)
            if project.mixes[name].kind == "ranked" and not run.pretrain.learns_forces:
                problem = f"'{name}' needs a judge, which learns no forces to judge by with this `pretrain`"
                raise run_source.error(("inits", position), problem)
    for position, name in enumerate(project.reported):
        run_source.known("experiments", position, name=name, entries=project.experiments, kind="experiment")
    for key in ("upstream", "tasks", "also_measure", "inits", "seeds"):
        values = getattr(run, key)
        if len(set(values)) != len(values):
            raise run_source.error((key,), "names something twice")


def _check_tasks(project: Project, task_source: YamlSource, root: Path) -> None:
    """Checks the tasks of the run and of its experiments, and that the packaged files of their datasets are there."""
    run = project.run
    tasks = dict.fromkeys([*run.tasks, *(task for each in project.experiments.values() for task in each.tasks)])
    for name in tasks:
        dataset = project.tasks[name].dataset
        task_source.known(name, "dataset", name=dataset, entries=project.datasets, kind="dataset")
    for name in dict.fromkeys([*run.upstream, *(project.tasks[task].dataset for task in tasks)]):
        _check_dataset(project.datasets, name, root)
    for name in tasks:
        task = project.tasks[name]
        dataset = project.datasets[task.dataset]
        if dataset.role != "downstream":
            raise task_source.error((name, "dataset"), f"dataset '{task.dataset}' has the role 'upstream'")
        if "test" not in dataset.splits:
            raise task_source.error((name, "dataset"), f"dataset '{task.dataset}' has no test split")
        task_source.known(
            name, "target", name=task.target, entries={"forces", "energy", *dataset.properties}, kind="target"
        )
        kept = "eV/angstrom" if task.target == "forces" else dataset.properties.get(task.target, "eV")
        kept = "eV" if kept in ENERGY_UNITS else kept
        if task.unit not in (kept, f"m{kept}"):
            raise task_source.error((name, "unit"), f"'{task.unit}' is no unit of {task.target}")


def missing_checkpoint(
    project: Project, path: Path | str, root: Path | str = ".", extractor: str | None = None
) -> ConfigError | None:
    """Returns the error of an extractor whose checkpoint is not there, None if all is well.

    Only embedding needs the checkpoint, so a run config without it is good for everything before. What the run itself
    makes, below ``results``, need not be there yet.

    Args:
        project: The checked run.
        path: The run config's file.
        root: Folder that the checkpoint's path is relative to.
        extractor: The extractor; the run's by default.
    """
    extractor = extractor or project.run.embedding.extractor
    checkpoint = project.extractors[extractor].options.get("checkpoint")  # none that is fetched
    if checkpoint is None or Path(checkpoint).parts[0] == "results" or (Path(root) / checkpoint).is_file():
        return None
    source = YamlSource(Path(path).parent / "extractors.yaml")
    return source.error((extractor, "options", "checkpoint"), f"no such file: {checkpoint} (put it there to embed)")


def missing_init(project: Project, name: str, path: Path | str, root: Path | str = ".") -> ConfigError | None:
    """Returns the error of a run whose init is a published checkpoint that is not there, None if all is well.

    Args:
        project: The checked run.
        name: The init.
        path: The run config's file.
        root: Folder that the checkpoint's path is relative to.
    """
    checkpoint = project.run.checkpoints[name]
    if (Path(root) / checkpoint).is_file():
        return None
    return YamlSource(Path(path)).error(("checkpoints", name), f"no such file: {checkpoint} (put it there to finetune)")
