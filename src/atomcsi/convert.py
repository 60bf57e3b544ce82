"""From raw files to one LMDB file per split, in eV and Angstrom: in parallel, and resumed where it was interrupted."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from atomcsi.catalogue import SPLITS, Conversion, FoldSplit, RandomSplit, SourceSplit
from atomcsi.errors import AtomcsiError, ConfigError, InputError
from atomcsi.files import remove, resume_folder
from atomcsi.progress import Progress
from atomcsi.readers.base import Reader
from atomcsi.registry import READERS, STEPS, implementation, load
from atomcsi.splits import fold_masks
from atomcsi.statistics import check_reference, read_reference
from atomcsi.structure import ENERGY_UNITS, LENGTH_UNITS
from atomcsi.structure_batch import StructureBatch
from atomcsi.structure_lmdb import StructureLMDB, write_batches
from atomcsi.structure_record import BLOCK

#: At most so many bundles of pieces: enough to share among workers and to resume from, few enough to open again.
_BUNDLES = 64
#: Structures that are held at once when bundles are put together.
_CHUNK = 4096
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Bundle:
    """Neighbouring pieces of a source, the unit of parallel and of resumed work.

    Attributes:
        entry: The dataset's :class:`~atomcsi.catalogue.Conversion` as JSON.
        raw: Folder with the raw files.
        part: The part of the source.
        pieces: Some of the reader's pieces.
        path: The LMDB file that holds their structures when it is there; empty if they have none.
    """

    entry: str
    raw: Path
    part: str | None
    pieces: Sequence[Any]
    path: Path


def convert(dataset: Conversion, name: str, raw: Path, folder: Path, *, threads: int = 1) -> dict[str, dict[str, Any]]:
    """Converts a dataset: ``<split>.lmdb`` for each of its splits; every structure is read once.

    The source is cut into bundles of pieces that can be read on their own. Worker processes turn each into a file of
    its own in the folder ``parts``, so that an interrupted run goes on with the bundles that are missing. The splits
    are put together from these and do not depend on ``threads``.

    Args:
        dataset: What the dataset's catalogue entry says of its conversion.
        name: The dataset's id.
        raw: Folder with the downloaded files.
        folder: Where the LMDB files go.
        threads: Number of worker processes; with 1 the work is done in this one.

    Returns:
        The metadata that each split's file holds.

    Raises:
        InputError: A file or a structure cannot be used.
        ConfigError: The source is too small for its split.
        AtomcsiError: A worker was killed.
    """
    _reader.cache_clear()
    work = resume_folder(folder / "parts", _plan(dataset, raw))
    try:
        parts = _parts(dataset)
        bundles = {
            part: _bundles(dataset, raw, part, work / str(number))
            for number, part in enumerate(dict.fromkeys(parts.values()))
        }
        _read_all(name, list(chain.from_iterable(bundles.values())), threads)
        members = _members_of_splits(dataset, bundles)
        written = {
            split: _assemble(dataset, name, split, raw, folder, bundles[part], members[split])
            for split, part in parts.items()
        }
    except (ConfigError, InputError):
        # Mending the input makes another plan.
        remove(work)
        raise
    remove(work)
    return written


def _parts(dataset: Conversion) -> dict[str, str | None]:
    """The part of the source that each split is or draws from; None for the whole."""
    if isinstance(dataset.split, SourceSplit):
        return {split: dataset.split.parts[split] for split in dataset.splits}
    return dict.fromkeys(dataset.splits)


def _members_of_splits(dataset: Conversion, bundles: Mapping[str | None, Sequence[_Bundle]]) -> Mapping[str, Any]:
    """For each split a mask over the structures of its part, or None if it has them all."""
    if isinstance(dataset.split, SourceSplit):
        return dict.fromkeys(dataset.splits)
    return assign_splits(dataset.split, list(chain.from_iterable(map(_groups, bundles[None]))))


def open_reader(dataset: Conversion, raw: Path, part: str | None) -> Reader:
    """Returns the reader of a dataset whose files are in the folder ``raw``."""
    return load(READERS, dataset.reader.format)(raw, part=part, **dataset.reader.options)


def assign_splits(split: RandomSplit | FoldSplit, groups: Sequence[str]) -> dict[str, np.ndarray]:
    """Distributes structures over train, val and test.

    Structures (or, with ``by: group``, groups) are shuffled by ``numpy.random.RandomState(seed)``, as JMP and the
    paper do, and dealt in the order train, val, test; a split that is ``rest`` takes what the others leave.

    Args:
        split: Sizes and seed.
        groups: Group of every structure, in the reader's order.

    Returns:
        For each split a boolean mask over the structures; the masks are disjoint and cover everything.

    Raises:
        ConfigError: There are fewer structures than the split needs.
    """
    if isinstance(split, FoldSplit):
        return fold_masks(split, groups)
    total = len(groups)
    if split.by == "structure":
        unit = np.arange(total)
    else:
        rank = {group: number for number, group in enumerate(sorted(set(groups)))}
        unit = np.fromiter(map(rank.__getitem__, groups), np.int64, total)
    sizes = np.bincount(unit)
    order = np.arange(len(sizes))
    np.random.RandomState(split.seed).shuffle(order)
    place = np.argsort(order)
    before_unit = np.concatenate([[0], np.cumsum(sizes[order])])

    wanted = {
        part: int(amount * total) if isinstance(amount, float) else amount
        for part in SPLITS
        if (amount := getattr(split, part)) != "rest"
    }
    if sum(wanted.values()) >= total:
        raise ConfigError(f"split: leaves nothing of {total} structures for the rest")
    rest = next(part for part in SPLITS if part not in wanted)
    # Dealt from both ends, so that train, val and test stay in this order whichever of them is the rest.
    start, stop, ranges = 0, len(order), {}
    for part in SPLITS[: SPLITS.index(rest)]:
        end = int(np.searchsorted(before_unit, before_unit[start] + wanted[part]))
        ranges[part], start = (start, end), end
    for part in reversed(SPLITS[SPLITS.index(rest) + 1 :]):
        begin = int(np.searchsorted(before_unit, before_unit[stop] - wanted[part], side="right")) - 1
        ranges[part], stop = (begin, stop), begin
    if start >= stop:
        raise ConfigError(f"split: by {split.by} leaves nothing for {rest}")
    ranges[rest] = (start, stop)
    return {part: (ranges[part][0] <= place[unit]) & (place[unit] < ranges[part][1]) for part in SPLITS}


def _plan(dataset: Conversion, raw: Path) -> dict[str, Any]:
    """Everything that bundles depend on; of the raw files their names, sizes and times."""
    files = hashlib.sha256()
    for path in sorted(raw.rglob("*")):
        status = path.stat()
        files.update(f"{path.relative_to(raw)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return {
        "conversion": dataset.model_dump(mode="json"),
        "implementation": [implementation(READERS, dataset.reader.format), f"convert@{STEPS['convert']}"],
        "raw": files.hexdigest(),
    }


def _bundles(dataset: Conversion, raw: Path, part: str | None, folder: Path) -> list[_Bundle]:
    """Returns the bundles of a part of the source, in its order."""
    entry = dataset.model_dump_json()
    pieces = _reader(entry, raw, part).pieces()
    size = -(-len(pieces) // _BUNDLES)
    return [
        _Bundle(entry, raw, part, pieces[start : start + size], folder / f"{start:07d}.lmdb")
        for start in range(0, len(pieces), size or 1)
    ]


def _read_all(name: str, bundles: Sequence[_Bundle], threads: int) -> None:
    """Makes the files of those bundles that have none."""
    missing = [bundle for bundle in bundles if not bundle.path.exists()]
    if len(missing) < len(bundles):
        logger.info("convert %s: resumes at %d of %d parts", name, len(bundles) - len(missing), len(bundles))
    progress = Progress(f"convert {name}", unit="structures")
    threads = min(threads, len(missing))
    if threads < 2:
        for bundle in missing:
            _read(bundle, progress)
    else:
        # Spawned, for libraries that run threads do not survive a fork.
        with ProcessPoolExecutor(threads, get_context("spawn"), initializer=_end_with_parent) as pool:
            try:
                for position, structures in enumerate(pool.map(_read, missing)):
                    progress.advance(structures, f"part {position + 1} of {len(missing)}")
            except BrokenProcessPool as error:
                mend = "give the job more memory, or fewer threads, and run again"
                raise AtomcsiError(f"convert {name}: a worker process was killed ({mend})") from error
            finally:
                pool.shutdown(cancel_futures=True)
    progress.finish()


def _read(bundle: _Bundle, progress: Progress | None = None) -> int:
    """Makes the file of a bundle and returns how many structures it holds."""
    batches = _batches(bundle)
    if progress is not None:
        batches = progress.counting(batches)
    first = next(batches, None)
    if first is None:
        bundle.path.parent.mkdir(parents=True, exist_ok=True)
        bundle.path.touch()
        return 0
    return write_batches(bundle.path, chain([first], batches), provenance={})["structures"]


def _batches(bundle: _Bundle) -> Iterator[StructureBatch]:
    """Yields the structures of a bundle, checked and in eV and Angstrom."""
    dataset = Conversion.model_validate_json(bundle.entry)
    reference = _reference(dataset, bundle.raw)
    energy, length = ENERGY_UNITS[dataset.units.energy], LENGTH_UNITS[dataset.units.length]
    factors = [ENERGY_UNITS.get(unit, 1.0) for unit in dataset.properties.values()]
    structures = _reader(bundle.entry, bundle.raw, bundle.part).read(bundle.pieces)
    while members := list(islice(structures, BLOCK)):
        try:
            batch = StructureBatch.of(members, tuple(dataset.properties))
        except ValueError as error:
            source, problem = next(((s.source, p) for s in members if (p := s.problem())), ("", str(error)))
            mend = "remove the record or download the file again"
            raise InputError(bundle.raw, problem, record=source, mend=mend) from error
        if reference is not None:
            check_reference(reference, batch, bundle.raw / dataset.linear_reference.file)
        yield batch.in_base_units(energy, length, factors)


def _reference(dataset: Conversion, raw: Path) -> np.ndarray | None:
    if dataset.linear_reference is None:
        return None
    return read_reference(raw / dataset.linear_reference.file, dataset.linear_reference.largest)


def _groups(bundle: _Bundle) -> Iterable[str]:
    """The group of every structure of a bundle."""
    if bundle.path.stat().st_size == 0:
        return []
    store = StructureLMDB(bundle.path)
    names = store.metadata["groups"]
    return (names[number] for number in store.groups.tolist())


def _assemble(
    dataset: Conversion,
    name: str,
    split: str,
    raw: Path,
    folder: Path,
    bundles: Sequence[_Bundle],
    members: np.ndarray | None,
) -> dict[str, Any]:
    """Writes a split: all structures of the bundles, or those that the mask ``members`` says."""
    reference = _reference(dataset, raw)
    provenance = {"dataset": name, "split": split, "licence": dataset.licence, "source": dataset.source}
    if reference is not None:
        provenance["linear_reference"] = dataset.linear_reference.file
    total = None if members is None else int(members.sum())
    progress = Progress(f"write {name} {split}", total=total, unit="structures")
    metadata = write_batches(
        folder / f"{split}.lmdb",
        progress.counting(_members(bundles, members)),
        provenance=provenance,
        reference=None if reference is None else np.nan_to_num(reference),
    )
    progress.finish()
    return metadata


def _members(bundles: Sequence[_Bundle], members: np.ndarray | None) -> Iterator[StructureBatch]:
    """Yields the structures of the bundles that the mask says; all without one."""
    start = 0
    for bundle in bundles:
        if bundle.path.stat().st_size == 0:
            continue
        store = StructureLMDB(bundle.path)
        stop = start + len(store)
        chosen = np.arange(len(store)) if members is None else np.flatnonzero(members[start:stop])
        for position in range(0, len(chosen), _CHUNK):
            yield store.read_batch(chosen[position : position + _CHUNK])
            store.release()
        start = stop


@cache
def _reader(entry: str, raw: Path, part: str | None) -> Reader:
    """A reader is kept during a conversion, for some hold large tables of labels."""
    return open_reader(Conversion.model_validate_json(entry), raw, part)


def _end_with_parent() -> None:
    """Makes a worker end when its parent is killed, instead of waiting for work forever."""

    def watch() -> None:
        connection.wait([parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
