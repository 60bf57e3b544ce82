"""What of a project is checked before anything runs, beyond what its entries check of themselves."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING

from atomcsi.catalogue import ID_PATTERN, Catalogue
from atomcsi.errors import ConfigError, did_you_mean
from atomcsi.experiments import Start, starts
from atomcsi.mixes import MixSpec, structures_of
from atomcsi.registry import DISTANCES, READERS, load
from atomcsi.structure import ENERGY_UNITS
from atomcsi.training.settings import TrainSettings
from atomcsi.yaml_source import YamlSource

if TYPE_CHECKING:
    from atomcsi.project import Project

#: Figures of every run, of which experiments have the names that are left.
RUN_FIGURES = ("csi-matrix", "csi-elements", "csi-sample-size", "finetuning", "csi-against-mae", "learning-curves")


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


def reason_against(project: Project, name: str, source: YamlSource) -> ConfigError | None:
    """Returns why an experiment cannot be done by this run, whose upstreams are not all that it needs; None if it can.

    That is no mistake in its file, and matters to nobody who does not ask for it.
    """
    experiment = project.experiments[name]
    inits = list(experiment.inits)
    # Features of a model that the run itself pretrains: results/pretrain/<backbone>/<init>/...
    for comparison in experiment.comparisons:
        spec = project.extractors.get(comparison.extractor)
        parts = Path((spec and spec.options.get("checkpoint")) or "").parts
        inits += parts[3:4] if parts[:2] == ("results", "pretrain") else []
    needed = []
    for init in inits:
        mix = project.mixes.get(init)
        needed += [init] if mix is None else [*mix.datasets, *([mix.judge] if mix.kind == "ranked" else [])]
    for dataset in needed:
        known = dataset in project.datasets and project.datasets[dataset].role == "upstream"
        if known and dataset not in project.run.upstream:
            problem = f"this experiment needs {dataset}, which is not in the run's 'upstream'"
            return source.error((), f"{problem} (add it there, or do without the experiment)")
    return None


def check_experiment(project: Project, name: str, source: YamlSource) -> None:
    """Checks that what an experiment names exists, stand-ins put in its place, and that there is enough of it."""
    run, experiment = project.run, project.experiments[name]
    if not re.fullmatch(ID_PATTERN, name) or name in RUN_FIGURES:
        problem = (
            "is the name of a figure of the run" if name in RUN_FIGURES else "is no name of small letters, digits, -"
        )
        raise ConfigError(f"{source.path}: '{name}' {problem} (rename the file)")
    known = {
        "tasks": ("task", project.tasks),
        "inits": ("init", {*run.upstream, *project.mixes, *run.checkpoints, "scratch"}),
        "backbones": ("backbone", project.backbones),
        "sizes": ("dataset", project.datasets),
    }
    for key, (kind, entries) in known.items():
        for named in getattr(experiment, key):
            source.known(key, name=named, entries=entries, kind=kind)
    for position, comparison in enumerate(experiment.comparisons):
        for key, entries in (("extractor", project.extractors), ("distance", DISTANCES)):
            if (named := getattr(comparison, key)) is not None:
                source.known("comparisons", position, key, name=named, entries=entries, kind=key)
    for start in starts(experiment, run, project.mixes):
        position = experiment.inits.index(start.init)
        if start.mix is not None:
            _check_mix(project, start.mix, source, "inits", position)
            source.parse(TrainSettings, run.pretrain.model_dump() | start.mix.pretrain, ("inits", position))
        if start.structures:
            _check_sizes(project, start, source)


def _check_sizes(project: Project, start: Start, source: YamlSource) -> None:
    """Checks that datasets have as many structures as are asked of them, as far as the catalogue tells."""
    names = [start.init] if start.mix is None else start.mix.datasets or project.run.upstream
    known = {name: project.datasets[name].size for name in names}
    if (start.mix is not None and start.mix.kind == "nearest") or None in known.values():
        return
    sizes = {name: size.train for name, size in known.items()}
    counts = {start.init: start.structures}
    if start.mix is not None:
        counts = structures_of(start.mix, sizes, start.structures)
    for name, count in counts.items():
        if count > sizes[name]:
            problem = f"'{start.init}' would take {count:,} structures of {name}, which has {sizes[name]:,}"
            raise source.error(("budgets",), problem)


def check_run(project: Project, run_source: YamlSource) -> None:
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


def check_tasks(project: Project, task_source: YamlSource, root: Path) -> None:
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
