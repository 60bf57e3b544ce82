"""The entries of the configuration: what can be written in ``config/``.

A run config (``config/demo.yaml``) names datasets, tasks, an extractor and a backbone; their entries are in the
catalogue beside it (:mod:`atomcsi.catalogue` for the datasets; ``tasks.yaml``, ``extractors.yaml``,
``backbones/*.yaml``). Extractors also come with the package. :mod:`atomcsi.project` puts them together. Every mistake
ends in one :class:`atomcsi.errors.ConfigError` that names file, line and field.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, model_validator

from atomcsi.catalogue import ID_PATTERN, Id, PositiveInt, SourceFile
from atomcsi.errors import did_you_mean
from atomcsi.mixes import MixSpec
from atomcsi.registry import BACKBONES, EXTRACTORS, keywords
from atomcsi.sampling import Aggregation, Method, Resample
from atomcsi.targets import MetricUnit, Target
from atomcsi.training.settings import TrainSettings
from atomcsi.yaml_source import Entry, YamlSource, laid_over

#: Extractors that can be used without a project, from any folder.
_EXTRACTORS = Path(__file__).with_name("extractors") / "catalogue.yaml"

T = TypeVar("T", bound=BaseModel)


def _check_implementation(registry: Mapping[str, str], name: str, given: Mapping[str, Any], kind: str) -> None:
    if name not in registry:
        raise ValueError(f"unknown implementation '{name}'{did_you_mean(name, registry)}")
    known = keywords(registry, name)
    for key in given:
        if key not in known:
            raise ValueError(f"unknown {kind} '{key}' of {name}{did_you_mean(key, known)}")


class Task(Target):
    """A finetuning target on a downstream dataset, and the schedule that it is finetuned with.

    With ``finetune.scalar_loss: cross-entropy`` the target is a class, 0 or 1.

    Attributes:
        title: What readers call it; the id if it has none.
        dataset: The downstream dataset.
        target: What is learned: ``forces``, ``energy``, or a property of the dataset.
        unit: Unit in which its errors are given.
        finetune: How it is learned.
    """

    title: str = ""
    dataset: Id
    target: str
    unit: MetricUnit
    finetune: TrainSettings

    @model_validator(mode="after")
    def _trains_its_target(self) -> Task:
        weights = {"energy_weight": self.finetune.energy_weight, "force_weight": self.finetune.force_weight}
        wanted = "force_weight" if self.target == "forces" else "energy_weight"
        if weights[wanted] == 0:
            raise ValueError(f"finetune.{wanted} is 0, but the target is {self.target}")
        if self.finetune.denoise_sigma is not None:
            raise ValueError("finetune.denoise_sigma is for pretraining: a task has labels")
        if self.is_property and self.finetune.force_weight != 0:
            raise ValueError(f"finetune.force_weight must be 0: {self.target} has no forces")
        if not self.is_property and (self.readout, self.reference) != ("sum", "elements"):
            raise ValueError(f"readout and reference must be sum and elements: {self.target} is no property")
        if self.finetune.scalar_loss == "cross-entropy" and not (self.is_property and self.reference == "none"):
            raise ValueError("finetune.scalar_loss cross-entropy is for classes, which have the reference none")
        return self


class ExtractorSpec(Entry):
    """A feature extractor with its options.

    Attributes:
        implementation: Its name in the registry.
        options: Keywords of its constructor.
        max_atoms: Atoms of a batch, at most.
        max_edges: Edges of the extractor's graphs in a batch, at most.
        chunk: Structures behind which an interrupted embedding resumes.
        source: Where the network's checkpoint is fetched from, if not from a file of this machine
            (``options.checkpoint``).
    """

    implementation: str
    source: SourceFile | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    max_atoms: PositiveInt = 512
    max_edges: PositiveInt = 10_000
    chunk: PositiveInt = 256

    @model_validator(mode="after")
    def _known(self) -> ExtractorSpec:
        _check_implementation(EXTRACTORS, self.implementation, self.options, "option")
        if self.source is None:
            return self
        if "checkpoint" not in keywords(EXTRACTORS, self.implementation):
            raise ValueError(f"source: {self.implementation} takes no checkpoint")
        if "checkpoint" in self.options:
            raise ValueError("takes either 'source' or 'options.checkpoint'")
        if self.source.path is not None or self.source.members or self.source.into:
            raise ValueError("source: takes 'name', 'url' and 'hash' only")
        return self


class BackboneSpec(Entry):
    """A backbone with its settings.

    Attributes:
        implementation: Its name in the registry.
        settings: Keywords of its constructor.
    """

    implementation: str
    settings: dict[str, Any]

    @model_validator(mode="after")
    def _known(self) -> BackboneSpec:
        _check_implementation(BACKBONES, self.implementation, self.settings, "setting")
        return self


class Sampling(Entry):
    """Which structures of a dataset's train split are embedded (paper, section 1), and how they are resampled.

    Attributes:
        method: How they are drawn, see :func:`atomcsi.sampling.draw`.
        structures: How many, at most.
        seed: Seed of the draw.
        min_atoms: Smaller structures are left out.
        max_atomic_number: Structures with heavier elements are left out.
        blocks: Random shares of the structures that error bars come from. More of them give steadier error bars; each
            stores a d x d matrix of moments, 41 MB at d = 3200.
        resample: What is dealt into blocks: structures, or whole classes.
    """

    method: Method
    structures: PositiveInt
    seed: Annotated[int, Field(ge=0)] = 0
    min_atoms: PositiveInt = 4
    max_atomic_number: PositiveInt = 89
    blocks: Annotated[int, Field(ge=2, multiple_of=2)] = 20
    resample: Resample = "structures"


class Embedding(Entry):
    """How datasets are embedded for CSI.

    Attributes:
        extractor: What embeds.
        aggregation: What is compared: atoms (``flat``) or structures.
        upstream: Which structures of upstream datasets.
        downstream: Which structures of downstream datasets.
    """

    extractor: Id
    aggregation: Aggregation = "flat"
    upstream: Sampling
    downstream: Sampling


class RunConfig(Entry):
    """A run: which upstreams are compared for which tasks, and with what.

    Attributes:
        title: Title of the report.
        scale: With ``demo``, experiments run on their stand-ins, and jobs take seconds, so that a cluster may run
            several in one of its own.
        upstream: Datasets that may be pretrained on.
        tasks: Finetuning tasks; CSI is measured to their datasets.
        embedding: What is embedded for CSI, and with what.
        distance: What selects.
        also_measure: Distances that are tabulated beside it.
        backbone: What is trained.
        pretrain: How, the budget included.
        mixes: Mixes of upstreams, by the names that ``inits`` give them.
        checkpoints: Published checkpoints to start from, in their layout, by the names that ``inits`` give them.
        inits: What every task is finetuned from: upstreams, ``mixes``, ``checkpoints``, ``csi`` (the upstream that CSI
            selects for the task), and ``scratch``.
        mirror: Folder or web address that raw files are taken from where it has them, see
            :func:`atomcsi.download.fetch_files`.
        experiments: Those of ``experiments/`` that the report shows, or ``all`` of them; a run that does not say so
            knows none.
        stand_ins: What stands in for what experiments name, or nothing (null), see :mod:`atomcsi.experiments`.
        seeds: Seeds of the trainings, each of which is done once a seed.
    """

    title: str
    scale: Literal["demo", "full"]
    upstream: Annotated[list[Id], Field(min_length=2)]
    tasks: Annotated[list[Id], Field(min_length=1)]
    embedding: Embedding
    distance: str = "frechet"
    also_measure: list[str] = Field(default_factory=list)
    backbone: Id
    pretrain: TrainSettings
    mixes: dict[Id, MixSpec] = Field(default_factory=dict)
    checkpoints: dict[Id, Path] = Field(default_factory=dict)
    inits: Annotated[list[Id], Field(min_length=1)]
    mirror: str | None = None
    experiments: Literal["all"] | list[Id] | None = None
    stand_ins: dict[Id, Id | None] = Field(default_factory=dict)
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


def extractor_catalogue(changes: Path | None = None) -> dict[str, ExtractorSpec]:
    """Returns the extractors that come with atomcsi by id, with a project's additions and changes.

    Args:
        changes: The project's file of entries, which need to hold only what is different; it may be missing.

    Raises:
        ConfigError: An entry is wrong; names file, line and field.
    """
    ours = YamlSource(_EXTRACTORS)
    if changes is None or not changes.exists():
        return ours.parse_all(ExtractorSpec, ID_PATTERN)
    source = YamlSource(changes)
    source.content = laid_over(ours.content, source.content)
    return source.parse_all(ExtractorSpec, ID_PATTERN)


def parse_entry(model: type[T], content: Any, origin: str) -> T:
    """Validates one entry that comes from elsewhere than the catalogue.

    Raises:
        ConfigError: It is wrong; names ``origin`` and the field.
    """
    return YamlSource(Path(origin), content).parse(model, content)
