"""The report: one HTML page that holds everything and loads nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup

from atomcsi.costs.bill import JMP_BUDGET
from atomcsi.files import atomic_path
from atomcsi.project import Project
from atomcsi.quantities import duration, number
from atomcsi.registry import DISTANCES, load
from atomcsi.report.outcome import (
    ALL_TASKS,
    SURE,
    Outcome,
    chance,
    correlations,
    csi_against_mae,
    judge,
    least_p,
    overall,
    percent,
    signed,
    summarise,
    unit_name,
    verdict,
)
from atomcsi.report.tables import Tables

_TEMPLATE = "report.html.jinja"


def write_report(
    path: Path,
    *,
    project: Project,
    tables: Tables,
    figures: Mapping[str, Path],
    provenance: Mapping[str, Any],
    experiments: Sequence[Mapping[str, Any]] = (),
    more_experiments: Sequence[Mapping[str, str]] = (),
    more_trainings: Mapping[str, pd.DataFrame] | None = None,
) -> None:
    """Writes the report of a run.

    Args:
        path: The HTML file.
        project: The run's config and catalogue.
        tables: The run's tables.
        figures: SVG files by the names of :data:`atomcsi.report.figures.FIGURES`; one that is missing is left out.
        provenance: What else the numbers come from, such as ``versions`` and ``seeds``; nested as you like.
        experiments: The experiments to show (:func:`atomcsi.report.experiment_page.shown_experiments`).
        more_experiments: ``name``, ``title`` and ``question`` of those that the project has beyond them.
        more_trainings: Tables of trainings that only these experiments needed
            (:func:`atomcsi.training.tables.pretraining_table`, ``finetuning_table``), by what they are called.
    """
    run = project.run
    outcomes = [
        judge(tables, name, dataset=project.tasks[name].dataset, unit=project.tasks[name].unit) for name in run.tasks
    ]
    rankings = {selection["downstream"]: selection["ranking"] for selection in tables.selections}
    paired = csi_against_mae(tables)
    page = (
        templates()
        .get_template(_TEMPLATE)
        .render(
            run=run,
            project=project,
            extractor=project.extractors[run.embedding.extractor],
            answers=[
                {
                    "outcome": outcome,
                    "title": project.tasks[outcome.task].title,
                    "ranking": rankings[outcome.dataset],
                    "badge": badge(outcome),
                    "verdict": verdict(outcome),
                }
                for outcome in outcomes
            ],
            summary=overall(outcomes),
            seeds=len(run.seeds),
            sure=SURE,
            all_tasks=ALL_TASKS,
            odds=math.comb(2 * len(run.seeds), len(run.seeds)) // 2,
            results=_records(
                summarise(tables.finetuning).merge(
                    paired[["task", "upstream", "csi"]],
                    left_on=["task", "init"],
                    right_on=["task", "upstream"],
                    how="left",
                )
            ),
            correlations=_records(correlations(paired)),
            others=other_distances(tables),
            mixes=best_mixes(tables),
            least_p=least_p(len(run.upstream)),
            costs=costs(tables, {outcome.selected for outcome in outcomes}),
            more_costs=[
                {"step": step, "runs": len(table)} | table[["seconds", "budget", "gpu_hours", "kwh"]].sum().to_dict()
                for step, table in (more_trainings or {}).items()
                if len(table)
            ],
            figures={name: inline_svg(file, name) for name, file in figures.items()},
            experiments=experiments,
            more_experiments=more_experiments,
            datasets={name: project.datasets[name] for name in project.reported_datasets},
            provenance={
                key: yaml.safe_dump(value, sort_keys=False) if isinstance(value, Mapping | list) else value
                for key, value in provenance.items()
            },
            config=_config(project),
        )
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def templates() -> jinja2.Environment:
    """The pages' templates, with the filters that write numbers."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "chance": chance, "signed": signed}
    environment.filters |= {"unit": unit_name, "duration": duration}
    return environment


def badge(outcome: Outcome) -> tuple[str, str]:
    """Returns a task's verdict as a class of the page (good, even, bad, none) and in a few words."""
    if not outcome.judged:
        return "none", "not judged"
    if outcome.clear and not outcome.won:
        return "bad", f"✗ not the best: {outcome.rival.init} is"
    words = f"best of {len(outcome.upstreams)}" if outcome.won else "not the best"
    if outcome.clear:
        return "good", f"✓ {words}, beyond the noise"
    return "even", f"≈ {words}, {'one seed only' if outcome.clear is None else 'within the noise'}"


def other_distances(tables: Tables) -> list[dict[str, Any]]:
    """What each distance that was measured would select: rows of ``downstream``, ``distance`` and its nearest."""
    if tables.others.empty:
        return []
    both = pd.concat([tables.csi, tables.others], ignore_index=True)
    nearest = both.loc[both.groupby(["downstream", "distance"], sort=False)["estimate"].idxmin()]
    nearest = nearest.assign(
        title=[load(DISTANCES, name).title for name in nearest["distance"]],
        agrees=nearest["upstream"] == nearest["downstream"].map(tables.choices),
    )
    return _records(nearest[["downstream", "distance", "title", "upstream", "estimate", "p_best", "agrees"]])


def best_mixes(tables: Tables) -> list[dict[str, Any]]:
    """The best mix by downstream dataset, beside the best single upstream and the equal mix.

    Returns:
        Rows of ``downstream``, ``single``, ``single_csi``, ``equal_csi``, ``csi`` and ``parts``: upstream, share of
        the atoms and structures of each part of the best mix.
    """
    rows = []
    for downstream, mixes in tables.mixtures.groupby("downstream", sort=False) if len(tables.mixtures) else ():
        best, equal = (mixes[mixes["mix"] == name] for name in ("best", "equal"))
        single = mixes[mixes["mix"].str.startswith("only ")].sort_values("csi").iloc[0]
        parts = best[best["weight"] > 0].sort_values("weight", ascending=False)
        rows.append(
            {
                "downstream": downstream,
                "single": single["upstream"],
                "single_csi": single["csi"],
                "equal_csi": equal["csi"].iloc[0],
                "csi": best["csi"].iloc[0],
                "parts": _records(parts[["upstream", "weight", "structures"]]),
            }
        )
    return rows


def costs(tables: Tables, chosen: set[str]) -> dict[str, Any]:
    """Sums up what the embeddings and the trainings took.

    Args:
        tables: The run's tables.
        chosen: The upstreams that were selected for some task.

    Returns:
        Rows of ``pretraining`` (per upstream) and ``finetuning`` (per task): runs, structures seen, seconds, GPU-hours
        and kWh; seconds of either and of embedding, how many datasets were ``embedded``, and ``chosen``: the seconds of
        the embeddings and of the selected upstreams' pretraining, all that is needed if CSI is believed; None if one
        was not run. A pretraining's ``share`` is its budget over JMP's, the paper's measure of cost.
    """
    # Every row has the seconds of both of its datasets, but each dataset is embedded once.
    embedding = {
        row[side]: row[f"{side}_embedding_seconds"]
        for row in _records(tables.csi)
        for side in ("upstream", "downstream")
    }
    embedding_seconds = float(sum(embedding.values()))
    spent = {
        "runs": ("seed", "size"),
        "budget": ("budget", "max"),
        "seconds": ("seconds", "mean"),
        "total": ("seconds", "sum"),
        "seen": ("budget", "sum"),
        "gpu_hours": ("gpu_hours", "sum"),
        "kwh": ("kwh", "sum"),
    }
    pretraining = tables.pretraining.groupby("init", sort=False).agg(**spent, structures=("structures", "max"))
    pretraining["share"] = pretraining["budget"] / JMP_BUDGET
    finetuning = tables.finetuning.groupby("task", sort=False).agg(**spent)
    return {
        "pretraining": _records(pretraining.reset_index()),
        "finetuning": _records(finetuning.reset_index()),
        "pretraining_seconds": float(pretraining["total"].sum()),
        "finetuning_seconds": float(finetuning["total"].sum()),
        "embedded": len(embedding),
        "embedding_seconds": embedding_seconds,
        "chosen": (
            embedding_seconds + float(pretraining.loc[sorted(chosen), "total"].sum())
            if chosen <= set(pretraining.index)
            else None
        ),
    }


def merged_versions(found: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Returns the version of each package over several outputs; where these differ, all of them, and that they do."""
    merged: dict[str, set[str]] = {}
    for versions in found:
        for package, version in versions.items():
            merged.setdefault(package, set()).add(version)
    return {
        package: versions.pop() if len(versions) == 1 else f"{' and '.join(sorted(versions))} (they differ)"
        for package, versions in merged.items()
    }


def inline_svg(path: Path, name: str) -> Markup:
    """Returns one of our own SVG files as an element of a page that holds several.

    Its ids and styles get the figure's name, for an id counts in the whole page; its size is left to the page.
    """
    svg = Path(path).read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("*{", f"#figure-{name} *{{", 1)
    head, body = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return Markup(f'{head} role="img" aria-labelledby="caption-{name}">{body}')


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return table.to_dict("records")


def _config(project: Project) -> str:
    """The run config and the entries that it uses, but for those of the datasets, as YAML."""
    used = {kind: entries for kind, entries in project.entries().items() if kind != "datasets"}
    return yaml.safe_dump(used, sort_keys=False, allow_unicode=True)
