"""The catalogue of datasets: where their files come from, how they are read, split and used.

``config/datasets.yaml`` and the files of ``config/datasets/`` hold one entry per dataset, or per family of datasets
that share their files: a family's ``variants`` are laid over its own keys, ``<family>-<variant>`` is a dataset's id,
and the files are fetched once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from atomcsi.errors import ConfigError, did_you_mean
from atomcsi.registry import READERS
from atomcsi.yaml_source import Entry, YamlSource, laid_over

#: Ids never hold two hyphens or an underscore, so ``__`` separates them in file names.
ID_PATTERN = "[a-z0-9]+(-[a-z0-9]+)*"
Id = Annotated[str, StringConstraints(pattern=f"^{ID_PATTERN}$")]
Hash = Annotated[str, StringConstraints(pattern=r"^(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})$")]
Url = Annotated[str, StringConstraints(pattern=r"^https?://")]
PositiveInt = Annotated[int, Field(gt=0)]
#: A number of structures, a share of all, or whatever the other splits leave.
Amount = Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)] | Literal["rest"]
#: Units of properties; energies become eV, all others stay.
PropertyUnit = Literal[
    *("eV", "hartree", "kcal/mol", "eV/atom", "meV/atom"),
    *("1", "1/cm", "GHz", "debye", "bohr^2", "bohr^3", "cal/mol/K", "log10(GPa)"),
]
SPLITS = ("train", "val", "test")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class SourceFile(Entry):
    """A file of a dataset: where it comes from and what it must contain.

    Attributes:
        name: Its name here.
        url: Its address, or several that are tried in turn.
        path: Its place in the repository, instead of an address.
        hash: What it must contain; without it, what it contained when it was fetched first.
        unpack: Whether it is an archive to unpack, or the patterns of the members to unpack.
        into: Folder that it is unpacked into, below the dataset's.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    url: Annotated[list[Url], BeforeValidator(_as_list), Field(default_factory=list)]
    path: Path | None = None
    hash: Hash | None = None
    unpack: bool | list[str] = False
    into: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> SourceFile:
        if bool(self.url) == (self.path is not None):
            raise ValueError("needs either 'url' or 'path'")
        if self.path is not None and self.hash is None:
            raise ValueError("a packaged file needs its 'hash'")
        return self

    @property
    def members(self) -> list[str]:
        """Patterns of the members that are unpacked."""
        return self.unpack if isinstance(self.unpack, list) else ["*"] if self.unpack else []


class Units(Entry):
    """Units of the raw data; forces are energy per length."""

    energy: Literal["eV", "hartree", "kcal/mol"]
    length: Literal["angstrom", "bohr"] = "angstrom"


class ReaderSpec(BaseModel):
    """Which reader reads a dataset; further keys are the reader's own options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    format: str

    @model_validator(mode="after")
    def _known_format(self) -> ReaderSpec:
        if self.format not in READERS:
            raise ValueError(f"unknown format '{self.format}'{did_you_mean(self.format, READERS)}")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the reader."""
        return dict(self.model_extra or {})


class SourceSplit(Entry):
    """The split that the publishers made: our split name -> the source's name of the part."""

    kind: Literal["source"]
    parts: dict[Literal["train", "val", "test"], str]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that are not empty, in the order train, val, test."""
        return tuple(name for name in SPLITS if name in self.parts)


class RandomSplit(Entry):
    """A seeded random split: ``numpy.random.RandomState(seed).shuffle``, then train, val and test in turn.

    With ``by: group`` whole groups are taken until a split has at least its number of structures (ANI-1x).
    """

    kind: Literal["random"]
    by: Literal["structure", "group"] = "structure"
    train: Amount = "rest"
    val: Amount
    test: Amount = 0
    seed: int = 42

    @model_validator(mode="after")
    def _one_rest(self) -> RandomSplit:
        if [self.train, self.val, self.test].count("rest") != 1:
            raise ValueError("exactly one of train, val and test must be 'rest'")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that are not empty, in the order train, val, test."""
        return tuple(name for name in SPLITS if getattr(self, name) != 0)


class FoldSplit(Entry):
    """One of several folds, as MatBench defines them: scikit-learn's (stratified) k-fold, shuffled by ``seed``.

    The fold is the test split. What remains is shuffled by ``numpy.random.RandomState(val_seed)`` and its first part
    is the train split, as in JMP: MatBench leaves that open.

    Attributes:
        fold: Which fold, from 0.
        folds: How many there are.
        stratified: Keep the shares of the reader's groups in every fold; MatBench does so for classes.
        seed: Seed of the folds.
        val: Share of what remains that becomes the val split.
        val_seed: Seed of that.
    """

    kind: Literal["folds"]
    fold: Annotated[int, Field(ge=0)]
    folds: Annotated[int, Field(ge=2)] = 5
    stratified: bool = False
    seed: int = 18012019
    val: Annotated[float, Field(gt=0, lt=1)] = 0.1
    val_seed: int = 42

    @model_validator(mode="after")
    def _one_of_the_folds(self) -> FoldSplit:
        if self.fold >= self.folds:
            raise ValueError(f"there is no fold {self.fold}: {self.folds} folds are numbered from 0")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """All three."""
        return SPLITS


class LinearReference(Entry):
    """A linear reference that others published, in place of a fit to the data: an ``.npz`` with ``coeff``, eV by Z.

    Such files hold leftovers of the fit for elements that it never saw. Energies of atoms above ``largest`` (eV,
    either sign) are taken for that; total energies of all electrons need a larger one than those of valence electrons.
    """

    file: str
    largest: Annotated[float, Field(gt=0)] = 100.0


class Conversion(Entry):
    """How raw files become structures: all that their LMDB files depend on.

    Attributes:
        licence: SPDX name of the data's licence.
        source: Whom to cite.
        reader: The format of the files.
        units: Units of energies and lengths in them.
        properties: Scalar targets to keep, with their units.
        split: How structures are distributed over train, val and test.
        linear_reference: A published one; by default a least-squares fit to the split.
    """

    licence: str
    source: str
    reader: ReaderSpec
    units: Units
    properties: dict[str, PropertyUnit] = Field(default_factory=dict)
    split: Annotated[SourceSplit | RandomSplit | FoldSplit, Field(discriminator="kind")]
    linear_reference: LinearReference | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that are not empty, in the order train, val, test."""
        return self.split.splits


class Graph(Entry):
    """The graph that models build of a dataset's structures.

    Attributes:
        cutoff: Angstrom.
        max_neighbors: Nearest neighbours of an atom at most.
        max_neighbors_above: Fewer of them for larger structures: number of atoms that is exceeded -> neighbours.
    """

    cutoff: Annotated[float, Field(gt=0)]
    max_neighbors: PositiveInt
    max_neighbors_above: dict[PositiveInt, PositiveInt] = Field(default_factory=dict)

    def neighbors(self, natoms: np.ndarray) -> np.ndarray:
        """Returns how many neighbours an atom has at most in structures of ``natoms`` atoms, shape (structures,)."""
        neighbors = np.full(len(natoms), self.max_neighbors)
        for size, fewer in self.max_neighbors_above.items():
            neighbors = np.where(natoms > size, np.minimum(neighbors, fewer), neighbors)
        return neighbors

    def edges_at_most(self, natoms: np.ndarray, *, periodic: bool) -> np.ndarray:
        """Returns how many edges structures have if every atom has all its neighbours, shape (structures,).

        Args:
            natoms: Number of atoms of each, shape (structures,).
            periodic: Whether atoms may see several images of each other.
        """
        neighbors = self.neighbors(natoms)
        return natoms * (neighbors if periodic else np.minimum(neighbors, natoms - 1))


class Size(Entry):
    """How large a dataset is, about: what costs are estimated by until its structures are there to be counted.

    Attributes:
        train: Structures of that split; likewise ``val`` and ``test``.
        atoms: Of a structure, in the mean.
        bytes: Of the raw files, downloaded and unpacked; None if unknown. Packaged files are looked at instead.
    """

    train: PositiveInt
    val: Annotated[int, Field(ge=0)] = 0
    test: Annotated[int, Field(ge=0)] = 0
    atoms: Annotated[float, Field(gt=0)]
    bytes: PositiveInt | None = None


class Dataset(Conversion):
    """An upstream or downstream dataset; ``graph`` is the paper's, and the backbone's own where there is none."""

    title: str
    role: Literal["upstream", "downstream"]
    stand_in_for: str | None = None
    files: list[SourceFile]
    size: Size | None = None
    graph: Graph | None = None


class Catalogue(Mapping[str, Dataset]):
    """Every dataset by its id.

    Args:
        folder: The folder ``config``.

    Raises:
        ConfigError: An entry is wrong; names file, line, field and the likely meaning.
    """

    def __init__(self, folder: Path) -> None:
        self._entries: dict[str, Dataset] = {}
        self._places: dict[str, tuple[YamlSource, tuple[str, ...]]] = {}
        #: The id under which a dataset's files are kept: its own, or its family's.
        self.raw: dict[str, str] = {}
        for path in [folder / "datasets.yaml", *sorted((folder / "datasets").glob("*.yaml"))]:
            source = YamlSource(path)
            for name, loc, entry in _datasets(source):
                self._add(source, name, loc, entry)

    def __getitem__(self, name: str) -> Dataset:
        """Returns the dataset with this id."""
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        """Iterates over the ids, in the order of the files."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Number of datasets."""
        return len(self._entries)

    def error(self, name: str, loc: tuple[str | int, ...], problem: str) -> ConfigError:
        """Returns a ConfigError about what the entry of a dataset says at ``loc``."""
        source, prefix = self._places[name]
        return source.error((*prefix, *loc), problem)

    def _add(self, source: YamlSource, name: str, loc: tuple[str, ...], entry: Any) -> None:
        if name in self._entries:
            raise source.error(loc, f"the dataset '{name}' is also in {self._places[name][0].path}")
        self._entries[name] = source.parse(Dataset, entry, loc)
        self._places[name] = source, loc
        self.raw[name] = loc[0]


def _datasets(source: YamlSource) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Yields the datasets of a file: id, where its entry stands, and the entry."""
    source.check_ids(ID_PATTERN)
    for key, entry in source.content.items():
        if not isinstance(entry, dict) or "variants" not in entry:
            yield key, (key,), entry
            continue
        source.check_ids(ID_PATTERN, key, "variants")
        common = {field: value for field, value in entry.items() if field != "variants"}
        for variant, own in entry["variants"].items():
            if "files" in own:
                raise source.error((key, "variants", variant, "files"), "a family shares its files")
            yield f"{key}-{variant}", (key, "variants", variant), laid_over(common, own)
