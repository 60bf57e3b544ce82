"""Difficulties of a dataset's structures for a trained model, resumable chunk by chunk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from atomcsi.catalogue import Graph
from atomcsi.difficulty import read_difficulties, write_difficulties
from atomcsi.errors import AtomcsiError, InputError
from atomcsi.files import remove, resume_folder, versions
from atomcsi.progress import Progress
from atomcsi.structure_lmdb import StructureLMDB
from atomcsi.training.data import LabelledStructures
from atomcsi.training.loading import Batches, loader, unpacked
from atomcsi.training.model_files import CARD, TrainedModel, load_model, start_record
from atomcsi.training.objective import force_loss
from atomcsi.training.settings import TrainSettings

#: Structures that an interrupted scoring does again at most.
_CHUNK = 20_000


def score(judge: Path, store: StructureLMDB, path: Path, *, device: str = "auto", workers: int = 0) -> None:
    """Writes how hard each structure of a file is for a model, see :mod:`atomcsi.difficulty`.

    The model sees the structures in the graph of its own dataset, in batches as it was trained with. Elements that its
    data lacked have embeddings that were never trained: structures with them count as what the model makes of them.

    Args:
        judge: Folder of the model, which was trained on one dataset.
        store: The structures; they have forces.
        path: The HDF5 file to write.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU if there is one.
        workers: Processes that read ahead.

    Raises:
        InputError: The model cannot be loaded or predicts no forces, or the structures have none.
        ConfigError: The model was trained on several datasets.
        AtomcsiError: An error is not finite.
    """
    model = load_model(judge, device)
    model.dataset()
    if "forces" not in model.predicted:
        raise InputError(judge / CARD, "tells of a model without forces to judge by", mend="set its force_weight")
    plan = {
        **{key: store.metadata["provenance"].get(key) for key in ("dataset", "split")},
        "fingerprint": store.metadata["fingerprint"],
        "structures": len(store),
        "judge": start_record(judge),
        "backbone": model.card["backbone"],
        "chunk": _CHUNK,
        "versions": versions("torch", "fairchem-core", "numpy"),
    }
    parts = resume_folder(path.with_name(path.name + ".parts"), plan)
    files = {start: parts / f"{start:09d}.h5" for start in range(0, len(store), _CHUNK)}
    chunks = {start: np.arange(start, min(start + _CHUNK, len(store))) for start in files}
    done = sum(len(chunks[start]) for start, file in files.items() if file.exists())
    title = f"score {plan['dataset']} by {plan['judge']['dataset']}"
    progress = Progress(title, total=len(store), unit="structures", done=done)
    for start, file in files.items():
        if not file.exists():
            write_difficulties(file, _difficulties(model, store, chunks[start], workers, progress), plan)
    write_difficulties(path, np.concatenate([read_difficulties(file)[0] for file in files.values()]), plan)
    remove(parts)
    progress.finish()


@torch.no_grad()
def _difficulties(
    model: TrainedModel, store: StructureLMDB, indices: np.ndarray, workers: int, progress: Progress
) -> np.ndarray:
    """Returns the difficulties of some structures, shape (indices,), float64."""
    graph = model.card["graphs"][0]
    structures = LabelledStructures(
        store, target="forces", indices=indices, graph=None if graph is None else Graph.model_validate(graph)
    )
    batches = Batches.of(structures, TrainSettings.model_validate(model.card["settings"]))
    found = []
    for loaded in map(unpacked, loader(structures, batches, collate=model.collate, workers=workers)):
        batch = loaded.atoms.to(model.device)
        # The paper's loss of forces: the length of an atom's error, averaged over a structure.
        errors = force_loss("norm", model.predict(batch).forces.double(), batch.forces.double(), batch).cpu().numpy()
        if not np.isfinite(errors).all():
            source = loaded.sources[int(np.flatnonzero(~np.isfinite(errors))[0])]
            raise AtomcsiError(f"the force error of '{source}' is not finite (look at its labels, or leave it out)")
        found.append(errors)
        progress.advance(len(batch))
    return np.concatenate(found)
