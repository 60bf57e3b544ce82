"""How hard structures are for a model that was trained on other data, and which of them are trained on for that.

The paper's selection inside ANI-1x (journal version) goes by the loss of EquiformerV2, pretrained on OC20. Here a
pretraining of the run is the judge, and the difficulty of a structure is the mean length of its atoms' force errors, in
eV/Angstrom: forces compare across levels of theory, energies do not.

Files are HDF5: ``difficulty`` (structures,) float64, in the order of the structures' file; attributes ``schema`` and
``provenance`` (JSON).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atomcsi.errors import InputError
from atomcsi.files import digest
from atomcsi.hdf5_file import add_checked, new_hdf5, open_checked, refuse_foreign
from atomcsi.mixes import Part, RankedMix
from atomcsi.sampling import apportion
from atomcsi.structure_lmdb import StructureLMDB

SCHEMA = "atomcsi.difficulty/1"
#: Shares of the easy, the middle and the hard structures.
_SHARES: Mapping[Part, Sequence[int]] = {"easy": (1, 0, 0), "middle": (0, 1, 0), "hard": (0, 0, 1), "mixed": (1, 1, 1)}


@dataclass(frozen=True)
class Chosen:
    """Structures that were chosen to be trained on.

    Attributes:
        indices: Their positions, ascending, shape (structures,).
        record: What a model's card says of the choice.
    """

    indices: np.ndarray
    record: Mapping[str, Any]


def choose(difficulty: np.ndarray, structures: int, part: Part) -> np.ndarray:
    """Chooses structures by their rank in difficulty; of equal difficulties the first structure is the easier one.

    ``easy`` are the first N of all M, ``hard`` the last N, ``middle`` N from the rank floor((M - N) / 2) on. ``mixed``
    has a third of each: its middle is that of the structures between its easy and its hard ones, so that no structure
    comes twice. What does not divide by three goes to the easy, then to the middle ones. There is no draw: all seeds
    train on the same structures.

    Args:
        difficulty: Difficulty of every structure, shape (M,).
        structures: N, at most M.
        part: Which of them.

    Returns:
        Their positions, ascending, shape (N,).
    """
    ranked, count = np.argsort(difficulty, kind="stable"), len(difficulty)
    easy, middle, hard = apportion(_SHARES[part], structures)
    start = easy + (count - structures) // 2
    return np.sort(np.concatenate([ranked[:easy], ranked[start : start + middle], ranked[count - hard :]]))


def write_difficulties(path: Path, difficulty: np.ndarray, provenance: Mapping[str, Any]) -> None:
    """Writes the difficulty of every structure of a file, shape (structures,), in eV/Angstrom."""
    with new_hdf5(path, difficulty.nbytes) as file:
        add_checked(file, "difficulty", difficulty)
        file.attrs["schema"] = SCHEMA
        file.attrs["provenance"] = json.dumps(provenance)


def read_difficulties(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns what :func:`write_difficulties` wrote.

    Raises:
        InputError: The file is missing or damaged, or holds something else.
    """
    with open_checked(path, SCHEMA, what="file of difficulties", mend="see the rule `score`") as file:
        refuse_foreign(file.get("difficulty"), file, path, "difficulty")
        return file["difficulty"][:], json.loads(file.attrs["provenance"])


def choose_by(mix: RankedMix, path: Path, store: StructureLMDB, structures: int) -> Chosen:
    """Chooses the structures of a mix by difficulty.

    Args:
        mix: The mix.
        path: The difficulties of the dataset's train split, by the mix's judge.
        store: That split.
        structures: How many.

    Raises:
        InputError: The file is missing or damaged, or tells of other structures or of another judge; or there are fewer
            structures.
    """
    difficulty, provenance = read_difficulties(path)
    if provenance["fingerprint"] != store.metadata["fingerprint"]:
        raise InputError(path, f"tells of other structures than those of {store.path}", mend="score them anew")
    judge = provenance["judge"]
    if judge["dataset"] != mix.judge:
        raise InputError(path, f"has the judgement of '{judge['dataset']}', not of '{mix.judge}'", mend="score anew")
    if len(difficulty) < structures:
        problem = f"has {len(difficulty)} structures where {structures} are to be trained on"
        raise InputError(store.path, problem, mend="lower `structures` or choose a larger split")
    indices = choose(difficulty, structures, mix.part)
    chosen = difficulty[indices]
    record = {
        "part": mix.part,
        "ranked": len(difficulty),
        "judge": judge,
        # eV/Angstrom
        "difficulty": {"least": chosen.min(), "mean": chosen.mean(), "most": chosen.max()},
        "sha256": digest(path, "sha256"),
    }
    return Chosen(indices, record)
