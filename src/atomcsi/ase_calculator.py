"""Trained models as calculators of ASE: for relaxations, dynamics, and whatever else it does with energies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes

from atomcsi.errors import InputError
from atomcsi.readers.ase_files import of_atoms
from atomcsi.structure_batch import StructureBatch
from atomcsi.training.model_files import CARD, load_model


class ModelCalculator(Calculator):
    """Energies in eV and forces in eV/Angstrom of a trained model.

    Args:
        folder: Folder of the model.
        dataset: Whose heads are asked, for a model of a mix.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU if there is one.

    Raises:
        InputError: The model cannot be read, or predicts a property.
        ConfigError: The model has no heads of that dataset, or of several of which none is named.
    """

    def __init__(self, folder: Path | str, *, dataset: str | None = None, device: str = "auto") -> None:
        super().__init__()
        self._model = load_model(Path(folder), device)
        if self._model.predicts_property:
            problem = f"tells of a model of {self._model.target}, which is neither energy nor forces"
            raise InputError(Path(folder) / CARD, problem, mend="use `atomcsi predict`")
        self._dataset = self._model.dataset(dataset)
        self.implemented_properties = list(self._model.predicted)

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> object:
        """Returns a property as ASE asks for it.

        Raises:
            PropertyNotImplementedError: The model has no head for it.
        """
        if name in ("energy", "free_energy", "forces") and name not in self.implemented_properties:
            known = " and ".join(self.implemented_properties)
            raise PropertyNotImplementedError(
                f"the model has no head for {name}, only for {known}: give it a weight in training"
            )
        return super().get_property(name, atoms, allow_calculation)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Computes all that the model predicts.

        Raises:
            AtomcsiError: The atoms hold elements that the model does not know.
        """
        super().calculate(atoms, properties, system_changes)
        structure = of_atoms(self.atoms, "atoms")
        self._model.require_elements(structure.numbers, str(self.atoms.symbols), self._dataset)
        batch = StructureBatch.of([structure])
        batch.dataset = np.array([self._dataset])
        with torch.no_grad():
            found = self._model.predict(self._model.collate(batch).to(self._model.device))
        if found.energy is not None:
            self.results["energy"] = self.results["free_energy"] = found.energy.item()
        if found.forces is not None:
            self.results["forces"] = found.forces.double().cpu().numpy()
