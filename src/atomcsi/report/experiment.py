"""The figure of an experiment: what it is drawn from, and the files that it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from atomcsi.experiments import Experiment
from atomcsi.files import atomic_path, read_json, versions, write_json
from atomcsi.measure import distance_table, read_measurements
from atomcsi.paper import PaperNumbers, read_paper_numbers, with_published_budgets
from atomcsi.report.drawing import save, styled
from atomcsi.report.experiment_figures import PLOTS
from atomcsi.report.experiment_findings import FINDINGS
from atomcsi.training.model_files import METRICS_SCHEMA
from atomcsi.training.model_files import SCHEMA as MODEL_SCHEMA

SCHEMA = "atomcsi.experiment/1"


@dataclass(frozen=True)
class Results:
    """What an experiment found.

    Attributes:
        name: The experiment's name.
        experiment: Its entry, stand-ins put in place.
        scale: ``demo`` or ``full``.
        csi: Distances in long form (:func:`atomcsi.measure.distance_table`), with the ``label`` of their comparison.
        finetuning: One row per finetuning, but one for all folds of a dataset, with their mean error: ``backbone``,
            ``init``, ``structures`` and ``epochs`` of its pretraining (0 from scratch, and of checkpoints whose
            budget nobody told), ``budget`` (their product),
            ``task``, ``dataset``, ``unit``, ``seed``, ``mae``, ``test_structures``, and ``gpu_hours``, ``kwh`` and
            ``seconds`` of its pretraining.
        ranks: Effective ranks (:func:`atomcsi.effective_rank.effective_ranks`).
        paper: The paper's numbers, at full scale: those of stand-ins are not to be compared with them.
    """

    name: str
    experiment: Experiment
    scale: str
    csi: pd.DataFrame = field(default_factory=pd.DataFrame)
    finetuning: pd.DataFrame = field(default_factory=pd.DataFrame)
    ranks: pd.DataFrame = field(default_factory=pd.DataFrame)
    paper: PaperNumbers | None = None

    @classmethod
    def read(
        cls,
        name: str,
        experiment: Experiment,
        *,
        scale: str,
        distances: Sequence[Path] = (),
        labels: Sequence[str] = (),
        metrics: Sequence[Path] = (),
        starts: Sequence[Mapping[str, Any]] = (),
        cards: Sequence[Path] = (),
        ranks: Sequence[Path] = (),
        paper: Path | None = None,
    ) -> Results:
        """Reads what the workflow wrote.

        Args:
            name: The experiment's name.
            experiment: Its entry.
            scale: The run's scale.
            distances: Files of distances.
            labels: Label of the comparison of each.
            metrics: Files of finetunings' metrics.
            starts: What each started from: ``backbone``, ``init``, ``structures``, ``epochs``, and the ``card`` of its
                pretraining (None from scratch); ``family``, the dataset that its dataset is a fold of, or None.
            cards: Files of the pretrained models' cards.
            ranks: Tables of effective ranks.
            paper: Folder of the paper's numbers.

        Raises:
            InputError: A file is missing or holds something else.
        """
        tables = [
            distance_table([found]).assign(label=label)
            for found, label in zip(read_measurements(distances), labels, strict=True)
        ]
        costs = {str(path): read_json(path, MODEL_SCHEMA) for path in cards}
        rows = [
            _finetuning(read_json(path, METRICS_SCHEMA), start, costs.get(start["card"]))
            for path, start in zip(metrics, starts, strict=True)
        ]
        numbers = None if paper is None else read_paper_numbers(paper)
        finetuning = pd.DataFrame(rows)
        if numbers is not None and len(finetuning):
            finetuning = with_published_budgets(finetuning, numbers)
        return cls(
            name=name,
            experiment=experiment,
            scale=scale,
            csi=pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(),
            finetuning=_over_folds(finetuning),
            ranks=pd.concat(map(pd.read_csv, ranks), ignore_index=True) if ranks else pd.DataFrame(),
            paper=numbers,
        )


def write_experiment(results: Results, stem: Path) -> None:
    """Draws an experiment and writes ``stem`` with the endings ``.svg``, ``.png``, ``.csv`` and ``.json``.

    The JSON file holds title, question, findings, caption, source, scale, seeds and versions, for the report.
    """
    experiment = results.experiment
    with styled(results.name):
        figure, table, caption = PLOTS[experiment.plot](results)
    save(stem.with_suffix(".svg"), results.name, figure, table)
    with styled(results.name), atomic_path(stem.with_suffix(".png")) as temporary:
        figure.savefig(temporary, format="png", dpi=200, metadata={"Software": None})
    record = experiment.model_dump(mode="json", include={"title", "question", "source", "plot", "tasks"})
    record |= {"seeds": experiment.seeds if experiment.trains else []}
    record |= {"name": results.name, "scale": results.scale, "caption": f"{caption} {experiment.caption}".strip()}
    record |= {"findings": FINDINGS[experiment.plot](results, table), "versions": versions("pandas", "matplotlib")}
    write_json(stem.with_suffix(".json"), SCHEMA, record)


def _finetuning(metrics: Mapping[str, Any], start: Mapping[str, Any], card: Mapping[str, Any] | None) -> dict[str, Any]:
    row = {key: start[key] for key in ("backbone", "init", "structures", "epochs", "family")}
    row |= {"budget": start["structures"] * start["epochs"]}
    row |= {key: metrics[key] for key in ("task", "dataset", "unit", "seed", "mae")}
    row |= {"test_structures": metrics["structures"]}
    took = {"seconds": 0.0, "gpu_hours": 0.0, "kwh": 0.0} if card is None else {**card["costs"], **card}
    return row | {key: took[key] for key in ("seconds", "gpu_hours", "kwh")}


def _over_folds(finetuning: pd.DataFrame) -> pd.DataFrame:
    """Puts one row in the place of a dataset's folds: the mean over them, as MatBench's leaderboard does."""
    if "family" not in finetuning:
        return finetuning
    folds = finetuning["family"].map(finetuning.groupby("family")["dataset"].nunique()) > 1
    names = ["backbone", "init", "structures", "epochs", "budget", "family", "unit", "seed"]
    means = (
        finetuning[folds]
        .groupby(names, sort=False, as_index=False)
        .agg(
            mae=("mae", "mean"),
            test_structures=("test_structures", "sum"),
            **{cost: (cost, "first") for cost in ("seconds", "gpu_hours", "kwh")},
        )
    )
    means = means.assign(task=means["family"], dataset=means["family"])
    return pd.concat([finetuning[~folds], means], ignore_index=True)[finetuning.columns.drop("family")]
