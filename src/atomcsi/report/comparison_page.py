"""A comparison of a user's own datasets as text, as tables and as a page that holds everything and loads nothing."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from atomcsi.config import extractor_catalogue
from atomcsi.errors import InputError
from atomcsi.files import atomic_path, versions, write_json, write_table
from atomcsi.measure import element_table
from atomcsi.quantities import number
from atomcsi.registry import DISTANCES, load
from atomcsi.report.comparison_figures import figures
from atomcsi.report.drawing import save, styled
from atomcsi.report.outcome import chance, percent
from atomcsi.report.page import inline_svg, templates
from atomcsi.report.tables import Tables

if TYPE_CHECKING:
    from atomcsi.comparison import Comparison

SCHEMA = "atomcsi.comparison/1"
_TEMPLATE = "comparison.html.jinja"
#: Elements that a sentence names.
_NAMED = 3


def as_text(comparison: Comparison) -> str:
    """Returns the ranked table, and what to make of it, for a terminal."""
    measured = comparison.measured
    title = load(DISTANCES, measured["distance"]).title
    header = ("", "pretrain on", title, "95 % interval", "P(best)", "structures")
    rows = [header]
    for rank, record in enumerate(measured["upstreams"], start=1):
        interval = "–" if record["low"] is None else f"{number(record['low'])} to {number(record['high'])}"
        cells = (number(record["estimate"]), interval, chance(record["p_best"]))
        rows.append((str(rank), record["upstream"], *cells, f"{record['upstream_distinct']:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 1 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    subject = f"{measured['downstream']} ({measured['downstream_structures']:,} structures)"
    return "\n".join(
        [f"{title} to {subject}, {measured['extractor']} features", "", *lines, "", *sentences(comparison)]
    )


def sentences(comparison: Comparison) -> list[str]:
    """Says in plain words what a comparison found."""
    measured = comparison.measured
    best, *rest = measured["upstreams"]
    found = []
    if rest and comparison.p_best is not None:
        margin = f"{rest[0]['upstream']}, is {_times(rest[0]['estimate'], best['estimate'])}"
        found.append(
            f"{best['upstream']} is the nearest with a probability of {chance(comparison.p_best)}; the next, {margin}."
        )
    elif rest:
        want = f"too few {measured['resampled']} to resample"
        found.append(f"{best['upstream']} is the nearest; with {want}, there is no telling how sure that is.")
    if parts := best["elements"]:
        largest = sorted(parts, key=lambda part: -part["upstream_csi"])[:_NAMED]
        words = ", ".join(f"{part['symbol']} {percent(part['upstream_csi'] / best['value'])}" for part in largest)
        found.append(f"Of its distance, its atoms make: {words}.")
    if comparison.mixes is not None:
        mix = comparison.mixes["best"]
        parts = sorted((item for item in mix["weights"].items() if item[1]), key=lambda item: -item[1])
        if len(parts) == 1:
            found.append("No mix of the candidates is nearer than the nearest of them alone.")
        else:
            words = " and ".join(f"{percent(share)} {name}" for name, share in parts)
            single = min(comparison.mixes["single"].values())
            effect = f"takes CSI of the samples from {number(single)} to {number(mix['csi'])}"
            found.append(f"Mixing {words} of the atoms {effect}.")
    return found


def _times(value: float, least: float) -> str:
    return f"{number(value / least)} times as far" if 0 < value < 1000 * least else f"at {number(value)}"


def write_comparison(comparison: Comparison, path: Path) -> list[Path]:
    """Writes ``path`` (``.html``), and the tables beside it as ``.csv`` and everything as ``.json``.

    Raises:
        InputError: ``path`` has another ending.
    """
    if path.suffix != ".html":
        raise InputError(path, f"has the ending '{path.suffix}'", mend="the page is .html; .csv and .json come with it")
    measured, files = comparison.measured, [path, path.with_suffix(".csv"), path.with_suffix(".json")]
    content = {**measured, "mixes": comparison.mixes, "pairwise": comparison.pairwise.to_dict()}
    datasets = {name: _dataset(embedding.provenance) for name, embedding in comparison.embeddings.items()}
    write_json(files[2], SCHEMA, {**content, "datasets": datasets})
    write_table(files[1], comparison.table)
    page = (
        templates()
        .get_template(_TEMPLATE)
        .render(
            measured=measured,
            distance=load(DISTANCES, measured["distance"]),
            implementation=_implementation(measured["extractor"]),
            sentences=sentences(comparison),
            mixes=comparison.mixes,
            datasets=datasets,
            figures=_figures(comparison),
            versions=versions("torch", "numpy", "scipy", "sevenn", "chgnet", "fairchem-core"),
        )
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return files


def _figures(comparison: Comparison) -> dict[str, Any]:
    measured = comparison.measured
    tables = Tables(csi=comparison.table, selections=[measured], elements=element_table([measured]))
    found = {}
    with TemporaryDirectory() as folder:
        for name, make in figures(comparison, tables).items():
            with styled(name):
                figure, table = make()
            path = Path(folder) / f"{name}.svg"
            save(path, name, figure, table)
            found[name] = inline_svg(path, name)
    return found


def _dataset(provenance: dict[str, Any]) -> dict[str, Any]:
    keys = ("structures", "eligible", "distinct", "drawn", "atoms", "fingerprint", "seconds")
    return {key: provenance[key] for key in keys} | {"sampling": provenance["sampling"]}


def _implementation(extractor: str) -> str:
    """What implements an extractor; embedding files may be of one that only a project knows."""
    known = extractor_catalogue()
    return known[extractor].implementation if extractor in known else ""
