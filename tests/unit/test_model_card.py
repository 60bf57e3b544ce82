"""The page beside a model says what its JSON does."""

import pandas as pd
import pytest

from atomcsi.cli import main
from atomcsi.errors import InputError
from atomcsi.files import write_json
from atomcsi.report.model_card import write_model_card
from atomcsi.training.model_files import METRICS_SCHEMA, SCHEMA

CARD = {
    "dataset": "both",
    "datasets": [
        {"dataset": "near", "licence": "CC0-1.0", "source": "Doe (2020)", "structures": 1500, "elements": ["H", "C"]},
        {"dataset": "far", "licence": None, "source": None, "structures": 500, "elements": ["O"]},
    ],
    "target": "forces",
    "readout": "sum",
    "heads": ["energy", "forces"],
    "backbone": {"implementation": "painn"},
    "settings": {"epochs": 5, "scalar_loss": "l1", "forces": "direct", "denoise_sigma": None},
    "seed": 7,
    "pretrained": None,
    "versions": {"atomcsi": "0.3"},
    "structures": 2000,
    "budget": 10000,
    "parameters": 1234567,
    "best_epoch": 4.5,
    "seconds": 7200.0,
    "costs": {"device": "cpu", "gpu_hours": 0.0, "kwh": 0.02, "watts_are": "assumed"},
    "history": [{"val_loss": 2.0}, {"val_loss": 1.25}],
}


def page(folder, csi=None, metrics=None, **changes) -> str:
    write_json(folder / "model.json", SCHEMA, CARD | changes)
    if metrics is not None:
        write_json(folder / "metrics.json", METRICS_SCHEMA, metrics)
    return " ".join(write_model_card(folder, csi).read_text().split())


def test_a_pretrained_mix(tmp_path):
    text = page(tmp_path)
    for words in (
        "# painn pretrained on both",
        "Predicts energies and forces (from a head of their own), in eV and Angstrom. Written by atomcsi 0.3",
        "| backbone | painn, 1,234,567 parameters with heads |",
        "| started from | random weights |",
        "| budget | 2,000 structures x 5 epochs = 10,000 |",
        "| seed | 7 |",
        "after epoch 4.5, loss 1.25 |",
        "| took | 2 hours on cpu, 0.02 kWh (assumed watts) |",
        "| near | 1,500 | H C | CC0-1.0 | Doe (2020) | | far | 500 | O | not stated | not stated |",
        "--out predictions.extxyz --dataset near",
        f'atomcsi.calculator("{tmp_path}", dataset="near")',
    ):
        assert words in text, words
    assert "Test error" not in text and "Chemical similarity" not in text


def test_a_finetuned_classifier(tmp_path):
    metrics = {"target": "is_metal", "dataset": "m", "structures": 50, "mae": 0.125, "unit": "1", "labels": 50}
    settings = CARD["settings"] | {"scalar_loss": "cross-entropy"}
    start = {"dataset": "near", "seed": 3, "budget": 4000, "sha256": 64 * "a"}
    text = page(
        tmp_path, metrics=metrics | {"roc_auc": 0.9, "accuracy": 0.8}, target="is_metal", readout="mean",
        settings=settings, pretrained=start, datasets=CARD["datasets"][:1], dataset="m",
    )  # fmt: skip
    for words in (
        "# painn finetuned on m",
        "Predicts the class `is_metal`, a mean over atoms.",
        "a model pretrained on near, seed 3, budget 4,000 (sha256 aaaaaaaaaaaa...)",
        "is_metal of m, 50 test structures: mean absolute error 0.125 over 50 numbers. ROC-AUC 0.9, accuracy 0.8.",
    ):
        assert words in text, words
    assert "atomcsi.calculator" not in text and "--dataset" not in text


def test_what_csi_says(tmp_path, capsys):
    rows = [("near", "drug", "frechet", 10.0), ("near", "drug", "energy", 3.0), ("other", "drug", "frechet", 5.0)]
    table = pd.DataFrame(rows, columns=["upstream", "downstream", "distance", "estimate"])
    table.assign(low=8.0, high=12.0).to_csv(tmp_path / "csi.csv", index=False)
    text = page(tmp_path, tmp_path / "csi.csv")
    assert "| downstream | data | CSI | |---|---|---| | drug | near | 10 (8 to 12) | ## Use" in text
    main(["card", str(tmp_path)])
    assert "README.md" in capsys.readouterr().out
    assert "Chemical similarity" not in (tmp_path / "README.md").read_text()
    table.to_csv(tmp_path / "csi.csv", index=False)
    with pytest.raises(InputError, match=r"csi\.csv: lacks high, low"):
        page(tmp_path, tmp_path / "csi.csv")


def test_what_denoises_cannot_be_used_as_it_is(tmp_path):
    text = page(tmp_path, target="noise", settings=CARD["settings"] | {"denoise_sigma": 0.1})
    assert "Learned to tell noise of 0.1 Angstrom from positions" in text and "## Use" not in text
