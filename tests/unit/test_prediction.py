"""Trained models used: from files to files, and as calculators of ASE."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.optimize import BFGS

import atomcsi
from atomcsi.cli import main
from atomcsi.config import BackboneSpec, Task, TrainSettings
from atomcsi.errors import AtomcsiError, ConfigError, InputError
from atomcsi.files import read_json, write_json
from atomcsi.mixes import NamedMix
from atomcsi.models.potential import Potential
from atomcsi.prediction import predict
from atomcsi.structure_lmdb import StructureLMDB, write_structures
from atomcsi.training.data import LabelledStructures
from atomcsi.training.evaluation import evaluate
from atomcsi.training.model_files import SCHEMA, load_model
from atomcsi.training.processes import Execution
from atomcsi.training.train import finetune, pretrain

CPU = Execution(device="cpu")
ROOT = Path(__file__).parents[2]
TINY = BackboneSpec(**yaml.safe_load((ROOT / "tests/data/config/backbones/gemnet-oc-test.yaml").read_text()))
SETTINGS = {"structures": 16, "epochs": 2, "batch_size": 4, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def stores(folder, toy_structures):
    """Two datasets; molecules of the second have a property too."""
    found = {}
    for name, seed, names in (("alcohols", 0, ("CH3OH", "H2O2")), ("waters", 1, ("H2O",))):
        structures = toy_structures(20, seed, names)
        for structure in structures:
            structure.properties = {"gap of it": float(len(structure))}
        provenance = {"dataset": name, "licence": "CC0-1.0", "source": "made up"}
        path = folder / f"{name}.lmdb"
        write_structures(path, structures, property_names=["gap of it"], provenance=provenance)
        found[name] = StructureLMDB(path)
    return found


def finetuned(stores, folder, target, unit, **changes):
    settings = TrainSettings(**SETTINGS | changes)
    extra = {} if target in ("forces", "energy") else {"readout": "mean", "reference": "mean"}
    task = Task(dataset="alcohols", target=target, unit=unit, finetune=settings, **extra)
    splits = dict.fromkeys(("train", "val", "test"), stores["alcohols"])
    finetune(splits, folder, task=task, task_name="x", init=None, backbone=TINY, seed=0, execution=CPU)
    return folder


@pytest.fixture(scope="module")
def forces(stores, folder):
    return finetuned(stores, folder / "forces", "forces", "eV/angstrom", forces="gradient")


@pytest.fixture(scope="module")
def direct(stores, folder):
    return finetuned(stores, folder / "direct", "forces", "eV/angstrom", energy_weight=0)


@pytest.fixture(scope="module")
def gap(stores, folder):
    return finetuned(stores, folder / "gap", "gap of it", "eV", force_weight=0)


@pytest.fixture(scope="module")
def mix(stores, folder):
    both = NamedMix.model_validate({"name": "both", "mix": {"kind": "equal"}})
    pretrain(
        list(stores.values()), list(stores.values()), folder / "mix", backbone=TINY,
        settings=TrainSettings(**SETTINGS), seed=0, mix=both, execution=CPU,
    )  # fmt: skip
    return folder / "mix"


def test_predictions_have_the_tested_error(forces, stores, tmp_path, capsys):
    """From a file back to the test error that finetuning reported, to what seven digits of the file allow."""
    main(["predict", str(forces), str(stores["alcohols"].path), "--out", str(tmp_path / "out.extxyz")])
    assert "20 structures" in capsys.readouterr().out
    images = ase.io.read(tmp_path / "out.extxyz", ":")
    labels = list(stores["alcohols"])
    errors = [atoms.get_forces() - label.forces for atoms, label in zip(images, labels, strict=True)]
    assert np.abs(np.concatenate(errors)).mean() == pytest.approx(
        read_json(forces / "metrics.json", None)["mae"], rel=1e-5
    )
    assert images[3].info["source"] == "alcohols.lmdb/3"
    assert images[3].positions == pytest.approx(labels[3].positions, abs=1e-6)
    # With its references: atomic energies are -13.6 eV times Z.
    assert images[0].get_potential_energy() == pytest.approx(labels[0].energy, abs=5)


def test_out_of_memory(forces, stores, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(Potential, "forward", full)
    with pytest.raises(AtomcsiError, match=r"out of memory; 5 structures of \d+ atoms in a batch \(take fewer at once"):
        predict(forces, stores["alcohols"].path, tmp_path / "out.extxyz", batch_size=5)
    assert not list(tmp_path.iterdir())


def test_a_property(gap, stores, tmp_path):
    assert predict(gap, stores["alcohols"].path, tmp_path / "out.extxyz", device="cpu", batch_size=7) == 20
    images = ase.io.read(tmp_path / "out.extxyz", ":")
    found = np.array([atoms.info["gap of it"] for atoms in images])
    labels = [structure.properties["gap of it"] for structure in stores["alcohols"]]
    assert np.abs(found - labels).mean() == pytest.approx(read_json(gap / "metrics.json", None)["mae"], rel=1e-5)
    assert images[0].calc is None


def test_loaded_models_are_those_that_were_saved(forces, stores):
    model = load_model(forces, "cpu")
    structures = LabelledStructures(stores["alcohols"], target="forces")
    settings = TrainSettings(**SETTINGS | {"batch_size": 5})
    found = evaluate(model, structures, "eV/angstrom", settings)
    assert found["mae"] == pytest.approx(read_json(forces / "metrics.json", None)["mae"], rel=1e-6)


def test_a_calculator_relaxes(forces):
    """Forces are the slope of the energy, so that following them lowers it."""
    atoms = molecule("CH3OH")
    atoms.calc = atomcsi.calculator(forces, device="cpu")
    start, slope = atoms.get_potential_energy(), np.abs(atoms.get_forces()).max()
    BFGS(atoms, logfile=None).run(fmax=0.2 * slope, steps=20)
    assert atoms.get_potential_energy() < start
    assert atoms.get_forces().shape == (6, 3)


def test_missing_heads(direct, gap, mix, stores, tmp_path):
    atoms = molecule("CH3OH")
    atoms.calc = atomcsi.calculator(direct, device="cpu")
    assert np.isfinite(atoms.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError, match=r"no head for energy, only for forces: give it a weight"):
        atoms.get_potential_energy()
    with pytest.raises(InputError, match=r"model of gap of it, which is neither energy nor forces .*atomcsi predict"):
        atomcsi.calculator(gap)
    with pytest.raises(ConfigError, match=r"has heads of alcohols, waters: say of which dataset"):
        predict(mix, stores["waters"].path, tmp_path / "x.extxyz")
    with pytest.raises(ConfigError, match=r"no heads of the dataset 'water'; did you mean 'waters'"):
        atomcsi.calculator(mix, dataset="water")


def test_heads_of_a_mix_differ(mix):
    energies = []
    for dataset in ("alcohols", "waters"):
        atoms = molecule("H2O")
        atoms.calc = atomcsi.calculator(mix, dataset=dataset, device="cpu")
        energies.append(atoms.get_potential_energy())
    assert energies[0] != energies[1]


def test_unknown_elements(forces, mix, tmp_path):
    ase.io.write(tmp_path / "in.extxyz", [molecule("CH3OH"), molecule("CH3Cl")])
    with pytest.raises(AtomcsiError, match=r"in.extxyz/1' holds Cl, which the model does not know: .* H, C, O only"):
        predict(forces, tmp_path / "in.extxyz", tmp_path / "out.extxyz")
    assert not (tmp_path / "out.extxyz").exists()
    atoms = molecule("CH3OH")
    atoms.calc = atomcsi.calculator(mix, dataset="waters")
    with pytest.raises(AtomcsiError, match=r"holds C, .* trained on waters, which has H, O only"):
        atoms.get_potential_energy()


def test_files_that_do_not_belong_together(forces, direct, tmp_path):
    for name, source in (("model.safetensors", direct), ("model.json", forces)):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    with pytest.raises(InputError, match=r"model.safetensors: does not belong to model.json beside it"):
        load_model(tmp_path)
    write_json(tmp_path / "model.json", SCHEMA, {"backbone": TINY.model_dump()})
    with pytest.raises(InputError, match=r"model.json: tells of no model that this version knows: 'heads'"):
        load_model(tmp_path)
    with pytest.raises(InputError, match=r"model.json: is missing"):
        load_model(tmp_path / "none")
    with pytest.raises(InputError, match=r"out.cif: is no name of an extended XYZ file"):
        predict(forces, tmp_path, tmp_path / "out.cif")


def test_periodic_structures(forces, tmp_path):
    """The cell is kept, and images are seen: a chain of oxygen closer to its image than its cutoff."""
    chain = Atoms("O", cell=[1.4, 0, 0], pbc=[True, False, False])
    apart = Atoms("O2", positions=[[0, 0, 0], [1.4, 0, 0]])
    ase.io.write(tmp_path / "in.extxyz", [chain, apart])
    predict(forces, tmp_path / "in.extxyz", tmp_path / "out.extxyz", batch_size=1)
    found = ase.io.read(tmp_path / "out.extxyz", ":")
    assert found[0].cell[0, 0] == pytest.approx(1.4) and found[0].pbc.tolist() == [True, False, False]
    assert found[0].get_potential_energy() != pytest.approx(found[1].get_potential_energy() / 2, abs=1e-4)
    torch.testing.assert_close(torch.tensor(found[0].get_forces()), torch.zeros(1, 3).double(), atol=1e-4, rtol=0)
