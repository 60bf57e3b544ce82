"""Experiments: the tables and figures of the paper, each as a file of ``config/experiments/``.

A file names the datasets, tasks, mixes, backbones and extractors of the paper, and its numbers of structures and
epochs. At demo scale a run says what stands in for them (``stand_ins``), and the numbers shrink as its own budget does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from atomcsi.catalogue import ID_PATTERN, Id, PositiveInt
from atomcsi.config import RunConfig, Sampling
from atomcsi.mixes import EqualMix, MixSpec, NamedMix
from atomcsi.sampling import Aggregation, Method
from atomcsi.yaml_source import Entry, YamlSource, laid_over

#: Budget of the paper's main runs (paper, section 1), which all others are written beside.
PAPER_STRUCTURES, PAPER_EPOCHS = 2_000_000, 5

Plot = Literal["csi", "effective-rank", "finetuning", "budget", "csi-against-error", "selectors"]


class Budget(Entry):
    """Structures and epochs of a pretraining; the run's own where they are left out."""

    structures: PositiveInt | None = None
    epochs: PositiveInt | None = None


class Comparison(Entry):
    """A way to measure CSI; what is left out is as in the run.

    Attributes:
        label: What it is called in the figure.
        extractor: What embeds.
        aggregation: What is compared: atoms (``flat``) or structures.
        distance: How.
        method: How structures of the upstreams are sampled.
        structures: How many structures of either dataset are sampled.
    """

    label: str
    extractor: Id | None = None
    aggregation: Aggregation | None = None
    distance: str | None = None
    method: Method | None = None
    structures: PositiveInt | None = None


class Experiment(Entry):
    """What a figure shows. Lists that are empty are the run's.

    Attributes:
        title: Title of the figure.
        question: What it answers, in a sentence.
        source: Where the paper has it.
        place: Where it stands in a report of all experiments; those without one come last.
        plot: How it is drawn, see :mod:`atomcsi.report.experiment_figures`.
        tasks: Finetuning tasks; CSI is measured to their datasets.
        inits: What is finetuned: upstreams, mixes, ``scratch``.
        budgets: Budgets that each init is pretrained with.
        backbones: What is trained.
        seeds: Seeds of the trainings.
        comparisons: Ways to measure CSI.
        sizes: Structures of upstreams, by which ``selectors`` takes the largest dataset, where a dataset of the
            catalogue is a part of what the name stands for. Stand-ins have sizes of their own.
        caption: What to know to read the figure.
    """

    title: str
    question: str
    source: str
    place: PositiveInt | None = None
    plot: Plot
    tasks: list[Id] = Field(default_factory=list)
    inits: list[Id] = Field(default_factory=list)
    budgets: list[Budget] = Field(default_factory=lambda: [Budget()], min_length=1)
    backbones: list[Id] = Field(default_factory=list)
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    comparisons: list[Comparison] = Field(default_factory=lambda: [Comparison(label="")], min_length=1)
    sizes: dict[Id, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    caption: str = ""

    @model_validator(mode="after")
    def _draws_what_it_has(self) -> Experiment:
        if bool(self.inits) != self.trains:
            raise ValueError(f"'inits' are for figures of trainings; this one is drawn as '{self.plot}'")
        if len({comparison.label for comparison in self.comparisons}) < len(self.comparisons):
            raise ValueError("two comparisons have one label")
        for key in ("tasks", "inits", "budgets", "backbones", "seeds"):
            values = getattr(self, key)
            if any(value in values[:position] for position, value in enumerate(values)):
                raise ValueError(f"'{key}' names something twice")
        if self.trains and self.measures and max(len(self.budgets), len(self.backbones)) > 1:
            raise ValueError("distances are compared with the errors of one backbone with one budget")
        if self.trains and self.measures and len({*self.inits} - {"scratch"}) < 2:
            raise ValueError("distances are compared with the errors of two upstreams at least")
        if self.plot == "csi-against-error" and len(self.comparisons) > 1:
            raise ValueError("errors are drawn against the distances of one comparison")
        if self.sizes and self.plot != "selectors":
            raise ValueError(f"'sizes' are for 'selectors'; this one is drawn as '{self.plot}'")
        return self

    @property
    def trains(self) -> bool:
        """Whether the figure shows errors of finetunings."""
        return self.plot in ("finetuning", "budget", "csi-against-error", "selectors")

    @property
    def measures(self) -> bool:
        """Whether the figure shows distances."""
        return self.plot in ("csi", "csi-against-error", "selectors")


@dataclass(frozen=True)
class Start:
    """What an experiment finetunes.

    Attributes:
        init: The upstream, mix, checkpoint or ``scratch``, as the experiment names it.
        name: Name of the results of its pretraining, the budget included.
        mix: The mix that is pretrained on; None for an upstream with the run's budget, and without pretraining.
        structures: N of the pretraining; 0 without.
        epochs: E of the pretraining; 0 without.
    """

    init: str
    name: str
    mix: MixSpec | None = None
    structures: int = 0
    epochs: int = 0


@dataclass(frozen=True)
class Cell:
    """One finetuning of an experiment, from a start whose name is that of its results for the task."""

    backbone: str
    start: Start
    task: str
    seed: int


@dataclass(frozen=True)
class Measurement:
    """The distances of an experiment's comparison to one dataset.

    Attributes:
        label: The comparison's label.
        comparison: Name of its results: the extractor, with the sampling where that is not the run's.
        aggregation: What is compared.
        distance: How.
        downstream: The dataset.
    """

    label: str
    comparison: str
    aggregation: str
    distance: str
    downstream: str


@dataclass(frozen=True)
class Sampled:
    """An extractor with the samples that it embeds.

    Attributes:
        extractor: The extractor.
        upstream: Sampling of upstream datasets.
        downstream: Sampling of downstream datasets.
    """

    extractor: str
    upstream: Sampling
    downstream: Sampling


class StandIns:
    """Says in a run's own names and numbers what an experiment says in the paper's.

    Args:
        run: The run; if it has no ``stand_ins`` nothing changes.
    """

    def __init__(self, run: RunConfig) -> None:
        self._names = run.stand_ins
        self._structures = run.pretrain.structures / PAPER_STRUCTURES if run.stand_ins else 1.0
        self._epochs = run.pretrain.epochs / PAPER_EPOCHS if run.stand_ins else 1.0

    def experiment(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the content of an experiment's file for the run; ``demo`` is laid over it if there are stand-ins."""
        own = dict(content)
        changes = own.pop("demo", {})
        if not self._names:
            return own
        own["budgets"] = [self._budget(budget) for budget in own.get("budgets", [{}])]
        own.pop("sizes", None)
        own = laid_over(own, changes)
        for key in ("tasks", "inits", "backbones"):
            if key in own:
                own[key] = self.named(own[key])
        if "comparisons" in own:
            own["comparisons"] = [self._comparison(entry) for entry in own["comparisons"]]
            own["comparisons"] = [entry for entry in own["comparisons"] if entry.get("extractor", "") is not None]
        return own

    def mix(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Returns an entry of ``mixes.yaml`` for the run."""
        if not self._names:
            return dict(content)
        own = dict(content)
        if "datasets" in own:
            own["datasets"] = self.named(own["datasets"])
        for key in ("dataset", "judge"):
            if key in own:
                own[key] = self._names.get(own[key], own[key])
        for key in ("weights", "sizes", "structures"):
            if isinstance(own.get(key), Mapping):
                own[key] = {self._names.get(name, name): value for name, value in own[key].items()}
        if isinstance(own.get("structures"), Mapping):
            own["structures"] = {name: self._shrunk(value) for name, value in own["structures"].items()}
        if "pretrain" in own:
            own["pretrain"] = own["pretrain"] | self._budget(own["pretrain"])
        return own

    def named(self, names: Iterable[str]) -> list[str]:
        """Returns what stands in for the names, each once, without those that nothing stands in for."""
        found = dict.fromkeys(self._names.get(name, name) for name in names)
        return [name for name in found if name is not None]

    def _comparison(self, entry: Any) -> Any:
        if isinstance(entry, Mapping) and "extractor" in entry:
            return {**entry, "extractor": self._names.get(entry["extractor"], entry["extractor"])}
        return entry

    def _budget(self, content: Mapping[str, Any]) -> dict[str, Any]:
        own = dict(content)
        if isinstance(own.get("structures"), int):
            own["structures"] = self._shrunk(own["structures"])
        if isinstance(own.get("epochs"), int):
            own["epochs"] = max(round(own["epochs"] * self._epochs), 1)
        return own

    def _shrunk(self, structures: int) -> int:
        # What is no number of structures stays what it is, to be refused.
        return max(round(structures * self._structures), 1) if structures > 0 else structures


def read_experiment(source: YamlSource, run: RunConfig) -> Experiment:
    """Reads an experiment for a run, whose tasks, backbone and seeds stand where it names none.

    Raises:
        ConfigError: Something is wrong; names file, line and field.
    """
    if not isinstance(source.content.get("demo", {}), Mapping):
        raise source.error(("demo",), "must hold 'key: value' entries")
    source.parse(Experiment, {key: value for key, value in source.content.items() if key != "demo"})
    content = StandIns(run).experiment(source.content)
    for key, names in content.items():
        if names == [] and source.content.get(key):
            raise source.error((key,), "the run's 'stand_ins' has null for all of them")
    experiment = source.parse(Experiment, content)
    defaults = {"tasks": run.tasks, "backbones": [run.backbone], "seeds": run.seeds}
    return experiment.model_copy(
        update={name: value for name, value in defaults.items() if not getattr(experiment, name)}
    )


def read_mixes(source: YamlSource, run: RunConfig) -> dict[str, MixSpec]:
    """Reads the mixes that experiments, and runs, can name.

    Raises:
        ConfigError: One is wrong; names file, line and field.
    """
    source.check_ids(ID_PATTERN)
    stand_ins = StandIns(run)
    return {
        name: source.parse(NamedMix, {"name": name, "mix": stand_ins.mix(entry)}).mix
        for name, entry in source.content.items()
    }


def starts(experiment: Experiment, run: RunConfig, mixes: Mapping[str, MixSpec]) -> list[Start]:
    """Returns what an experiment finetunes: every init with every budget.

    Args:
        experiment: The experiment.
        run: The run.
        mixes: Every mix that can be an init, by name.
    """
    found = []
    for init in experiment.inits:
        if init in ("scratch", *run.checkpoints):
            found.append(Start(init, init))
        else:
            found += [_start(init, mixes.get(init), budget, run) for budget in experiment.budgets]
    # Two budgets may come to the same, where one of them is the run's own.
    return list({start.name: start for start in found}.values())


def _start(init: str, mix: MixSpec | None, budget: Budget, run: RunConfig) -> Start:
    """An upstream with a budget of its own is a mix of one dataset; mixes that say how many structures keep these."""
    own = run.pretrain.model_dump() | (mix.pretrain if mix else {})
    sized = mix is not None and mix.kind in ("counted", "nearest")
    asked = own | budget.model_dump(exclude_none=True, exclude={"structures"} if sized else None)
    changes = {name: asked[name] for name in ("structures", "epochs") if asked[name] != own[name]}
    name = init + "".join(f"-{'n' if name == 'structures' else 'e'}{value}" for name, value in changes.items())
    if changes and mix is None:
        mix = EqualMix(kind="equal", datasets=[init], pretrain=changes)
    elif changes:
        mix = mix.model_copy(update={"pretrain": mix.pretrain | changes})
    structures = sum(mix.structures.values()) if mix and mix.kind == "counted" else asked["structures"]
    return Start(init, name, mix, structures, asked["epochs"])


def sampled(comparison: Comparison, run: RunConfig) -> tuple[str, Sampled]:
    """Returns the samples of a comparison, and the name of its results."""
    extractor = comparison.extractor or run.embedding.extractor
    size = {"structures": comparison.structures} if comparison.structures else {}
    method = {"method": comparison.method} if comparison.method else {}
    upstream = _changed(run.embedding.upstream, size | method)
    downstream = _changed(run.embedding.downstream, size)
    name = extractor + ("" if upstream.method == run.embedding.upstream.method else f"-{upstream.method}")
    if {upstream.structures, downstream.structures} != {
        run.embedding.upstream.structures,
        run.embedding.downstream.structures,
    }:
        name += f"-n{comparison.structures}"
    return name, Sampled(extractor, upstream, downstream)


def suffix(sampling: Sampling, default: Sampling) -> str:
    """What the name of results says of a sampling: nothing of the run's own."""
    return "" if sampling == default else f"-{sampling.method}-n{sampling.structures}"


def _changed(sampling: Sampling, changes: Mapping[str, Any]) -> Sampling:
    if "structures" in changes:
        # A block holds a structure at least.
        changes = {**changes, "blocks": min(sampling.blocks, changes["structures"] // 2 * 2)}
    return Sampling.model_validate(sampling.model_dump() | changes)
