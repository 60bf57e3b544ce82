"""How fast the steps of a run go: ``config/rates.yaml``, and what trainings in this folder took."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from atomcsi.catalogue import PositiveInt
from atomcsi.errors import InputError
from atomcsi.files import read_json
from atomcsi.training.settings import TrainSettings
from atomcsi.yaml_source import Entry, YamlSource

#: What a process is taken to draw where nothing measures it: a GPU under load, and a core with its share of the rest.
ASSUMED_WATTS = {"cuda": 300.0, "cpu": 10.0}
_CARDS = ("results/pretrain/*/*/seed*/model.json", "results/finetune/*/*/seed*/model.json")

Positive = Annotated[float, Field(gt=0)]
#: A number by the atoms of a structure.
ByAtoms = Annotated[dict[PositiveInt, Positive], Field(min_length=1)]


class Gpu(Entry):
    """The GPU that estimates are for.

    Attributes:
        name: What it is called.
        teraflops: Its maker's rate of dense 16-bit products, TFLOP/s.
        share: The share of it that is assumed to be reached.
        operation: Seconds that the host is assumed to take to start an operation.
    """

    name: str
    teraflops: Positive
    share: Annotated[float, Field(gt=0, le=1)]
    operation: Positive


class Work(Entry):
    """What a network does for a structure: in training a step, in embedding the forward pass.

    Attributes:
        seconds: On one core, measured.
        gigaflop: Of matrix products, counted.
        operations: Operations that a step starts on a GPU, whatever its size; counted.
    """

    seconds: ByAtoms
    gigaflop: ByAtoms
    operations: PositiveInt

    def on_core(self, atoms: float) -> float:
        """Seconds of a structure on one core."""
        return _at(self.seconds, atoms)

    def on_gpu(self, atoms: float, batch: float, gpu: Gpu) -> float:
        """Seconds of a structure on a GPU, limited by its arithmetic or by how fast operations are started."""
        arithmetic = _at(self.gigaflop, atoms) / (1000 * gpu.teraflops * gpu.share)
        return max(arithmetic, self.operations * gpu.operation / batch)


class BackboneWork(Work):
    """A training step of a backbone with energies and direct forces, and how many ``parameters`` it has."""

    parameters: PositiveInt


class ExtractorWork(Work):
    """The features of a structure, ``features`` an atom."""

    features: PositiveInt


class Others(Entry):
    """Which ``backbone`` and ``extractor`` those without an entry are taken to be like."""

    backbone: str
    extractor: str


class Rates(Entry):
    """What ``config/rates.yaml`` holds.

    Attributes:
        gpu: What is assumed of GPUs.
        start: Seconds of one core until a process has imported what it needs, by rule; of tables, figures and pages
            also what it then does.
        start_of_others: The same for all other rules.
        convert: Seconds of one core a structure.
        csi: Seconds of a Fréchet distance with its error bar, by the number of features.
        product: Seconds of one core that a covariance takes, by rows and squared features.
        spectrum: Seconds of one core that a covariance's spectrum takes, by cubed features.
        step: Seconds of one core that a step takes besides the network: optimizer, moving average, records.
        gradient: What forces as gradients cost, in steps with direct ones.
        evaluation: What a validated or tested structure costs, in steps; with gradients ``gradient`` times as much.
        backbones: Work by the id of the backbone.
        extractors: Work by the id of the extractor.
        others: The backbone and the extractor that all others are taken to be like, by the run's scale.
    """

    gpu: Gpu
    start: dict[str, Positive]
    start_of_others: Positive
    convert: Positive
    csi: ByAtoms
    product: Positive
    spectrum: Positive
    step: Positive
    gradient: Positive
    evaluation: Positive
    backbones: dict[str, BackboneWork]
    extractors: dict[str, ExtractorWork]
    others: dict[Literal["demo", "full"], Others]

    def source(self, device: str, like: str | Literal[True]) -> str:
        """Says how rates of this file are known.

        Args:
            device: ``cpu`` or ``cuda``.
            like: Whose rates are taken, or True for what is in the file itself.
        """
        words = "by config/rates.yaml, on a core" if device == "cpu" else f"assumed, not measured, on {self.gpu.name}"
        return words if like is True else f"{words}, those of {like}"

    def seconds_of_csi(self, features: int) -> float:
        """Seconds of one core for one pair of datasets."""
        return _at(self.csi, features)

    @classmethod
    def load(cls, path: Path) -> Rates:
        """Reads the file.

        Raises:
            ConfigError: It is wrong; names file, line and field.
        """
        source = YamlSource(path)
        return source.parse(cls, source.content)


@dataclass(frozen=True)
class Training:
    """What the cost of a training depends on.

    Attributes:
        settings: Its settings; ``structures`` is what all datasets give.
        atoms: Of a structure, in the mean.
        validation: Structures of a validation.
        test: Structures that it is tested on.
    """

    settings: TrainSettings
    atoms: float
    validation: int
    test: int = 0

    def steps(self, rates: Rates) -> float:
        """Its work in structures of steps with direct forces, that of validating and testing included."""
        settings = self.settings
        validations = round(settings.epochs / settings.val_interval)
        evaluated = validations * self.validation + self.test
        return (settings.budget + rates.evaluation * evaluated) * self.gradients(rates)

    def gradients(self, rates: Rates) -> float:
        """What its kind of forces makes a step cost."""
        by_gradient = self.settings.force_weight > 0 and self.settings.forces == "gradient"
        return rates.gradient if by_gradient else 1.0


class Speed:
    """How fast trainings go: as those that were done in this folder where there are any, else as the rates say.

    Args:
        rates: The rates, which also say how time grows with the size of structures.
        folder: Folder of ``results``.
        scale: The run's scale.
    """

    def __init__(self, rates: Rates, folder: Path, scale: Literal["demo", "full"]) -> None:
        self._rates, self._like = rates, rates.others[scale].backbone
        self._bytes: dict[str, int] = {}
        self._factors, self._names = self._measured(folder)

    def seconds(self, training: Training, name: str, backbone: Mapping[str, Any], device: str) -> tuple[float, str]:
        """Returns the seconds of a training without its start, and how they are known.

        Args:
            training: The training.
            name: Id of the backbone.
            backbone: Its catalogue entry.
            device: ``cpu`` or ``cuda``.
        """
        expected = self._expected(training, name, device)
        factors = self._factors.get((_key(backbone), device))
        if not factors:
            return expected, self._rates.source(device, name in self._rates.backbones or self._like)
        where = f"{len(factors)} training{'s' if len(factors) > 1 else ''} in results/"
        return expected * statistics.median(factors), f"by {where}, {self._names[device]}"

    def model_bytes(self, name: str, backbone: Mapping[str, Any]) -> int:
        """Bytes of a model's weights."""
        return self._bytes.get(_key(backbone)) or 4 * self._work(name).parameters

    def _work(self, name: str) -> BackboneWork:
        return self._rates.backbones.get(name) or self._rates.backbones[self._like]

    def _expected(self, training: Training, name: str, device: str) -> float:
        work, rates, batch = self._work(name), self._rates, training.settings.batch_size
        if device == "cuda":
            a_structure = work.on_gpu(training.atoms, batch, rates.gpu)
        else:
            a_structure = work.on_core(training.atoms) + rates.step / batch
        return training.steps(rates) * a_structure

    def _measured(self, folder: Path) -> tuple[dict[tuple[str, str], list[float]], dict[str, str]]:
        """By backbone and device, how many times as long as expected trainings took; the names of the devices."""
        factors, names = defaultdict(list), {}
        for path in (path for pattern in _CARDS for path in sorted(folder.glob(pattern))):
            try:
                card = read_json(path, None)
                settings = TrainSettings.model_validate(card["settings"])
                validation = settings.val_structures * len(card["datasets"])
                training = Training(settings, card["atoms"] / card["structures"], validation)
                device = "cpu" if card["costs"]["device"] == "cpu" else "cuda"
                seconds = card["seconds"] * card["costs"]["processes"]
                key = _key(card["backbone"])
            except (InputError, ValidationError, KeyError, TypeError):
                continue  # another version's: no measurement
            names[device] = card["costs"]["device"] if device == "cuda" else "on a core"
            factors[key, device].append(seconds / self._expected(training, path.parts[-4], device))
            self._bytes[key] = 4 * card["parameters"]
        return factors, names


def _key(backbone: Mapping[str, Any]) -> str:
    return json.dumps(backbone, sort_keys=True)


def _at(points: Mapping[int, float], size: float) -> float:
    """Interpolates what an atom costs; beyond the sizes that are known it costs what it does at the nearest."""
    known = sorted(points)
    return float(size * np.interp(size, known, [points[each] / each for each in known]))
