"""What a report is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from atomcsi.files import read_json
from atomcsi.registry import DISTANCES, load
from atomcsi.selection import SCHEMA as SELECTION_SCHEMA


@dataclass(frozen=True)
class Tables:
    """Everything that a report is made from; a figure needs only some of it.

    Attributes:
        csi: The distances that select, in long form (:func:`atomcsi.measure.distance_table`).
        selections: What :func:`atomcsi.selection.select` returned, one per downstream dataset.
        finetuning: One row per finetuning; no rows and no columns before anything was trained.
        pretraining: One row per pretraining; likewise.
        cards: The pretrained models' cards, with their history.
        others: The distances that were measured beside, in long form.
        elements: Which elements make the distances (:func:`atomcsi.measure.element_table`).
        mixtures: Mixes of upstreams (:func:`atomcsi.mixtures.mixture_table`).
    """

    csi: pd.DataFrame
    selections: Sequence[Mapping[str, Any]]
    finetuning: pd.DataFrame = field(default_factory=pd.DataFrame)
    pretraining: pd.DataFrame = field(default_factory=pd.DataFrame)
    cards: Sequence[Mapping[str, Any]] = ()
    others: pd.DataFrame = field(default_factory=pd.DataFrame)
    elements: pd.DataFrame = field(default_factory=pd.DataFrame)
    mixtures: pd.DataFrame = field(default_factory=pd.DataFrame)

    @classmethod
    def read(
        cls,
        *,
        csi: Path,
        selections: Sequence[Path],
        elements: Path,
        finetuning: Path | None = None,
        pretraining: Path | None = None,
        cards: Sequence[Path] = (),
        mixtures: Path | None = None,
    ) -> Tables:
        """Reads what the workflow wrote; what training and mixing give can be left out.

        Raises:
            InputError: A file is missing or holds something else.
        """
        # Imports PyTorch; drawing and judging do without the seconds that takes.
        from atomcsi.training.model_files import SCHEMA as MODEL_SCHEMA

        choices = [read_json(path, SELECTION_SCHEMA) for path in selections]
        distances, contributions = pd.read_csv(csi), pd.read_csv(elements)
        selecting = _selecting(distances, choices[0])
        return cls(
            csi=distances[selecting].reset_index(drop=True),
            selections=choices,
            finetuning=_read_table(finetuning),
            pretraining=_read_table(pretraining),
            cards=[read_json(path, MODEL_SCHEMA) for path in cards],
            others=distances[~selecting].reset_index(drop=True),
            elements=contributions[_selecting(contributions, choices[0])].reset_index(drop=True),
            mixtures=_read_table(mixtures),
        )

    @property
    def choices(self) -> dict[str, str]:
        """Selected upstream by downstream dataset."""
        return {selection["downstream"]: selection["selected"] for selection in self.selections}

    @property
    def upstreams(self) -> list[str]:
        """Upstream datasets in alphabetical order, which no downstream dataset decides."""
        return sorted(set(self.csi["upstream"]))

    @property
    def axis_label(self) -> str:
        """Name and unit of the distance that selects."""
        distance = load(DISTANCES, self.selections[0]["distance"])
        return f"{distance.title} ({distance.unit})" if distance.unit else distance.title


def _read_table(path: Path | None) -> pd.DataFrame:
    return pd.DataFrame() if path is None else pd.read_csv(path)


def _selecting(table: pd.DataFrame, selection: Mapping[str, Any]) -> pd.Series:
    """Which rows are of the extractor, aggregation and distance that a selection was made by."""
    keys = ["extractor", "aggregation", "distance"]
    return (table[keys] == [selection[key] for key in keys]).all(axis=1)
