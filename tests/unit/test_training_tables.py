import numpy as np
import pandas as pd
import pytest

from atomcsi.files import write_json
from atomcsi.training.model_files import METRICS_SCHEMA, SCHEMA
from atomcsi.training.tables import finetuning_table, fold_table, pretraining_table

FAMILIES = {"phonons-fold0": "phonons", "phonons-fold1": "phonons"}


def rows(dataset, init, maes, **more):
    names = {"task": dataset, "dataset": dataset, "target": "peak", "unit": "1/cm", "init": init}
    return [names | {"seed": seed, "mae": mae} | more for seed, mae in enumerate(maes)]


def test_pretrainings_with_their_costs(tmp_path):
    numbers = {name: 1 for name in ("seed", "structures", "budget", "atoms", "parameters", "best_epoch", "seconds")}
    costs = {"device": "H100", "processes": 4, "gpu_hours": 2.0, "watts": 500.0, "kwh": 1.0}
    card = {"dataset": "far", **numbers, "costs": costs, "history": [{"val_loss": 0.3}, {"val_loss": 0.2}]}
    write_json(tmp_path / "model.json", SCHEMA, card)
    (row,) = pretraining_table([tmp_path / "model.json"]).to_dict("records")
    assert row == {"init": "far", **numbers, "gpu_hours": 2.0, "kwh": 1.0, "val_loss": 0.2}
    assert list(pretraining_table([]).columns) == list(row)


def test_finetunings_with_their_costs(tmp_path):
    numbers = {"task": "drug-forces", "mae": 3.0, "by_element": {}, "by_class": {}}
    write_json(tmp_path / "metrics.json", METRICS_SCHEMA, {**numbers, "costs": {"gpu_hours": 0.5, "kwh": 0.1}})
    (row,) = finetuning_table([tmp_path / "metrics.json"]).to_dict("records")
    assert row == {"task": "drug-forces", "mae": 3.0, "gpu_hours": 0.5, "kwh": 0.1}


def test_folds_are_averaged_by_hand():
    """Seeds within a fold first; other datasets stay out."""
    finetuning = pd.DataFrame(
        [
            *rows("phonons-fold0", "far", [10.0, 20.0]),
            *rows("phonons-fold1", "far", [20.0, 30.0]),
            *rows("phonons-fold0", "near", [8.0]),
            *rows("qm9", "near", [99.0]),
        ]
    )
    found = fold_table(finetuning, FAMILIES).set_index("init")
    assert list(found.index) == ["far", "near"]
    assert found.loc["far", ["dataset", "folds", "seeds"]].tolist() == ["phonons", 2, 2]
    assert found.loc["far", ["mae", "low", "high"]].tolist() == [20.0, 15.0, 25.0]
    assert found.loc["far", "std"] == pytest.approx(np.sqrt(50))
    assert found.loc["near", "mae"] == 8.0 and np.isnan(found.loc["near", "std"])


def test_folds_of_classes():
    finetuning = pd.DataFrame(
        [*rows("phonons-fold0", "a", [0.2], roc_auc=0.9), *rows("phonons-fold1", "a", [0.4], roc_auc=0.7)]
    )
    assert fold_table(finetuning, FAMILIES)["roc_auc"].tolist() == [pytest.approx(0.8)]
