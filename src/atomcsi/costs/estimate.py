"""What the jobs of a run cost, each by itself: from what Snakemake knows of a job before it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from atomcsi.catalogue import Size
from atomcsi.config import Sampling, Task
from atomcsi.costs.rates import ExtractorWork, Rates, Speed, Training
from atomcsi.effective_rank import POOLED, RESAMPLES
from atomcsi.errors import InputError
from atomcsi.mixes import structures_of
from atomcsi.project import Project
from atomcsi.structure_lmdb import StructureLMDB
from atomcsi.training.settings import TrainSettings

#: What a dataset is taken to be that neither is here nor has a size in the catalogue.
UNKNOWN = Size(train=10_000, val=1_000, test=1_000, atoms=30)
#: Bytes of a structure and of an atom in an LMDB file, of a feature and of a moment (``make bench``).
_STRUCTURE, _ATOM, _NUMBER = 200, 25, 4
#: Bytes of a table, a figure or a page.
_SMALL = 100_000


@dataclass(frozen=True)
class Step:
    """A job that is to run.

    Attributes:
        rule: Name of its rule.
        wildcards: Its wildcards.
        params: Its params by name.
        inputs: Its input files; those that are not there yet too.
        processes: Devices that share it.
    """

    rule: str
    wildcards: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[Path] = ()
    processes: int = 1


@dataclass(frozen=True)
class Cost:
    """What a job costs.

    Attributes:
        rule: Name of its rule.
        seconds: From its start to its end.
        device: Whose time that is: ``cpu`` or ``cuda``.
        processes: How many of them.
        structures: Structures seen: converted, embedded, scored, or trained on with every repetition.
        bytes: Of its outputs.
        network: The backbone or extractor that the seconds are for; empty if there is none.
        source: How its rate is known.
    """

    rule: str
    seconds: float
    device: str = "cpu"
    processes: int = 1
    structures: int = 0
    bytes: float = _SMALL
    network: str = ""
    source: str = ""

    @property
    def device_seconds(self) -> float:
        """Seconds of all its devices together."""
        return self.seconds * self.processes


class Estimator:
    """Estimates the costs of a run's jobs.

    Args:
        project: The run and its catalogue.
        rates: How fast steps go.
        folder: Folder of ``results``.
        device: What trainings and embeddings run on: ``cpu`` or ``cuda``.
    """

    def __init__(self, project: Project, rates: Rates, folder: Path, device: str) -> None:
        self._project, self._rates, self._folder, self._device = project, rates, folder, device
        self._speed = Speed(rates, folder, project.run.scale)
        self._like = rates.others[project.run.scale].extractor
        self._size = cache(self._read_size)
        #: Datasets of which :data:`UNKNOWN` was taken.
        self.unsized: set[str] = set()

    def cost(self, step: Step) -> Cost:
        """Returns what a job costs; a rule that is not known costs the start of a process."""
        estimate = _ESTIMATES.get(step.rule)
        if estimate is None:
            return Cost(step.rule, self._start(step))
        return estimate(self, step)

    def fetch(self, step: Step) -> Cost:
        """What a fetch keeps; how long a download takes is the network's."""
        datasets = self._project.datasets
        sizes = [datasets[name].size for name, raw in datasets.raw.items() if raw == step.wildcards["raw"]]
        known = max((size.bytes for size in sizes if size is not None and size.bytes), default=0)
        packaged = sum(path.stat().st_size for path in step.inputs if path.exists())
        return Cost(step.rule, self._start(step), bytes=known or 2 * packaged)

    def convert(self, step: Step) -> Cost:
        """What a conversion takes, by structures, and writes, by atoms."""
        size = self._size(step.wildcards["dataset"])
        structures = size.train + size.val + size.test
        return Cost(
            step.rule,
            self._start(step) + self._rates.convert * structures,
            structures=structures,
            bytes=structures * (_STRUCTURE + _ATOM * size.atoms),
        )

    def embed(self, step: Step) -> Cost:
        """What an embedding takes, by atoms, and writes: features and moments."""
        sampling = Sampling.model_validate(step.params["sampling"])
        name, size = step.params["name"], self._size(step.wildcards["dataset"])
        work = self._extractor(name)
        structures = sampling.structures if sampling.method == "balanced" else min(sampling.structures, size.train)
        if self._device == "cuda":
            # A batch is filled with atoms.
            batch = max(self._project.extractors[name].max_atoms / size.atoms, 1)
            a_structure = work.on_gpu(size.atoms, batch, self._rates.gpu)
        else:
            a_structure = work.on_core(size.atoms)
        return Cost(
            step.rule,
            self._start(step) + structures * a_structure,
            device=self._device,
            structures=structures,
            bytes=_NUMBER * work.features * (structures * size.atoms + sampling.blocks * work.features),
            network=name,
            source=self._rates.source(self._device, name in self._rates.extractors or self._like),
        )

    def distance(self, step: Step) -> Cost:
        """What the distances of all upstreams to a dataset take, or their mixes."""
        work = self._extractor(self._project.samples[step.wildcards["comparison"]].extractor)
        pairs = len(self._project.run.upstream)
        return Cost(step.rule, self._start(step) + pairs * self._rates.seconds_of_csi(work.features))

    def effective_rank(self, step: Step) -> Cost:
        """What covariances of resamples and their spectra take, of atoms and of structures."""
        features, size = self._extractor(step.wildcards["extractor"]).features, self._size(step.wildcards["dataset"])
        rows = sum(step.params["sizes"]) * (size.atoms + len(POOLED))
        spectra = len(step.params["sizes"]) * (1 + len(POOLED))
        resample = rows * features**2 * self._rates.product + spectra * features**3 * self._rates.spectrum
        return Cost(step.rule, self._start(step) + RESAMPLES * resample)

    def pretrain(self, step: Step) -> Cost:
        """What a pretraining takes, by structures seen and their atoms."""
        settings = TrainSettings.model_validate_json(step.params["settings"])
        return self._train(step, self._pretraining(step.wildcards["init"], settings))

    def finetune(self, step: Step) -> Cost:
        """What a finetuning and its test take."""
        task = Task.model_validate_json(step.params["task"])
        size = self._size(task.dataset)
        validation = min(task.finetune.val_structures, size.val)
        return self._train(step, Training(task.finetune, size.atoms, validation, size.test))

    def score(self, step: Step) -> Cost:
        """What judging a dataset takes: a prediction for each of its structures."""
        size = self._size(step.wildcards["dataset"])
        settings = self._project.run.pretrain.model_copy(update={"structures": 1, "epochs": 1})
        cost = self._train(step, Training(settings, size.atoms, validation=0, test=size.train))
        return replace(cost, structures=size.train, bytes=2 * _NUMBER * size.train + _SMALL)

    def after_the_choice(self) -> list[Cost]:
        """What trainings cost at most that only CSI's choice will name: it may take the dearest upstreams."""
        run, project = self._project.run, self._project
        candidates = [name for name in run.upstream if name not in run.inits]
        if "csi" not in run.inits or not candidates:
            return []
        wildcards = {"backbone": run.backbone}
        pretrainings = [
            self.cost(Step("pretrain", {**wildcards, "init": name}, {"settings": settings.model_dump_json()}))
            for name in candidates
            for settings in [project.pretrain_settings(name)]
        ]
        dearest = sorted(pretrainings, key=lambda cost: -cost.seconds)[: len(project.downstream)]
        finetunings = [
            self.cost(Step("finetune", wildcards, {"task": project.tasks[name].model_dump_json()}))
            for name in run.tasks
        ]
        return [cost for cost in (*dearest, *finetunings) for _ in run.seeds]

    def _pretraining(self, init: str, settings: TrainSettings) -> Training:
        pretraining = self._project.pretrainings[init]
        sizes = {name: self._size(name) for name in pretraining.datasets}
        counts = {name: settings.structures / len(sizes) for name in sizes}
        # The mix of least CSI is not known yet.
        if pretraining.spec is not None and pretraining.downstream is None:
            trains = {name: size.train for name, size in sizes.items()}
            counts = structures_of(pretraining.spec, trains, settings.structures)
        total = sum(counts.values())
        return Training(
            settings.model_copy(update={"structures": round(total)}),
            atoms=sum(count * sizes[name].atoms for name, count in counts.items()) / total,
            validation=sum(min(settings.val_structures, sizes[name].val) for name in counts),
        )

    def _train(self, step: Step, training: Training) -> Cost:
        name = step.wildcards["backbone"]
        entry = self._project.backbones[name].model_dump(mode="json")
        seconds, source = self._speed.seconds(training, name, entry, self._device)
        return Cost(
            step.rule,
            self._start(step) + seconds / step.processes,
            device=self._device,
            processes=step.processes,
            structures=training.settings.budget,
            bytes=self._speed.model_bytes(name, entry) + _SMALL,
            network=name,
            source=source,
        )

    def _start(self, step: Step) -> float:
        return self._rates.start.get(step.rule, self._rates.start_of_others)

    def _extractor(self, name: str) -> ExtractorWork:
        return self._rates.extractors.get(name) or self._rates.extractors[self._like]

    def _read_size(self, dataset: str) -> Size:
        """The size of a dataset: counted where it is converted, else as the catalogue has it."""
        found, atoms = {}, 0.0
        try:
            for split in self._project.datasets[dataset].splits:
                store = StructureLMDB(self._folder / "results" / "lmdb" / dataset / f"{split}.lmdb")
                found[split] = len(store)
                atoms = float(store.natoms.mean()) if split == "train" else atoms
            return Size(**found, atoms=atoms)
        except InputError:
            size = self._project.datasets[dataset].size
            if size is None:
                self.unsized.add(dataset)
            return size or UNKNOWN


_ESTIMATES: Mapping[str, Callable[[Estimator, Step], Cost]] = {
    "fetch": Estimator.fetch,
    "convert": Estimator.convert,
    "convert_without_test": Estimator.convert,
    "embed": Estimator.embed,
    "csi": Estimator.distance,
    "mix": Estimator.distance,
    "effective_rank": Estimator.effective_rank,
    "pretrain": Estimator.pretrain,
    "finetune": Estimator.finetune,
    "score": Estimator.score,
}
