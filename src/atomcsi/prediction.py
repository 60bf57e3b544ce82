"""Structures with what a trained model says of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz

from atomcsi.errors import InputError
from atomcsi.files import atomic_path
from atomcsi.progress import Progress
from atomcsi.readers.user import open_structures
from atomcsi.structure import Structure
from atomcsi.structure_batch import StructureBatch
from atomcsi.training.model_files import TrainedModel, load_model


def predict(
    folder: Path | str,
    structures: Path | str,
    out: Path | str,
    *,
    dataset: str | None = None,
    batch_size: int = 32,
    device: str = "auto",
) -> int:
    """Predicts energies and forces, or the property that a model was finetuned on, and writes them.

    Args:
        folder: Folder of the model.
        structures: File or folder of structures, in any format of :func:`~atomcsi.readers.user.open_structures`.
        out: Extended XYZ file to write: energies in eV, forces in eV/Angstrom; a property, in its dataset's unit, under
            its own name, and of a class its probability.
        dataset: Whose heads are asked, for a model of a mix.
        batch_size: Structures that are predicted at once.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU if there is one.

    Returns:
        How many structures there are.

    Raises:
        InputError: Model or structures cannot be read, or ``out`` is no name of such a file.
        AtomcsiError: A structure holds elements that the model does not know.
    """
    if Path(out).suffix not in (".extxyz", ".xyz"):
        raise InputError(out, "is no name of an extended XYZ file", mend="let it end in .extxyz")
    model = load_model(Path(folder), device)
    heads = model.dataset(dataset)
    progress, count = Progress(f"predict {structures}", unit="structures"), 0
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for images in predictions(model, open_structures(structures), heads=heads, batch_size=batch_size):
            write_extxyz(stream, images)
            count += len(images)
            progress.advance(len(images))
    progress.finish()
    return count


@torch.no_grad()
def predictions(
    model: TrainedModel, structures: Iterable[Structure], *, heads: int = 0, batch_size: int = 32
) -> Iterator[list[Atoms]]:
    """Yields structures, batch by batch, with what a model says of them.

    Args:
        model: The model.
        structures: The structures, in Angstrom.
        heads: Which dataset's heads are asked; see :meth:`TrainedModel.dataset`.
        batch_size: Structures that are predicted at once.

    Raises:
        AtomcsiError: A structure holds elements that the model does not know.
    """
    stream = iter(structures)
    while members := list(islice(stream, batch_size)):
        for structure in members:
            model.require_elements(structure.numbers, structure.source, heads)
        batch = replace(StructureBatch.of(members), dataset=np.full(len(members), heads))
        found = model.predict(model.collate(batch).to(model.device))
        energies = [None] * len(members) if found.energy is None else found.energy.tolist()
        ends = np.cumsum(batch.natoms)[:-1]
        forces = [None] * len(members)
        if found.forces is not None:
            forces = np.split(found.forces.double().cpu().numpy(), ends)
        yield [_atoms(model, *each) for each in zip(members, energies, forces, strict=True)]


def _atoms(model: TrainedModel, structure: Structure, energy: float | None, forces: np.ndarray | None) -> Atoms:
    atoms = Atoms(numbers=structure.numbers, positions=structure.positions, cell=structure.cell, pbc=structure.pbc)
    atoms.info["source"] = structure.source
    if model.predicts_property:
        atoms.info[model.target] = energy
        return atoms
    results = {"energy": energy, "forces": forces}
    atoms.calc = SinglePointCalculator(atoms, **{name: value for name, value in results.items() if value is not None})
    return atoms
