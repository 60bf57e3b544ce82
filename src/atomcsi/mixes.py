"""Mixes of upstream datasets to pretrain on: how many structures of each, of a budget of N."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from atomcsi.catalogue import Id, PositiveInt
from atomcsi.errors import ConfigError
from atomcsi.sampling import apportion
from atomcsi.yaml_source import Entry

Share = Annotated[float, Field(gt=0)]
#: Parts of a dataset by the difficulty of its structures.
Part = Literal["easy", "middle", "hard", "mixed"]


class Mix(Entry):
    """What all mixes have; a mix may be of one dataset, which then is pretrained on with settings of its own.

    Attributes:
        pretrain: Settings that differ from the run's: other budgets, or other objectives.
    """

    pretrain: dict[str, Any] = Field(default_factory=dict)


class EqualMix(Mix):
    """As many structures of each dataset: the paper's "balanced" mix.

    Attributes:
        datasets: The datasets; all upstreams of the run if there are none.
    """

    kind: Literal["equal"]
    datasets: list[Id] = Field(default_factory=list)

    def counts(self, sizes: Mapping[str, int], structures: int) -> dict[str, int]:
        """Structures of each dataset, of ``structures`` in all; see :func:`structures_of`."""
        return _apportioned(dict.fromkeys(sizes, 1.0), structures)


class TemperatureMix(Mix):
    """Structures in proportion to the datasets' sizes to the power of 1 / temperature, as in JMP (T = 2).

    Attributes:
        temperature: 1 for shares of the sizes; the larger, the more equal.
        sizes: Sizes that shares go by, for datasets that are only a part of what they stand for; else how many
            structures the train splits have.
        datasets: The datasets; all upstreams of the run if there are none.
    """

    kind: Literal["tempered"]
    temperature: Annotated[float, Field(gt=0)] = 2.0
    sizes: dict[Id, Share] = Field(default_factory=dict)
    datasets: list[Id] = Field(default_factory=list)

    def counts(self, sizes: Mapping[str, int], structures: int) -> dict[str, int]:
        """Structures of each dataset, of ``structures`` in all; see :func:`structures_of`."""
        shares = {name: self.sizes.get(name, size) ** (1 / self.temperature) for name, size in sizes.items()}
        return _apportioned(shares, structures)


class WeightedMix(Mix):
    """Structures in proportion to given weights."""

    kind: Literal["weighted"]
    weights: Annotated[dict[Id, Share], Field(min_length=1)]

    @property
    def datasets(self) -> list[str]:
        """The datasets."""
        return list(self.weights)

    def counts(self, sizes: Mapping[str, int], structures: int) -> dict[str, int]:
        """Structures of each dataset, of ``structures`` in all; see :func:`structures_of`."""
        return _apportioned({name: self.weights[name] for name in sizes}, structures)


class CountedMix(Mix):
    """Given numbers of structures, whatever the budget: the paper adds 1M of OC22 to 2M of ANI-1x."""

    kind: Literal["counted"]
    structures: Annotated[dict[Id, PositiveInt], Field(min_length=1)]

    @property
    def datasets(self) -> list[str]:
        """The datasets."""
        return list(self.structures)

    def counts(self, sizes: Mapping[str, int], structures: int) -> dict[str, int]:
        """Structures of each dataset; see :func:`structures_of`."""
        return {name: self.structures[name] for name in sizes}


class NearestMix(Mix):
    """The mix of all upstreams that has the least CSI to a task's dataset: another mix for every downstream dataset."""

    kind: Literal["nearest"]
    datasets: list[Id] = Field(default_factory=list, max_length=0)

    @model_validator(mode="after")
    def _of_the_runs_size(self) -> NearestMix:
        if "structures" in self.pretrain:
            raise ValueError("a mix by CSI has the run's number of structures, by which its shares are rounded")
        return self

    def counts(self, sizes: Mapping[str, int], structures: int) -> dict[str, int]:
        """Not known without CSI.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("a mix by CSI needs what was found of mixes (give --mixtures)")


class RankedMix(Mix):
    """A part of one dataset by difficulty (paper, experiment 9), see :func:`atomcsi.difficulty.choose`.

    Attributes:
        dataset: The dataset.
        judge: The upstream whose pretraining, with seed 0 and the backbone that is trained, says what is difficult.
        part: Which structures.
    """

    kind: Literal["ranked"]
    dataset: Id
    judge: Id
    part: Part

    @property
    def datasets(self) -> list[str]:
        """The dataset."""
        return [self.dataset]

    def counts(self, sizes: Mapping[str, int], structures: int) -> dict[str, int]:
        """Structures of the dataset; see :func:`structures_of`."""
        return {self.dataset: structures}


MixSpec = Annotated[
    EqualMix | TemperatureMix | WeightedMix | CountedMix | NearestMix | RankedMix,
    Field(discriminator="kind"),
]


class NamedMix(Entry):
    """A mix with what its results are called."""

    name: Id
    mix: MixSpec


@dataclass(frozen=True)
class Pretraining:
    """What a model is pretrained on.

    Attributes:
        datasets: The upstreams that it may take structures from.
        mix: Id of the mix; None for a single upstream.
        spec: What the mix is.
        downstream: The dataset that a mix by CSI is near to; None for all other mixes.
    """

    datasets: list[str]
    mix: str | None = None
    spec: MixSpec | None = None
    downstream: str | None = None


def pretrainings(
    upstream: Sequence[str], mixes: Mapping[str, MixSpec], downstream: Sequence[str]
) -> dict[str, Pretraining]:
    """Returns every pretraining on upstreams and mixes of them, by the name of its results.

    Args:
        upstream: All upstreams of a run.
        mixes: Its mixes.
        downstream: Its downstream datasets.
    """
    found = {name: Pretraining([name]) for name in upstream}
    for name, mix in mixes.items():
        for target in downstream if mix.kind == "nearest" else [None]:
            found[name_of_mix(name, target)] = Pretraining(list(mix.datasets) or list(upstream), name, mix, target)
    return found


def name_of_mix(mix: str, downstream: str | None) -> str:
    """Name of the results of a mix, which is another one for every downstream dataset where it goes by CSI."""
    return mix if downstream is None else f"{mix}-{downstream}"


def structures_of(
    mix: MixSpec,
    sizes: Mapping[str, int],
    structures: int,
    found: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    """Says how many structures of each dataset a mix has.

    Args:
        mix: The mix.
        sizes: Structures of each dataset's train split, by id.
        structures: Size of the pretraining set.
        found: What :func:`atomcsi.mixtures.measure_mixes` found for the downstream dataset, for the mix of least CSI.

    Returns:
        Structures by dataset, without those that have none; in the order of ``sizes``.

    Raises:
        ConfigError: The mix needs ``found``, or that tells of other datasets.
    """
    counts = mix.counts(sizes, structures) if found is None else found["best"]["structures"]
    if unknown := set(counts) ^ set(sizes):
        raise ConfigError(f"the mix and the datasets that are given differ in {', '.join(sorted(unknown))}")
    return {name: counts[name] for name in sizes if counts[name]}


def _apportioned(shares: Mapping[str, float], structures: int) -> dict[str, int]:
    return dict(zip(shares, apportion(list(shares.values()), structures).tolist(), strict=True))
