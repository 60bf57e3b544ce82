"""A page about a trained model for people, ``README.md`` beside its files: what is in ``model.json``, in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from atomcsi.errors import InputError
from atomcsi.files import atomic_path, read_json
from atomcsi.targets import LABELS, NOISE
from atomcsi.training.model_files import METRICS, METRICS_SCHEMA, read_card

README = "README.md"
_TEMPLATE = "model_card.md.jinja"
_COLUMNS = ("upstream", "downstream", "distance", "estimate", "low", "high")


def write_model_card(folder: Path, csi: Path | None = None) -> Path:
    """Writes the page of a model.

    Args:
        folder: Folder of the model.
        csi: The run's ``csi_matrix.csv``, to say how near the model's data are to downstream datasets.

    Returns:
        The file that was written.

    Raises:
        InputError: The model's files, or the matrix, are missing or hold something else.
    """
    card, metrics = read_card(folder), folder / METRICS
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    page = environment.get_template(_TEMPLATE).render(
        card=card,
        folder=folder,
        metrics=read_json(metrics, METRICS_SCHEMA) if metrics.exists() else None,
        pretrained=not metrics.exists(),
        objective=_objective(card),
        start=_start(card["pretrained"]),
        val_loss=min(record["val_loss"] for record in card["history"]),
        csi=[] if csi is None else _similarities(csi, {data["dataset"] for data in card["datasets"]}),
        usable=card["target"] != NOISE,
        is_property=card["target"] not in LABELS,
    )
    with atomic_path(folder / README) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / README


def _objective(card: Mapping[str, Any]) -> str:
    settings = card["settings"]
    if card["target"] == NOISE:
        return f"Learned to tell noise of {settings['denoise_sigma']:g} Angstrom from positions, without labels."
    if card["target"] not in LABELS:
        kind = "the class" if settings["scalar_loss"] == "cross-entropy" else "the property"
        return f"Predicts {kind} `{card['target']}`, a {card['readout']} over atoms."
    kinds = {"direct": "from a head of their own", "gradient": "minus the gradient of the energy"}
    forces = f"forces ({kinds[settings['forces']]})"
    words = {"energy": "energies", "forces": forces}
    return f"Predicts {' and '.join(words[head] for head in card['heads'])}, in eV and Angstrom."


def _start(pretrained: Mapping[str, Any] | None) -> str:
    if pretrained is None:
        return "random weights"
    if "checkpoint" in pretrained:
        return f"the published checkpoint {pretrained['checkpoint']} (sha256 {pretrained['sha256'][:12]}...)"
    words = f"a model pretrained on {pretrained['dataset']}, seed {pretrained['seed']}"
    return f"{words}, budget {pretrained['budget']:,} (sha256 {pretrained['sha256'][:12]}...)"


def _similarities(path: Path, datasets: set[str]) -> list[dict[str, Any]]:
    """Returns the rows of a CSI matrix that are about some datasets."""
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(path, f"is no table of CSI: {error}", mend="name a run's csi_matrix.csv") from error
    if missing := set(_COLUMNS) - set(table.columns):
        raise InputError(path, f"lacks {', '.join(sorted(missing))}", mend="name a run's csi_matrix.csv")
    rows = table[(table["distance"] == "frechet") & table["upstream"].isin(datasets)]
    return rows.sort_values(["downstream", "estimate"]).to_dict("records")
