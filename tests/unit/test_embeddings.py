import h5py
import numpy as np
import pytest

from atomcsi.config import ExtractorSpec, Sampling
from atomcsi.embed import embed
from atomcsi.embeddings import Embedding, packed, unpacked
from atomcsi.errors import InputError
from atomcsi.extractors.base import Extractor
from atomcsi.extractors.composition import CompositionExtractor
from atomcsi.moments import Moments

SAMPLING = Sampling(method="balanced", structures=30)


class Counting(Extractor):
    """Features with a known value that count their calls and can be told to stop."""

    dim = 2
    elements = frozenset(range(1, 119))

    def __init__(self, stop_after: int | None = None):
        super().__init__()
        self.seen, self.stop_after = 0, stop_after

    def _rows(self, structures):
        self.seen += len(structures)
        if self.stop_after is not None and self.seen > self.stop_after:
            raise KeyboardInterrupt
        return np.concatenate([np.stack([s.numbers, s.positions[:, 0]], axis=1) for s in structures])


def run(store, path, extractor, sampling=SAMPLING, **changes):
    spec = ExtractorSpec(implementation="composition", max_atoms=20, chunk=7)
    sampling = sampling.model_copy(update=changes)
    embed(store, path, extractor=extractor, name="counting", spec=spec, sampling=sampling)


def contents(path):
    with h5py.File(path) as file:
        return {name: file[name][()] for name in ("features", "ptr", "index", "multiplicity", "numbers")}


def test_features_and_moments(toy_lmdb, tmp_path):
    store = toy_lmdb(40)
    run(store, tmp_path / "x.h5", Counting())
    found = contents(tmp_path / "x.h5")
    rows = []
    for position, index in enumerate(found["index"]):
        structure = store[int(index)]
        start, stop = found["ptr"][position : position + 2]
        expected = np.stack([structure.numbers, structure.positions[:, 0]], axis=1)
        np.testing.assert_allclose(found["features"][start:stop], expected, rtol=1e-6)
        rows += [expected] * found["multiplicity"][position]
    rows = np.concatenate(rows)
    embedding = Embedding(tmp_path / "x.h5")
    moments = embedding.moments
    assert moments.count == len(rows) == embedding.provenance["atoms"]
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(moments.covariance, np.cov(rows, rowvar=False), rtol=1e-6)


def test_a_repeated_structure_is_embedded_once_and_counted_often(toy_lmdb, tmp_path):
    """Eight structures, asked for thirty times: each class of two is drawn evenly."""
    extractor = Counting()
    run(toy_lmdb(8), tmp_path / "x.h5", extractor)
    assert extractor.seen == 8
    assert contents(tmp_path / "x.h5")["multiplicity"].sum() == 30


@pytest.mark.parametrize("stop_after", [0, 9, 25])
def test_an_interrupted_embedding_goes_on(toy_lmdb, tmp_path, stop_after):
    store = toy_lmdb(40)
    run(store, tmp_path / "whole.h5", Counting())
    with pytest.raises(KeyboardInterrupt):
        run(store, tmp_path / "x.h5", Counting(stop_after))
    assert not (tmp_path / "x.h5").exists()
    rest = Counting()
    run(store, tmp_path / "x.h5", rest)
    total = len(contents(tmp_path / "whole.h5")["index"])
    # Whole chunks of at most 7 are kept; what was embedded of the chunk that broke off is done again.
    assert total - stop_after <= rest.seen <= total - stop_after + 7
    for name, value in contents(tmp_path / "whole.h5").items():
        np.testing.assert_array_equal(contents(tmp_path / "x.h5")[name], value)
    resumed, whole = (Embedding(tmp_path / name).moments.scatter for name in ("x.h5", "whole.h5"))
    assert resumed.tolist() == whole.tolist()
    assert not (tmp_path / "x.h5.parts").exists()


def test_parts_of_another_plan_are_dropped(toy_lmdb, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(toy_lmdb(40), tmp_path / "x.h5", Counting(20), seed=0)
    other = Counting()
    run(toy_lmdb(40), tmp_path / "x.h5", other, seed=1)
    assert other.seen == len(contents(tmp_path / "x.h5")["index"])


def test_the_filter(toy_lmdb, tmp_path):
    """H2O2 has four atoms, CH3OH six: with min_atoms 5 no H2O2 remains; without carbon only H2O2 does."""
    store = toy_lmdb(40)
    run(store, tmp_path / "x.h5", Counting(), min_atoms=5)
    assert {len(store[int(i)]) for i in contents(tmp_path / "x.h5")["index"]} == {6, 7, 8}

    class NoCarbon(Counting):
        elements = frozenset({1, 8})

    run(store, tmp_path / "y.h5", NoCarbon())
    assert {store[int(i)].label for i in contents(tmp_path / "y.h5")["index"]} == {"H2O2"}
    with pytest.raises(InputError, match="holds no structure with at least 20 atoms"):
        run(store, tmp_path / "z.h5", Counting(), min_atoms=20)


def test_composition(toy_lmdb, tmp_path):
    """The mean of one-hot elements is the share of each element."""
    store = toy_lmdb(4)
    extractor = CompositionExtractor()
    sampling = Sampling(method="random", structures=4)
    run(store, tmp_path / "x.h5", extractor, sampling=sampling)
    counts = np.bincount(np.concatenate([s.numbers for s in store]), minlength=119)
    mean = Embedding(tmp_path / "x.h5").moments.mean
    assert sorted(mean[mean > 0].tolist()) == pytest.approx(sorted((counts[counts > 0] / counts.sum()).tolist()))


def test_damaged_files(tmp_path, toy_lmdb):
    with pytest.raises(InputError, match="cannot be read"):
        Embedding(tmp_path / "none.h5")
    run(toy_lmdb(8), tmp_path / "x.h5", Counting())
    whole = (tmp_path / "x.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut.h5: cannot be read: .*truncated"):
        Embedding(tmp_path / "cut.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(InputError, match="is no embedding file of atomcsi"):
        Embedding(tmp_path / "other.h5")


def rows_of(generator, sizes, dim=3):
    return [generator.normal(size=(size, dim)) for size in sizes]


def test_blocks_merge_to_the_whole(embedding):
    generator = np.random.default_rng(0)
    structures = rows_of(generator, generator.integers(1, 9, size=30))
    multiplicity = generator.integers(1, 4, size=30)
    file = embedding(structures, blocks=6, multiplicity=multiplicity)
    parts = [file.block_moments(block) for block in range(6)]
    for block, part in enumerate(parts):
        members = slice(5 * block, 5 * block + 5)
        rows = np.concatenate(structures[members]).astype("f4")
        weights = np.repeat(multiplicity[members], [len(s) for s in structures[members]])
        assert part.count == weights.sum()
        np.testing.assert_allclose(part.covariance, np.cov(rows, rowvar=False, fweights=weights), rtol=1e-6)
    merged = Moments.merged(parts, 3)
    assert merged.count == file.moments.count == file.row_weights.sum()
    np.testing.assert_allclose(merged.scatter, file.moments.scatter, rtol=1e-12)


@pytest.mark.parametrize(("aggregation", "function"), [("mean", np.mean), ("sum", np.sum), ("max", np.max)])
def test_aggregation(embedding, aggregation, function):
    generator = np.random.default_rng(1)
    structures = rows_of(generator, generator.integers(1, 9, size=600))
    file = embedding(structures, blocks=4, aggregation=aggregation)
    expected = np.stack([function(rows.astype("f4"), axis=0) for rows in structures])
    np.testing.assert_allclose(file.rows(np.arange(600)), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(file.moments.covariance, np.cov(expected, rowvar=False), rtol=1e-4)
    np.testing.assert_allclose(file.block_moments(1).mean, expected[150:300].mean(axis=0), rtol=1e-4, atol=1e-6)


def test_single_rows(embedding):
    structures = rows_of(np.random.default_rng(2), [3] * 700)
    file = embedding(structures)
    drawn = file.sample(50, seed=0)
    assert len(set(drawn.tolist())) == 50 and drawn.tolist() == sorted(drawn) == file.sample(50, seed=0).tolist()
    np.testing.assert_array_equal(file.rows(drawn), np.concatenate(structures).astype("f4")[drawn])
    assert file.sample(10_000, seed=0).tolist() == list(range(2100))
    assert file.row_blocks[drawn].tolist() == (drawn // 105).tolist()


def test_resampled_structures(embedding):
    structures = rows_of(np.random.default_rng(3), [2, 4, 1] * 200)
    times = np.random.default_rng(4).integers(0, 3, size=600)
    repeated = np.concatenate([rows for rows, n in zip(structures, times, strict=True) for _ in range(n)])
    found = embedding(structures).resampled(times)
    np.testing.assert_allclose(found.covariance, np.cov(repeated, rowvar=False), rtol=1e-5)
    mean = np.repeat([rows.mean(axis=0) for rows in structures], times, axis=0).mean(axis=0)
    np.testing.assert_allclose(embedding(structures, aggregation="mean").resampled(times).mean, mean, atol=1e-6)


def test_packed():
    matrix = np.cov(np.random.default_rng(5).normal(size=(9, 30)))
    assert packed(matrix).tolist() == matrix[np.tril_indices(9)].tolist()
    assert unpacked(packed(matrix)).tolist() == matrix.tolist()
    assert unpacked(packed(np.array([[2.0]]))).tolist() == [[2.0]]
