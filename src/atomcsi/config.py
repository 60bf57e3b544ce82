"""The configuration: what can be written in ``config/``, checked before anything runs.

A run config (``config/demo.yaml``) names datasets, tasks, an extractor and a backbone; their entries are in the
catalogue beside it (``datasets.yaml``, ``tasks.yaml``, ``extractors.yaml``, ``backbones/*.yaml``). Every mistake
ends in one :class:`atomcsi.errors.ConfigError` that names file, line and field.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from atomcsi.errors import did_you_mean
from atomcsi.registry import BACKBONES, DISTANCES, EXTRACTORS, READERS, keywords, load
from atomcsi.yaml_source import YamlSource

#: Ids never hold two hyphens or an underscore, so ``__`` separates them in file names.
ID_PATTERN = "[a-z0-9]+(-[a-z0-9]+)*"
Id = Annotated[str, StringConstraints(pattern=f"^{ID_PATTERN}$")]
Hash = Annotated[str, StringConstraints(pattern=r"^(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})$")]
PositiveInt = Annotated[int, Field(gt=0)]
#: A number of structures, a share of all, or whatever the other splits leave.
Amount = Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)] | Literal["rest"]

#: How a metric's unit follows from eV and Angstrom.
METRIC_UNITS: Mapping[str, float] = {"eV/angstrom": 1.0, "meV/angstrom": 1e3, "eV": 1.0, "meV": 1e3}
SPLITS = ("train", "val", "test")

T = TypeVar("T", bound=BaseModel)


class Entry(BaseModel):
    """Base of all config models: unknown keys are errors that suggest the right one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            for key in values:
                if key not in known:
                    hint = did_you_mean(str(key), known)
                    raise PydanticCustomError("unknown_key", "unknown key{hint}", {"hint": hint, "key": str(key)})
        return values


def _check_implementation(registry: Mapping[str, str], name: str, given: Mapping[str, Any], kind: str) -> None:
    if name not in registry:
        raise ValueError(f"unknown implementation '{name}'{did_you_mean(name, registry)}")
    known = keywords(registry, name)
    for key in given:
        if key not in known:
            raise ValueError(f"unknown {kind} '{key}' of {name}{did_you_mean(key, known)}")


class SourceFile(Entry):
    """A file of a dataset: where it comes from and what it must contain."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    url: str | None = None
    path: Path | None = None
    hash: Hash
    unpack: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> SourceFile:
        if (self.url is None) == (self.path is None):
            raise ValueError("needs either 'url' or 'path'")
        return self


class Units(Entry):
    """Units of the raw data; forces are energy per length."""

    energy: Literal["eV", "hartree", "kcal/mol"]
    length: Literal["angstrom", "bohr"] = "angstrom"


class ReaderSpec(BaseModel):
    """Which reader reads a dataset; further keys are the reader's own options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    format: str

    @model_validator(mode="after")
    def _known_format(self) -> ReaderSpec:
        if self.format not in READERS:
            raise ValueError(f"unknown format '{self.format}'{did_you_mean(self.format, READERS)}")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the reader."""
        return dict(self.model_extra or {})


class SourceSplit(Entry):
    """The split that the publishers made: our split name -> the source's name of the part."""

    kind: Literal["source"]
    parts: dict[Literal["train", "val", "test"], str]


class RandomSplit(Entry):
    """A seeded random split: ``numpy.random.RandomState(seed).shuffle``, then train, val and test in turn.

    With ``by: group`` whole groups are taken until a split has at least its number of structures (ANI-1x).
    """

    kind: Literal["random"]
    by: Literal["structure", "group"] = "structure"
    train: Amount = "rest"
    val: Amount
    test: Amount = 0
    seed: int = 42

    @model_validator(mode="after")
    def _one_rest(self) -> RandomSplit:
        if [self.train, self.val, self.test].count("rest") != 1:
            raise ValueError("exactly one of train, val and test must be 'rest'")
        return self


class LinearReference(Entry):
    """A linear reference that others published, in place of a fit to the data: an ``.npz`` with ``coeff``, eV by Z.

    Such files hold leftovers of the fit for elements that it never saw. Energies of atoms above ``largest`` (eV,
    either sign) are taken for that; total energies of all electrons need a larger one than those of valence electrons.
    """

    file: str
    largest: Annotated[float, Field(gt=0)] = 100.0


class Conversion(Entry):
    """How raw files become structures: all that their LMDB files depend on."""

    licence: str
    source: str
    reader: ReaderSpec
    units: Units
    properties: dict[str, Literal["eV", "hartree", "kcal/mol", "1"]] = {}
    linear_reference: LinearReference | None = None
    split: Annotated[SourceSplit | RandomSplit, Field(discriminator="kind")]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that are not empty, in the order train, val, test."""
        if isinstance(self.split, SourceSplit):
            return tuple(name for name in SPLITS if name in self.split.parts)
        return tuple(name for name in SPLITS if getattr(self.split, name) != 0)


class Dataset(Conversion):
    """An upstream or downstream dataset."""

    title: str
    role: Literal["upstream", "downstream"]
    stand_in_for: str | None = None
    files: list[SourceFile]


class TrainSettings(Entry):
    """How a model is trained; one model for pretraining and finetuning."""

    structures: PositiveInt
    epochs: PositiveInt
    batch_size: PositiveInt
    learning_rate: Annotated[float, Field(gt=0)]
    energy_weight: Annotated[float, Field(ge=0)] = 1.0
    force_weight: Annotated[float, Field(ge=0)] = 10.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    warmup_factor: Annotated[float, Field(gt=0, le=1)] = 0.2
    final_factor: Annotated[float, Field(ge=0, le=1)] = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    clip_value: Annotated[float, Field(gt=0)] | None = None
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    val_structures: PositiveInt = 2000

    @model_validator(mode="after")
    def _consistent(self) -> TrainSettings:
        if self.clip_norm is not None and self.clip_value is not None:
            raise ValueError("takes either 'clip_norm' or 'clip_value'")
        if self.energy_weight == self.force_weight == 0:
            raise ValueError("energy_weight and force_weight are both 0: there is nothing to train on")
        return self

    @property
    def budget(self) -> int:
        """C = E x N: structures seen in the whole training (paper, section 1)."""
        return self.epochs * self.structures


class Task(Entry):
    """A finetuning target on a downstream dataset, and the schedule that it is finetuned with."""

    title: str = ""
    dataset: Id
    target: str
    unit: Literal["eV/angstrom", "meV/angstrom", "eV", "meV"]
    finetune: TrainSettings

    @model_validator(mode="after")
    def _trains_its_target(self) -> Task:
        weights = {"energy_weight": self.finetune.energy_weight, "force_weight": self.finetune.force_weight}
        wanted = "force_weight" if self.target == "forces" else "energy_weight"
        if weights[wanted] == 0:
            raise ValueError(f"finetune.{wanted} is 0, but the target is {self.target}")
        if self.target not in ("forces", "energy") and self.finetune.force_weight != 0:
            raise ValueError(f"finetune.force_weight must be 0: {self.target} has no forces")
        return self


class ExtractorSpec(Entry):
    """A feature extractor with its options.

    A batch is filled up to ``max_atoms`` atoms; an interrupted embedding resumes behind ``chunk`` structures.
    """

    implementation: str
    options: dict[str, Any] = {}
    max_atoms: PositiveInt = 512
    chunk: PositiveInt = 256

    @model_validator(mode="after")
    def _known(self) -> ExtractorSpec:
        _check_implementation(EXTRACTORS, self.implementation, self.options, "option")
        return self


class BackboneSpec(Entry):
    """A backbone with its settings."""

    implementation: str
    settings: dict[str, Any]

    @model_validator(mode="after")
    def _known(self) -> BackboneSpec:
        _check_implementation(BACKBONES, self.implementation, self.settings, "setting")
        return self


class Sampling(Entry):
    """Which structures of a dataset's train split are embedded (paper, section 1)."""

    method: Literal["balanced", "random"]
    structures: PositiveInt
    seed: Annotated[int, Field(ge=0)] = 0
    min_atoms: PositiveInt = 4
    max_atomic_number: PositiveInt = 89


class Embedding(Entry):
    """How datasets are embedded for CSI."""

    extractor: Id
    upstream: Sampling
    downstream: Sampling


class RunConfig(Entry):
    """A run: which upstreams are compared for which tasks, and with what."""

    title: str
    scale: Literal["demo", "full"]
    upstream: Annotated[list[Id], Field(min_length=2)]
    tasks: Annotated[list[Id], Field(min_length=1)]
    embedding: Embedding
    distance: str = "frechet"
    backbone: Id
    pretrain: TrainSettings
    inits: Annotated[list[Id], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


@dataclass(frozen=True)
class Project:
    """A checked run config with the catalogue entries it can refer to.

    Attributes:
        run: The run config.
        datasets: Every dataset of the catalogue by id.
        tasks: Every task of the catalogue by id.
        extractors: Every extractor of the catalogue by id.
        backbones: Every backbone of the catalogue by id.
    """

    run: RunConfig
    datasets: Mapping[str, Dataset]
    tasks: Mapping[str, Task]
    extractors: Mapping[str, ExtractorSpec]
    backbones: Mapping[str, BackboneSpec]

    @property
    def downstream(self) -> list[str]:
        """Downstream datasets of the run's tasks, each once, in the order of the tasks."""
        return list(dict.fromkeys(self.tasks[task].dataset for task in self.run.tasks))

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
        return {"run": self.run.model_dump(mode="json")} | {
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
    datasets = YamlSource(catalogue / "datasets.yaml").parse_all(Dataset, ID_PATTERN)
    tasks = YamlSource(catalogue / "tasks.yaml").parse_all(Task, ID_PATTERN)
    extractors = YamlSource(catalogue / "extractors.yaml").parse_all(ExtractorSpec, ID_PATTERN)
    backbones = {
        file.stem: source.parse(BackboneSpec, source.content)
        for file in sorted((catalogue / "backbones").glob("*.yaml"))
        for source in [YamlSource(file)]
    }
    project = Project(run, datasets, tasks, extractors, backbones)
    _check_references(project, run_source, catalogue, Path(root))
    return project


def parse_entry(model: type[T], content: Any, origin: str) -> T:
    """Validates one entry that comes from elsewhere than the catalogue.

    Raises:
        ConfigError: It is wrong; names ``origin`` and the field.
    """
    return YamlSource(Path(origin), content).parse(model, content)


def _check_references(project: Project, run_source: YamlSource, catalogue: Path, root: Path) -> None:
    """Checks what no single entry can know: that ids exist, roles fit and packaged files are there."""
    run = project.run
    for position, name in enumerate(run.upstream):
        run_source.known("upstream", position, name=name, entries=project.datasets, kind="dataset")
        if project.datasets[name].role != "upstream":
            raise run_source.error(("upstream", position), f"dataset '{name}' has the role 'downstream'")
    for position, name in enumerate(run.tasks):
        run_source.known("tasks", position, name=name, entries=project.tasks, kind="task")
    extractor = run.embedding.extractor
    run_source.known("embedding", "extractor", name=extractor, entries=project.extractors, kind="extractor")
    if checkpoint := project.extractors[extractor].options.get("checkpoint"):
        location = (extractor, "options", "checkpoint")
        if not (root / checkpoint).is_file():
            raise YamlSource(catalogue / "extractors.yaml").error(location, f"no such file: {checkpoint}")
    run_source.known("distance", name=run.distance, entries=DISTANCES, kind="distance")
    run_source.known("backbone", name=run.backbone, entries=project.backbones, kind="backbone")
    inits = {*run.upstream, "csi", "scratch"}
    for position, name in enumerate(run.inits):
        run_source.known("inits", position, name=name, entries=inits, kind="init")
    for key in ("upstream", "tasks", "inits", "seeds"):
        values = getattr(run, key)
        if len(set(values)) != len(values):
            raise run_source.error((key,), "names something twice")

    dataset_source = YamlSource(catalogue / "datasets.yaml")
    for name in project.used_datasets:
        if "train" not in project.datasets[name].splits or "val" not in project.datasets[name].splits:
            raise dataset_source.error((name, "split"), "needs a train and a val split")
        reader = project.datasets[name].reader
        implementation = load(READERS, reader.format)
        try:
            inspect.signature(implementation).bind(root, part=None, **reader.options)
        except TypeError as error:
            raise dataset_source.error((name, "reader"), f"{reader.format}: {error}") from None
        for key in project.datasets[name].properties:
            known = implementation.properties
            dataset_source.known(name, "properties", key, name=key, entries=known, kind="property")
        for position, file in enumerate(project.datasets[name].files):
            if file.path is not None and not (root / file.path).is_file():
                raise dataset_source.error((name, "files", position, "path"), f"no such file: {file.path}")

    task_source = YamlSource(catalogue / "tasks.yaml")
    for name in run.tasks:
        task = project.tasks[name]
        task_source.known(name, "dataset", name=task.dataset, entries=project.datasets, kind="dataset")
        dataset = project.datasets[task.dataset]
        if dataset.role != "downstream":
            raise task_source.error((name, "dataset"), f"dataset '{task.dataset}' has the role 'upstream'")
        if "test" not in dataset.splits:
            raise task_source.error((name, "dataset"), f"dataset '{task.dataset}' has no test split")
        targets = {"forces", "energy", *dataset.properties}
        task_source.known(name, "target", name=task.target, entries=targets, kind="target")
        if ("angstrom" in task.unit) != (task.target == "forces"):
            raise task_source.error((name, "unit"), f"'{task.unit}' is no unit of {task.target}")
