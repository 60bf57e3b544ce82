"""Per-atom embeddings of a dataset's sample in HDF5, with the moments that CSI needs.

Layout: ``features`` (atoms, d) float32; ``numbers`` (atoms,); ``ptr`` (structures + 1,), the atoms of structure i
are ``ptr[i]:ptr[i + 1]``; ``index`` (structures,) in the LMDB file; ``multiplicity`` (structures,), how often the
sample holds it; ``source`` and ``class`` (structures,); ``moments/count``, ``moments/mean`` (d,) and
``moments/scatter`` (d, d) in float64, repetitions counted; attributes ``schema`` and ``provenance`` (JSON).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from atomcsi.config import ExtractorSpec, Sampling
from atomcsi.errors import InputError
from atomcsi.extraction import extract
from atomcsi.extractors.base import Extractor
from atomcsi.files import atomic_path, digest, remove, resume_folder, versions
from atomcsi.moments import Moments
from atomcsi.progress import Progress
from atomcsi.registry import EXTRACTORS, implementation
from atomcsi.sampling import Sample, draw
from atomcsi.structure_lmdb import StructureLMDB

SCHEMA = "atomcsi.embeddings/1"


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
    sample = draw(sampling.method, structures.classes[eligible], sampling.structures, sampling.seed)
    sample = Sample(eligible[sample.indices], sample.multiplicity)
    checkpoint = extractor.checkpoint
    plan = {
        "dataset": structures.metadata["provenance"]["dataset"],
        "split": structures.metadata["provenance"]["split"],
        "fingerprint": structures.metadata["fingerprint"],
        "extractor": name,
        "implementation": implementation(EXTRACTORS, spec.implementation),
        "options": {key: value for key, value in spec.options.items() if key != "checkpoint"},
        "checkpoint": None if checkpoint is None else digest(checkpoint, "sha256"),
        "max_atoms": spec.max_atoms,
        "max_edges": spec.max_edges,
        "chunk": spec.chunk,
        "sampling": sampling.model_dump(),
        "structures": len(structures),
        "eligible": len(eligible),
        "drawn": len(sample),
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
            with atomic_path(file) as temporary, h5py.File(temporary, "w") as part:
                part["features"] = np.concatenate(features)
                part.attrs["seconds"] = time.monotonic() - start
    _assemble(path, files, structures, sample, extractor.dim, plan)
    remove(parts)
    progress.finish()


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


def _assemble(
    path: Path, files: Sequence[Path], structures: StructureLMDB, sample: Sample, dim: int, plan: dict[str, Any]
) -> None:
    members = [structures[int(index)] for index in sample.indices]
    natoms = np.array([len(structure) for structure in members])
    atom_weights = np.repeat(sample.multiplicity, natoms)
    moments, start, seconds = Moments.zero(dim), 0, 0.0
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        shape = (int(natoms.sum()), dim)
        chunks = (min(shape[0], max(1, (1 << 20) // (4 * dim))), dim)
        target = file.create_dataset("features", shape, "<f4", chunks=chunks, compression="gzip", compression_opts=1,
                                     shuffle=True)  # fmt: skip
        for part_path in files:
            with h5py.File(part_path) as part:
                rows = part["features"][:]
                seconds += float(part.attrs["seconds"])
            stop = start + len(rows)
            target[start:stop] = rows
            moments += Moments.of(rows, atom_weights[start:stop])
            start = stop
        file["numbers"] = np.concatenate([structure.numbers for structure in members])
        file["ptr"] = np.concatenate([[0], np.cumsum(natoms)])
        file["index"] = sample.indices
        file["multiplicity"] = sample.multiplicity
        file["source"] = [structure.source for structure in members]
        file["class"] = [structure.label for structure in members]
        file["moments/count"] = moments.count
        file["moments/mean"] = moments.mean
        file["moments/scatter"] = moments.scatter
        file.attrs["schema"] = SCHEMA
        file.attrs["provenance"] = json.dumps({**plan, "atoms": moments.count, "seconds": seconds})


def read_moments(path: Path | str) -> tuple[Moments, dict[str, Any]]:
    """Reads the moments and the provenance of an embedding file.

    Raises:
        InputError: The file is missing, damaged or of another schema.
    """
    mend = "delete it and run again"
    try:
        with h5py.File(path) as file:
            if file.attrs.get("schema") != SCHEMA:
                raise InputError(path, f"holds no '{SCHEMA}'", mend=mend)
            group = file["moments"]
            moments = Moments(int(group["count"][()]), group["mean"][:], group["scatter"][:])
            return moments, json.loads(file.attrs["provenance"])
    except (OSError, KeyError) as error:
        raise InputError(path, f"cannot be read: {error}", mend=mend) from error
