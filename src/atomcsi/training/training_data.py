"""What a training sees of one dataset or of a mix: draws, references and scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from atomcsi.catalogue import Graph
from atomcsi.difficulty import Chosen
from atomcsi.errors import InputError
from atomcsi.structure_lmdb import StructureLMDB
from atomcsi.targets import NOISE, Target
from atomcsi.training.data import LabelledStructures
from atomcsi.training.denoising import NoisyStructures
from atomcsi.training.joined import JoinedStructures
from atomcsi.training.normalisation import Normaliser
from atomcsi.training.settings import TrainSettings

#: Draws of structures, in one of the forms that a training takes.
Drawn = LabelledStructures | JoinedStructures | NoisyStructures


@dataclass(frozen=True)
class TrainingData:
    """Draws of the train and val splits of one or several datasets.

    Attributes:
        name: The dataset, or what the mix is called.
        datasets: What is known of each dataset, in the order of :attr:`StructureBatch.dataset`.
        target: What is trained on.
        train: The structures that are trained on.
        val: Those that pick the best weights.
        normaliser: References and scales of each dataset, of its whole train split.
        graphs: The graph of each dataset; the backbone's own where None.
    """

    name: str
    datasets: list[dict[str, Any]]
    target: Target
    train: Drawn
    val: Drawn
    normaliser: Normaliser
    graphs: list[Graph | None]

    @classmethod
    def draw(
        cls,
        train: Sequence[StructureLMDB],
        val: Sequence[StructureLMDB],
        *,
        target: Target,
        settings: TrainSettings,
        seed: int,
        counts: Sequence[int] | None = None,
        name: str | None = None,
        graphs: Sequence[Graph | None] | None = None,
        chosen: Chosen | None = None,
    ) -> TrainingData:
        """Draws structures.

        Args:
            train: Train split of each dataset.
            val: Val split of each, in the same order.
            target: What is trained on.
            settings: How many structures; ``val_structures`` of each dataset.
            seed: Seed of the draws.
            counts: Structures of each dataset; the settings' for a single one if None.
            name: What a mix is called.
            graphs: The graph of each dataset; the backbone's own if None.
            chosen: What is trained on of a single dataset, in place of a draw.

        Raises:
            InputError: A split has too few structures, lacks the labels, or has energies of elements that the train
                split has none of.
        """
        counts = [settings.structures] if counts is None else list(counts)
        for part, other in zip(train, val, strict=True):
            if "energy" in heads_of(settings):
                _check_energies(target, part, other)
        graphs = [None] * len(train) if graphs is None else list(graphs)
        indices = None if chosen is None else chosen.indices
        draws = [_draw(part, target, *each, seed, indices) for part, *each in zip(train, counts, graphs, strict=True)]
        records = [_record(*each) for each in zip(train, val, counts, strict=True)]
        if chosen is not None:
            records[0]["chosen"] = chosen.record
        validation = [
            LabelledStructures(part, target=target.target, limit=settings.val_structures, seed=seed, graph=graph)
            for part, graph in zip(val, graphs, strict=True)
        ]
        return cls(
            name=name or train[0].metadata["provenance"]["dataset"],
            datasets=records,
            target=target,
            train=_joined(draws, settings, seed),
            val=_joined(validation, settings, seed + 1),
            normaliser=Normaliser.join([_normaliser(part, target, settings) for part in train]),
            graphs=graphs,
        )

    def plan(self) -> dict[str, Any]:
        """Returns what the result depends on, as JSON has it."""
        return {
            "dataset": self.name,
            "datasets": self.datasets,
            "graphs": [None if graph is None else graph.model_dump(mode="json") for graph in self.graphs],
            **{name: getattr(self.target, name) for name in Target.model_fields},
        }


def heads_of(settings: TrainSettings) -> list[str]:
    """Returns what is predicted: what has a weight in the loss."""
    weights = {"energy": settings.energy_weight, "forces": settings.force_weight}
    return [head for head, weight in weights.items() if weight > 0]


def check_elements(train: StructureLMDB, other: StructureLMDB) -> None:
    """Refuses structures whose energies cannot be known: total energies of an element are thousands of eV.

    Raises:
        InputError: ``other`` holds elements that ``train`` does not.
    """
    if unseen := sorted(set(map(int, other.metadata["elements"])) - set(map(int, train.metadata["elements"]))):
        symbols = ", ".join(chemical_symbols[number] for number in unseen)
        raise InputError(
            other.path, f"holds {symbols}, which {train.path} does not", mend="split the dataset otherwise"
        )


def _check_energies(target: Target, train: StructureLMDB, val: StructureLMDB) -> None:
    """Refuses splits whose energies cannot be trained on, where energies are trained on beside forces."""
    for store in (train, val):
        if not target.is_property and "energy_std" not in store.metadata:
            mend = "set energy_weight to 0, or take a dataset with energies"
            raise InputError(store.path, "has no energies to train on", mend=mend)
    if target.reference == "elements":
        check_elements(train, val)


def _draw(
    store: StructureLMDB, target: Target, count: int, graph: Graph | None, seed: int, indices: np.ndarray | None
) -> LabelledStructures:
    structures = LabelledStructures(store, target=target.target, limit=count, seed=seed, indices=indices, graph=graph)
    if len(structures) < count:
        problem = f"has {len(structures)} structures where {count} are to be trained on"
        raise InputError(store.path, problem, mend="lower `structures` or choose a larger split")
    return structures


def _joined(draws: list[LabelledStructures], settings: TrainSettings, seed: int) -> Drawn:
    structures = draws[0] if len(draws) == 1 else JoinedStructures(draws)
    if settings.denoise_sigma is None:
        return structures
    return NoisyStructures(structures, sigma=settings.denoise_sigma, seed=seed)


def _normaliser(store: StructureLMDB, target: Target, settings: TrainSettings) -> Normaliser:
    if target.target == NOISE:
        return Normaliser.fit([])  # noise comes in units of its spread
    # Of the whole split, as the paper's references are: a small draw may lack an element that others hold.
    whole = LabelledStructures(store, target=target.target)
    gradient = settings.forces == "gradient" and settings.force_weight > 0
    return Normaliser.fit(whole.batches(), whole.reference, target=target, gradient=gradient)


def _record(train: StructureLMDB, val: StructureLMDB, count: int) -> dict[str, Any]:
    """What a model's card says of a dataset."""
    provenance = train.metadata["provenance"]
    return {
        **{key: provenance.get(key) for key in ("dataset", "licence", "source")},
        "structures": count,
        "elements": [chemical_symbols[number] for number in sorted(map(int, train.metadata["elements"]))],
        "fingerprints": [train.metadata["fingerprint"], val.metadata["fingerprint"]],
    }
