"""Embeds a sample of a dataset: which structures, in which order, resumable chunk by chunk."""

from __future__ import annotations

import time
from concurrent.futures import Executor
from pathlib import Path

import h5py
import numpy as np

from atomcsi.config import ExtractorSpec, Sampling
from atomcsi.embeddings import EmbeddingWriter
from atomcsi.errors import InputError
from atomcsi.extraction import extract
from atomcsi.extractors.base import Extractor
from atomcsi.files import digest, remove, resume_folder, versions
from atomcsi.hdf5_file import add_checked, described, new_hdf5
from atomcsi.progress import Progress
from atomcsi.registry import EXTRACTORS, implementation
from atomcsi.sampling import Sample, draw, into_blocks
from atomcsi.structure_lmdb import StructureLMDB


def embed(
    structures: StructureLMDB,
    path: Path,
    *,
    extractor: Extractor,
    name: str,
    spec: ExtractorSpec,
    sampling: Sampling,
    pool: Executor | None = None,
) -> None:
    """Embeds a sample of the structures and writes features and moments.

    The work is cut into chunks of ``spec.chunk`` structures. Each becomes a file of its own in the folder
    ``<path>.parts``, so that an interrupted run resumes behind the last whole chunk, with the same result.

    Args:
        structures: The dataset's train split.
        path: The HDF5 file to write.
        extractor: What turns structures into features.
        name: The extractor's id.
        spec: Its entry, which it was built from.
        sampling: Which structures are drawn.
        pool: Processes with the same extractor; None to work in this process.

    Raises:
        InputError: No structure passes the sampling's filter.
    """
    eligible = _eligible(structures, extractor, sampling)
    classes = structures.classes[eligible]
    sample = draw(sampling.method, classes, sampling.structures, sampling.seed)
    order, block_ptr = into_blocks(sample, classes, sampling.blocks, sampling.resample, sampling.method, sampling.seed)
    sample = Sample(eligible[sample.indices[order]], sample.multiplicity[order])
    checkpoint = extractor.checkpoint
    plan = {
        "dataset": structures.metadata["provenance"]["dataset"],
        "split": structures.metadata["provenance"]["split"],
        "fingerprint": structures.metadata["fingerprint"],
        "extractor": name,
        "implementation": implementation(EXTRACTORS, spec.implementation),
        "options": {key: value for key, value in spec.options.items() if key != "checkpoint"},
        "checkpoint": None if checkpoint is None else digest(checkpoint, "sha256"),
        "invariant_dim": extractor.invariant_dim,
        "max_atoms": spec.max_atoms,
        "max_edges": spec.max_edges,
        "chunk": spec.chunk,
        "sampling": sampling.model_dump(),
        "structures": len(structures),
        "eligible": len(eligible),
        "drawn": len(sample),
        "distinct": len(sample.indices),
        "versions": versions("torch", "numpy", "matscipy", "sevenn", "chgnet", "fairchem-core"),
    }
    parts = resume_folder(path.with_name(path.name + ".parts"), plan)

    chunks = np.array_split(np.arange(len(sample.indices)), -(-len(sample.indices) // spec.chunk))
    files = [parts / f"{position:06d}.h5" for position in range(len(chunks))]
    done = sum(len(chunk) for chunk, file in zip(chunks, files, strict=True) if file.exists())
    progress = Progress(f"embed {plan['dataset']}", total=len(sample.indices), unit="structures", done=done)
    for chunk, file in zip(chunks, files, strict=True):
        if not file.exists():
            start = time.monotonic()
            members = [structures[int(index)] for index in sample.indices[chunk]]
            features = extract(
                members, extractor, max_atoms=spec.max_atoms, max_edges=spec.max_edges, pool=pool, progress=progress
            )
            rows = np.concatenate(features)
            with new_hdf5(file, rows.nbytes) as part:
                add_checked(part, "features", rows)
                part.attrs["seconds"] = time.monotonic() - start

    members = [structures[int(index)] for index in sample.indices]
    ptr = np.concatenate([[0], np.cumsum([len(structure) for structure in members])])
    facts = {
        "numbers": np.concatenate([structure.numbers for structure in members]),
        "index": sample.indices,
        "source": [structure.source for structure in members],
        "class": [structure.label for structure in members],
    }
    size = EmbeddingWriter.size(ptr, block_ptr, extractor.dim) + sum(np.asarray(fact).nbytes for fact in facts.values())
    with new_hdf5(path, size) as file:
        writer = EmbeddingWriter(
            file, ptr=ptr, block_ptr=block_ptr, multiplicity=sample.multiplicity, dim=extractor.dim
        )
        seconds = 0.0
        for part_path in files:
            features, taken = _read_part(part_path)
            writer.append(features)
            seconds += taken
        for name, fact in facts.items():
            add_checked(file, name, fact)
        writer.finish({**plan, "seconds": seconds})
    remove(parts)
    progress.finish()


def _read_part(path: Path) -> tuple[np.ndarray, float]:
    """Returns the features of a chunk, shape (atoms, d), and the seconds that they took."""
    try:
        with h5py.File(path) as part:
            return part["features"][:], float(part.attrs["seconds"])
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(path, described(error), mend="delete it and run again") from error


def _eligible(structures: StructureLMDB, extractor: Extractor, sampling: Sampling) -> np.ndarray:
    """Positions of the structures that the paper's filter and the extractor admit."""
    admitted = {z for z in extractor.elements if z <= sampling.max_atomic_number}
    natoms = structures.natoms
    mask = natoms >= sampling.min_atoms
    if not {int(z) for z in structures.metadata["elements"]} <= admitted:
        allowed = np.zeros(256, bool)
        allowed[sorted(admitted)] = True
        mask &= np.fromiter((allowed[s.numbers].all() for s in structures), bool, len(structures))
    if not mask.any():
        problem = f"holds no structure with at least {sampling.min_atoms} atoms of the elements that are embedded"
        raise InputError(structures.path, problem, mend="see `embedding` in the run config")
    return np.flatnonzero(mask)
