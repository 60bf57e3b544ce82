"""Compares datasets that a user brings: which candidate is nearest to mine, and how sure is that.

Everything costly is kept in a cache folder by its content: a file is read once and embedded once, whatever it is
called and however often it is compared.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from ase import Atoms
from filelock import FileLock
from loky import cpu_count
from platformdirs import user_cache_path

from atomcsi.config import Sampling, extractor_catalogue
from atomcsi.distances.base import Distance
from atomcsi.embed import embed
from atomcsi.embeddings import Embedding
from atomcsi.errors import AtomcsiError, ConfigError, InputError, did_you_mean
from atomcsi.extraction import build_extractor, worker_pool
from atomcsi.extractors.base import Extractor
from atomcsi.files import digest
from atomcsi.measure import distance_table, measure
from atomcsi.mixtures import measure_mixes
from atomcsi.progress import Progress
from atomcsi.readers.ase_files import of_atoms
from atomcsi.readers.user import open_structures
from atomcsi.registry import DISTANCES, EXTRACTORS, STEPS, implementation, load
from atomcsi.sampling import Aggregation, Method, Resample
from atomcsi.structure import Structure, hill_formula
from atomcsi.structure_lmdb import StructureLMDB, write_structures

#: A file or folder in any format of :mod:`atomcsi.readers.user`, an embedding file of ours, or structures in memory.
Source = Path | str | Atoms | Iterable[Atoms]
#: Structures that are split among the parts of a mix.
_MIXED = 1000
#: Fewer structures than these are embedded before another process has started.
_STRUCTURES_PER_PROCESS = 500


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Attributes:
        measured: The distances, as :func:`atomcsi.measure.measure` returns them.
        mixes: Mixes of the candidates, as :func:`atomcsi.mixtures.measure_mixes` returns them; None for a single
            candidate, and for other distances than CSI.
        pairwise: Distance of the datasets in columns (upstream) to those in rows (downstream).
        embeddings: The embeddings by dataset, mine first.
    """

    measured: Mapping[str, Any]
    mixes: Mapping[str, Any] | None
    pairwise: pd.DataFrame
    embeddings: Mapping[str, Embedding]

    @property
    def selected(self) -> str:
        """The nearest candidate."""
        return self.measured["upstreams"][0]["upstream"]

    @property
    def p_best(self) -> float | None:
        """Probability that it is the nearest; None where there is no error bar."""
        return self.measured["upstreams"][0]["p_best"]

    @property
    def table(self) -> pd.DataFrame:
        """A row per candidate, the nearest first, with the columns of ``results/csi_matrix.csv``."""
        return distance_table([self.measured])

    def __str__(self) -> str:
        """The ranked table as text."""
        from atomcsi.report.comparison_page import as_text

        return as_text(self)

    def write(self, path: Path | str) -> list[Path]:
        """Writes the comparison as a self-contained page (``.html``), with ``.csv`` and ``.json`` beside it.

        Returns:
            The files.
        """
        from atomcsi.report.comparison_page import write_comparison

        return write_comparison(self, Path(path))


def compare(
    mine: Source,
    *candidates: Source,
    names: Sequence[str] | None = None,
    extractor: str = "sevennet-0",
    checkpoint: Path | str | None = None,
    structures: int = 10_000,
    sampling: Method = "balanced",
    distance: str = "frechet",
    aggregation: Aggregation = "flat",
    resample: Resample = "structures",
    seed: int = 0,
    device: str = "auto",
    processes: int | None = None,
    cache: Path | str | None = None,
) -> Comparison:
    """Compares candidates to pretrain on with a dataset of mine.

    Args:
        mine: The dataset that a model is wanted for.
        candidates: One or more datasets.
        names: What to call them, mine first; by default the names of their files.
        extractor: Id of the extractor, of those that come with atomcsi.
        checkpoint: File with its weights, for extractors that need one.
        structures: How many structures of each dataset are embedded at most.
        sampling: How they are drawn from candidates (:func:`atomcsi.sampling.draw`), by formula; mine are drawn at
            random.
        distance: Id of the distance.
        aggregation: Whether atoms are compared or structures, see :class:`Embedding`.
        resample: What error bars take as independent: ``structures`` or, if those of a formula are much alike,
            ``classes``.
        seed: Seed of every random choice.
        device: ``cpu``, a GPU in PyTorch's terms, or ``auto``: a GPU if there is one.
        processes: Processes that embed; by default as many as pay, up to the number of processors.
        cache: Folder of the cache; by default the system's, or ``ATOMCSI_CACHE``.

    Raises:
        AtomcsiError: Something cannot be read or embedded; an InputError or ConfigError that says what.
    """
    if not candidates:
        raise AtomcsiError("there is nothing to compare with: name at least one candidate")
    _require(distance, DISTANCES, "distance")
    _require(sampling, get_args(Method), "sampling")
    _require(aggregation, get_args(Aggregation), "aggregation")
    _require(resample, get_args(Resample), "resample")
    for name, number, least in (
        ("structures", structures, 1),
        ("seed", seed, 0),
        ("processes", 1 if processes is None else processes, 1),
    ):
        if number < least:
            raise ConfigError(f"{name} is {number}, but must be at least {least}")
    device = _device(device)
    sources = dict(zip(_names((mine, *candidates), names), (mine, *candidates), strict=True))
    options = {"structures": structures, "seed": seed, "resample": resample, "min_atoms": 1, "max_atomic_number": 118}
    embedder = _Embedder(
        extractor, checkpoint, device=device, processes=processes, cache=Path(cache) if cache else _cache()
    )
    embeddings = {}
    for i, (name, source) in enumerate(sources.items()):
        method = "random" if i == 0 else sampling
        with _naming(name, embedder.cache):
            path = embedder.file(source, name, {"method": method, **options})
        embeddings[name] = Embedding(path, aggregation, name)
    target, *others = embeddings.values()
    measured = measure(others, target, distance=distance, device=device, seed=seed)
    mixable = len(others) > 1 and distance == "frechet" and aggregation == "flat"
    return Comparison(
        measured=measured,
        mixes=measure_mixes(others, target, structures=_MIXED, device=device) if mixable else None,
        pairwise=_pairwise(embeddings, load(DISTANCES, distance)(device=device, seed=seed)),
        embeddings=embeddings,
    )


def _require(name: str, known: Iterable[str], kind: str) -> None:
    if name not in known:
        raise ConfigError(f"unknown {kind} '{name}'{did_you_mean(name, known)}")


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"the device '{name}' cannot be used: {str(error).splitlines()[0]}") from None
    return name


@contextmanager
def _naming(name: str, cache: Path) -> Iterator[None]:
    """Lets errors speak of the dataset instead of its files in the cache."""
    try:
        yield
    except InputError as error:
        if not Path(error.path).is_relative_to(cache):
            raise
        raise AtomcsiError(f"{name}: {error.problem}") from None


def _names(sources: Sequence[Source], names: Sequence[str] | None) -> list[str]:
    if names is None:
        found = [_stem(Path(s)) if isinstance(s, Path | str) else "" for s in sources]
        names = [name or ("mine" if i == 0 else f"candidate {i}") for i, name in enumerate(found)]
        # Files of one name are told apart by their folders.
        names = [
            f"{Path(source).absolute().parent.name}/{name}" if names.count(name) > 1 and found[i] else name
            for i, (name, source) in enumerate(zip(names, sources, strict=True))
        ]
    if len(names) != len(sources):
        raise AtomcsiError(f"{len(names)} names are given for {len(sources)} datasets")
    if len(set(names)) != len(names):
        raise AtomcsiError(f"two datasets have the same name: {', '.join(names)} (name them: mine first)")
    return list(names)


def _stem(path: Path) -> str:
    """Name of a file without its ending, of which a compressed file has two; of a folder as it is."""
    if path.is_dir():
        return path.name
    return path.with_suffix("").stem if path.suffix in (".bz2", ".gz", ".xz") else path.stem


def _cache() -> Path:
    return Path(os.environ.get("ATOMCSI_CACHE") or user_cache_path("atomcsi"))


class _Embedder:
    """Embeds sources with one extractor, which is built only if something is not in the cache yet."""

    def __init__(
        self, name: str, checkpoint: Path | str | None, *, device: str, processes: int | None, cache: Path
    ) -> None:
        catalogue = extractor_catalogue()
        _require(name, catalogue, "extractor")
        self.name, self.spec = name, catalogue[name]
        self.checkpoint = Path(checkpoint) if checkpoint else None
        if load(EXTRACTORS, self.spec.implementation).needs_checkpoint and self.checkpoint is None:
            raise ConfigError(f"the extractor '{name}' needs the file with its weights (--checkpoint)")
        if self.checkpoint is not None and not self.checkpoint.is_file():
            raise ConfigError(f"{self.checkpoint}: no such checkpoint")
        self._device, self._processes, self.cache = device, processes, cache
        self._extractor: Extractor | None = None

    def file(self, source: Source, name: str, sampling: Mapping[str, Any]) -> Path:
        """Returns the embedding file of a source, from the cache if it is there."""
        if isinstance(source, Path | str) and Path(source).suffix == ".h5":
            return Path(source)
        store = _store(source, name, self.cache / "structures")
        # A sample as large as the dataset may still leave some out and repeat others, to balance the formulae.
        sampling = {**sampling, "structures": min(sampling["structures"], len(store))}
        settings = {
            "fingerprint": store.metadata["fingerprint"],
            "extractor": self.spec.model_dump(mode="json"),
            "checkpoint": None if self.checkpoint is None else digest(self.checkpoint, "sha256"),
            "implementation": [implementation(EXTRACTORS, self.spec.implementation), STEPS["embed"]],
            "sampling": sampling,
        }
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        path = self.cache / "embeddings" / self.name / f"{key}.h5"
        with _locked(path):
            if not path.exists():
                self._embed(store, path, Sampling.model_validate(sampling))
        return path

    def _embed(self, store: StructureLMDB, path: Path, sampling: Sampling) -> None:
        if self._extractor is None:
            self._extractor = build_extractor(self.spec, self.checkpoint, self._device)
        with worker_pool(
            self.spec, self._workers(sampling.structures), checkpoint=self.checkpoint, device=self._device
        ) as pool:
            embed(
                store,
                path,
                extractor=self._extractor,
                name=self.name,
                spec=self.spec,
                sampling=sampling,
                pool=pool,
            )

    def _workers(self, structures: int) -> int:
        if self._processes is not None:
            return self._processes
        processors = cpu_count() if self._device == "cpu" else 1
        return max(1, min(processors, structures // _STRUCTURES_PER_PROCESS))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lets one process at a time make a file of the cache; the lock of one that is killed is free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        yield


def _store(source: Source, name: str, folder: Path) -> StructureLMDB:
    """Returns the source's structures as an LMDB file, from the cache if it is there."""
    if isinstance(source, Path | str):
        reader = open_structures(source)
        content = hashlib.sha256(f"read@{STEPS['convert']}".encode())
        for path in reader.pieces():
            content.update(f"{path.name} {digest(path, 'sha256')}".encode())
        path = folder / f"{content.hexdigest()}.lmdb"
        with _locked(path):
            if not path.exists():
                _write(reader, name, path)
        return StructureLMDB(path)
    # What is in memory is known by what is written of it.
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{uuid.uuid4().hex}.lmdb"
    try:
        _write(_structures(source, name), name, temporary)
        path = folder / f"{StructureLMDB(temporary).metadata['fingerprint']}.lmdb"
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return StructureLMDB(path)


def _write(structures: Iterable[Structure], name: str, path: Path) -> None:
    progress = Progress(f"read {name}", unit="structures")
    write_structures(path, progress.over(structures), provenance={"dataset": name, "split": "all"})


def _structures(source: Atoms | Iterable[Atoms], name: str) -> Iterator[Structure]:
    if not isinstance(source, Iterable):
        kinds = "a path, ase.Atoms, or an iterable of them"
        raise AtomcsiError(f"{name}: is of the type {type(source).__name__} (give {kinds})")
    # Atoms are an iterable too, of their atoms.
    for index, each in enumerate([source] if isinstance(source, Atoms) else source):
        if not isinstance(each, Atoms):
            raise AtomcsiError(f"{name}: structure {index} is of the type {type(each).__name__}, not ase.Atoms")
        structure = of_atoms(each, str(index))
        if problem := structure.problem():
            raise AtomcsiError(f"{name}: structure {index} {problem}")
        structure.label = hill_formula(structure.numbers)
        yield structure


def _pairwise(embeddings: Mapping[str, Embedding], distance: Distance) -> pd.DataFrame:
    names = list(embeddings)
    table = pd.DataFrame(0.0, index=names, columns=names)
    for a, b in itertools.permutations(names, 2):
        known = distance.symmetric and names.index(b) < names.index(a)
        table.loc[a, b] = table.loc[b, a] if known else distance.pair(embeddings[b], embeddings[a]).value().value
    return table
