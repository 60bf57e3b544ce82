"""A project: a run config with the catalogue beside it, checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from atomcsi.catalogue import ID_PATTERN, Catalogue, Dataset
from atomcsi.config import BackboneSpec, ExtractorSpec, RunConfig, Task, extractor_catalogue
from atomcsi.errors import ConfigError
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
from atomcsi.project_checks import check_experiment, check_run, check_tasks, reason_against
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
        experiments: Every experiment that the run has the upstreams for, by name, in the order of their places.
        unfit: What is missing for the other experiments, by name.
    """

    run: RunConfig
    datasets: Catalogue | Mapping[str, Dataset]
    tasks: Mapping[str, Task]
    extractors: Mapping[str, ExtractorSpec]
    backbones: Mapping[str, BackboneSpec]
    mixes: Mapping[str, MixSpec] = field(default_factory=dict)
    experiments: Mapping[str, Experiment] = field(default_factory=dict)
    unfit: Mapping[str, ConfigError] = field(default_factory=dict)

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

    @property
    def reported_datasets(self) -> list[str]:
        """Every dataset whose results the report shows: the run's, and those of its experiments' tasks."""
        shown = (dataset for name in self.reported for dataset in self.downstream_of(self.experiments[name]))
        return list(dict.fromkeys([*self.used_datasets, *shown]))

    def entries(self) -> dict[str, Any]:
        """Returns the run config and the entries that its report uses as plain data; see :meth:`from_entries`."""
        run, shown = self.run, [self.experiments[name] for name in self.reported]
        known = [comparison.extractor for found in shown for comparison in found.comparisons if comparison.extractor]
        used = {
            "datasets": self.reported_datasets,
            "tasks": [*run.tasks, *(task for found in shown for task in found.tasks)],
            "extractors": [run.embedding.extractor, *known],
            "backbones": [run.backbone, *(backbone for found in shown for backbone in found.backbones)],
            "mixes": [init for inits in (run.inits, *(found.inits for found in shown)) for init in inits],
            "experiments": self.reported,
        }
        used["mixes"] = [name for name in used["mixes"] if name in self.mixes]
        # Where files were taken from changes nothing in the results.
        return {"run": self.run.model_dump(mode="json", exclude={"mirror"})} | {
            kind: {name: getattr(self, kind)[name].model_dump(mode="json") for name in names}
            for kind, names in used.items()
        }

    @classmethod
    def from_entries(cls, entries: Mapping[str, Any]) -> Project:
        """Returns a project of the entries that :meth:`entries` gave."""
        models = {"datasets": Dataset, "tasks": Task, "extractors": ExtractorSpec, "backbones": BackboneSpec}
        models |= {"mixes": MixSpec, "experiments": Experiment}
        return cls(
            run=RunConfig.model_validate(entries["run"]),
            **{
                kind: {name: TypeAdapter(model).validate_python(entry) for name, entry in entries[kind].items()}
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
    experiments = dict(sorted(experiments.items(), key=lambda entry: (entry[1].place or math.inf, entry[0])))
    project = Project(run, datasets, tasks, extractors, backbones, mixes | run.mixes, experiments)
    check_run(project, run_source)
    unfit = {name: error for name, source in sources.items() if (error := reason_against(project, name, source))}
    for name in project.reported:
        if name in unfit:
            raise unfit[name]
    fit = {name: experiment for name, experiment in experiments.items() if name not in unfit}
    project = replace(project, experiments=fit, unfit=unfit)
    for name in fit:
        check_experiment(project, name, sources[name])
    check_tasks(project, YamlSource(catalogue / "tasks.yaml"), Path(root))
    return project


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
