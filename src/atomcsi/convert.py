"""From raw files to one LMDB file per split, in eV and Angstrom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atomcsi.catalogue import SPLITS, Conversion, FoldSplit, RandomSplit, SourceSplit
from atomcsi.errors import ConfigError, InputError
from atomcsi.progress import Progress
from atomcsi.readers.base import Reader
from atomcsi.registry import READERS, load
from atomcsi.splits import fold_masks
from atomcsi.structure import ENERGY_UNITS, LENGTH_UNITS, Structure
from atomcsi.structure_lmdb import write_structures


def convert(dataset: Conversion, name: str, split: str, raw: Path, path: Path) -> dict[str, Any]:
    """Converts one split of a dataset.

    Args:
        dataset: What the dataset's catalogue entry says of its conversion.
        name: The dataset's id.
        split: Name of the split: train, val or test.
        raw: Folder with the downloaded files.
        path: The LMDB file to write.

    Returns:
        The metadata that the file holds.

    Raises:
        InputError: A file or a structure cannot be used.
    """
    part = dataset.split.parts[split] if isinstance(dataset.split, SourceSplit) else None
    structures: Iterator[Structure] = _checked(open_reader(dataset, raw, part), raw)
    total = None
    if not isinstance(dataset.split, SourceSplit):
        counted = Progress(f"count {name}", unit="structures")
        groups = list(counted.over(open_reader(dataset, raw, None).groups()))
        members = assign_splits(dataset.split, groups)[split]
        structures, total = _only(structures, members), int(members.sum())
    progress = Progress(f"convert {name} {split}", total=total, unit="structures")
    return write_structures(
        path,
        progress.over(_in_base_units(structures, dataset)),
        property_names=list(dataset.properties),
        provenance={"dataset": name, "split": split, "licence": dataset.licence, "source": dataset.source},
    )


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
        unit = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
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


def _only(structures: Iterator[Structure], members: np.ndarray) -> Iterator[Structure]:
    return (structure for structure, member in zip(structures, members, strict=True) if member)


def _checked(reader: Reader, raw: Path) -> Iterator[Structure]:
    for structure in reader:
        if problem := structure.problem():
            mend = "remove the record or download the file again"
            raise InputError(raw, problem, record=structure.source, mend=mend)
        yield structure


def _in_base_units(structures: Iterator[Structure], dataset: Conversion) -> Iterator[Structure]:
    energy, length = ENERGY_UNITS[dataset.units.energy], LENGTH_UNITS[dataset.units.length]
    factors = {name: ENERGY_UNITS.get(unit, 1.0) for name, unit in dataset.properties.items()}
    for structure in structures:
        structure = structure.in_base_units(energy, length)
        structure.properties = {name: structure.properties[name] * factors[name] for name in factors}
        yield structure
