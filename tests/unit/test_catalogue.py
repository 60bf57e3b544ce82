"""The catalogue of datasets: every entry can be opened, families share their files, mistakes are named."""

import inspect
from collections import Counter
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from atomcsi.catalogue import Catalogue, FoldSplit, RandomSplit, SourceFile
from atomcsi.convert import open_reader
from atomcsi.errors import ConfigError
from atomcsi.project import load_project
from atomcsi.registry import READERS, load


@pytest.fixture(scope="module")
def catalogue():
    return Catalogue(Path(__file__).parents[2] / "config")


def test_every_dataset_of_the_paper_is_there(catalogue):
    assert {"ani1x", "transition1x", "oc20-200k", "oc20-2m", "oc22", "omat24-rattled-300", "qm9", "qmof"} <= set(
        catalogue
    )
    assert catalogue["omat24-rattled-300"].files[1] == catalogue["omat24-rattled-300-val"].files[0]
    families = Counter(name.partition("-")[0] for name in catalogue if not name.endswith("-mini"))
    # 9 tasks of MatBench with 5 folds each; SPICE's two subsets and two releases.
    assert (families["rmd17"], families["md22"], families["spice"], families["matbench"]) == (10, 7, 4, 45)


def test_every_entry_fits_its_reader(catalogue, tmp_path):
    for name, dataset in catalogue.items():
        reader = load(READERS, dataset.reader.format)
        inspect.signature(reader).bind(tmp_path, part=None, **dataset.reader.options)
        open_reader(dataset, tmp_path, "train")
        assert set(dataset.properties) <= reader.properties, name
        assert {"train", "val"} <= set(dataset.splits), name
        if not name.endswith("-mini"):
            assert dataset.graph is not None, name
            assert dataset.role == "upstream" or "test" in dataset.splits, name


def test_what_the_publishers_hashed_is_checked(catalogue):
    """Figshare's MD5 of ANI-1x, fairchem's of OC20 and OC22, matminer's SHA-256 of MatBench, ..."""
    unhashed = {file.name for dataset in catalogue.values() for file in dataset.files if file.hash is None}
    md22 = {file.name for name in catalogue if name.startswith("md22-") for file in catalogue[name].files}
    others = {"transition1x-release.h5", "train.tar.gz", "val.tar.gz", "uncharacterized.txt", "13147324.zip"}
    spice = {"solvated_amino_acids.h5", "dipeptides.h5"}
    assert unhashed == (md22 - {"md22-mini"}) | others | spice


def test_the_published_sizes_of_the_splits(catalogue):
    """JMP's and sGDML's, with the number of structures that their papers give."""
    sizes = {
        "rmd17-aspirin": (950, 50, "rest"),
        "md22-ac-ala3-nhme": (5700, 300, "rest"),
        "md22-double-walled-nanotube": (760, 40, "rest"),
        "qm9": ("rest", 10_000, 10_000),
        "ani1x": ("rest", 495_600, 495_600),
    }
    for name, expected in sizes.items():
        split = catalogue[name].split
        assert isinstance(split, RandomSplit) and split.seed == 42
        assert (split.train, split.val, split.test) == expected


def test_matbench_folds(catalogue):
    for name, dataset in catalogue.items():
        if name.startswith("matbench-") and not name.endswith("-mini"):
            assert dataset.split == FoldSplit(
                kind="folds", fold=int(name[-1]), seed=18012019, stratified="is-metal" in name
            )


def test_a_family_shares_its_files(catalogue):
    assert {catalogue.raw[name] for name in catalogue if name.startswith("rmd17-") and name != "rmd17-mini"} == {
        "rmd17"
    }
    assert catalogue.raw["matbench-mp-gap-fold3"] == "matbench-mp-gap"
    assert catalogue.raw["qm9"] == "qm9"
    assert catalogue["rmd17-uracil"].files == catalogue["rmd17-aspirin"].files


def test_paper_config(repository):
    project = load_project(path=repository / "config" / "paper.yaml", root=repository)
    assert project.run.pretrain.budget == 10_000_000
    assert project.datasets["qmof"].graph.max_neighbors_above == {200: 10, 300: 5}
    assert project.datasets["oc22"].linear_reference.file == "oc22_linfit_coeffs.npz"


ENTRY = {
    "title": "mine",
    "role": "downstream",
    "licence": "CC0-1.0",
    "source": "me",
    "files": [],
    "reader": {"format": "user"},
    "units": {"energy": "eV"},
    "split": {"kind": "random", "val": 1},
    "variants": {"a": {"reader": {"file": "a.xyz"}}, "b": {"reader": {"file": "b.xyz"}, "title": "yours"}},
}


@pytest.fixture
def config(tmp_path):
    """Writes entries to ``datasets.yaml`` and further files, and loads them."""

    def make(entries, **further):
        (tmp_path / "datasets.yaml").write_text(yaml.safe_dump(entries, sort_keys=False))
        (tmp_path / "datasets").mkdir(exist_ok=True)
        for name, content in further.items():
            (tmp_path / "datasets" / f"{name}.yaml").write_text(yaml.safe_dump(content))
        return Catalogue(tmp_path)

    return make


def test_variants_are_laid_over_their_family(config):
    catalogue = config({"mine": ENTRY}, more={"other": {k: v for k, v in ENTRY.items() if k != "variants"}})
    assert list(catalogue) == ["mine-a", "mine-b", "other"]
    assert [catalogue[name].title for name in catalogue] == ["mine", "yours", "mine"]
    assert catalogue["mine-b"].reader.options == {"file": "b.xyz"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {"a": {"units": {"energy": "ev"}}}}, r"datasets.yaml:\d+: mine.variants.a.units.energy: .*'eV'"),
        ({"variants": {"a": {"file": "a.xyz"}}}, r"mine.variants.a.file: unknown key; did you mean 'files'"),
        ({"variants": {"A": {}}}, r"mine.variants.A: an id has lower-case letters"),
        ({"variants": {"a": 1}}, r"mine.variants.a: must hold 'key: value' entries"),
        ({"variants": ["a"]}, r"mine.variants: must hold 'id: entry' pairs"),
        ({"variants": {"a": {"files": []}}}, r"mine.variants.a.files: a family shares its files"),
        ({"files": [{"name": "x"}]}, r"files.0: needs either 'url' or 'path'"),
        ({"files": [{"name": "x", "url": "ftp://x"}]}, r"files.0.url.0: "),
        ({"files": [{"name": "x", "path": "x"}]}, r"files.0: a packaged file needs its 'hash'"),
        ({"split": {"kind": "folds", "fold": 5}}, r"split: there is no fold 5: 5 folds are numbered from 0"),
        ({"split": {"kind": "fold", "fold": 1}}, r"split: "),
    ],
)
def test_mistakes(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        config({"mine": ENTRY | changes})


def test_the_same_id_twice(config):
    with pytest.raises(ConfigError, match=r"more.yaml:1: mine-a: the dataset 'mine-a' is also in .*datasets.yaml"):
        config({"mine": ENTRY}, more={"mine-a": {k: v for k, v in ENTRY.items() if k != "variants"}})


def test_urls_and_patterns():
    file = SourceFile(name="x.zip", url="https://a.example/x.zip", unpack=True)
    assert (file.url, file.members) == (["https://a.example/x.zip"], ["*"])
    assert SourceFile(name="x.zip", url=["http://a.example/x"], unpack=["*.npz"]).members == ["*.npz"]
    with pytest.raises(ValidationError):
        SourceFile(name="../x.zip", url="https://a.example/x.zip")
