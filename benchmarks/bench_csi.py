"""The CSI engine at the paper's size against a plain implementation: float64, ``np.cov`` and ``scipy.linalg.sqrtm``.

Both are given the same features, whose spectrum falls like a power, as those of networks do. The plain one starts from
them for every pair, as today's implementations do; ours has written their moments while embedding, and starts from the
HDF5 files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from scipy.linalg import sqrtm

from atomcsi.distances.frechet import frechet
from atomcsi.embeddings import Embedding, EmbeddingWriter
from atomcsi.measure import measure
from benchmarks.harness import Record, in_process, seconds

DIM, ROWS, BLOCKS = 3200, 60_000, 10
#: Atoms of a structure, and rows that are made at a time.
ATOMS, PIECE = 20, 10_000
UPSTREAM, DOWNSTREAM = 4, 6


def pieces(seed: int, rows: int) -> Iterator[np.ndarray]:
    """Features of a set, some rows at a time: each set turned and shifted its own way."""
    generator = np.random.default_rng(seed)
    scale = (np.arange(1, DIM + 1) ** -0.75).astype("f4")[generator.permutation(DIM)]
    turn = np.linalg.qr(generator.normal(size=(64, 64)))[0].astype("f4")
    shift = generator.normal(size=DIM).astype("f4") * scale * 0.3
    for _ in range(rows // PIECE):
        found = generator.standard_normal((PIECE, DIM), dtype="f4") * scale + shift
        yield (found.reshape(PIECE, -1, 64) @ turn).reshape(PIECE, DIM)


def write(seed: int, rows: int, path: Path) -> None:
    """Writes the embedding file of a set, as embedding does."""
    structures = rows // ATOMS
    provenance = {"dataset": f"set-{seed}", "extractor": "random", "implementation": "random@1", "options": {}}
    provenance |= {"checkpoint": None, "drawn": structures, "seconds": 0.0, "sampling": {"resample": "structures"}}
    with h5py.File(path, "w") as file:
        writer = EmbeddingWriter(
            file,
            ptr=np.arange(structures + 1) * ATOMS,
            block_ptr=np.linspace(0, structures, BLOCKS + 1).astype(int),
            multiplicity=np.ones(structures, int),
            dim=DIM,
        )
        for piece in pieces(seed, rows):
            writer.append(piece)
        file["numbers"] = np.ones(rows, "u1")
        writer.finish(provenance)


def plain(a: np.ndarray, b: np.ndarray) -> float:
    """The Frechet distance as it is usually written."""
    mean = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return float(mean + np.trace(s1) + np.trace(s2) - 2 * sqrtm(s1 @ s2).real.trace())


def timed_plain(seeds: tuple[int, int]) -> tuple[float, float]:
    """Seconds and value of the plain implementation, making the features not counted."""
    a, b = (np.concatenate(list(pieces(seed, ROWS))).astype("f8") for seed in seeds)
    found: list[float] = []
    return seconds(lambda: found.append(plain(a, b))), found[0]


def timed_ours(paths: tuple[Path, Path]) -> tuple[float, float]:
    """Seconds and value from two files."""
    found: list[float] = []
    return seconds(lambda: found.append(csi(*paths))), found[0]


def csi(upstream: Path, downstream: Path) -> float:
    """CSI of two files."""
    return frechet(Embedding(upstream).moments, Embedding(downstream).moments).value


def timed_matrix(paths: list[Path]) -> float:
    """Seconds of all pairs of the first files with the others."""

    def matrix() -> None:
        upstreams = [Embedding(path) for path in paths[:UPSTREAM]]
        for path in paths[UPSTREAM:]:
            downstream = Embedding(path)
            for upstream in upstreams:
                frechet(upstream.moments, downstream.moments)

    return seconds(matrix)


def timed_measure(paths: tuple[Path, Path]) -> float:
    """Seconds of a pair with all that is measured of it."""
    upstream, downstream = map(Embedding, paths)
    return seconds(lambda: measure([upstream], downstream, distance="frechet"))


def run() -> Iterator[Record]:
    """Compares one pair and the paper's matrix."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{seed}.h5" for seed in range(UPSTREAM + DOWNSTREAM)]
        pairs = [(seed, UPSTREAM + seed) for seed in range(2)]
        for seed, path in enumerate(paths):
            # A file's moments are as large, and its pairs take as long, whatever the number of its rows.
            in_process(write, seed, ROWS if seed in {each for pair in pairs for each in pair} else PIECE, path)
        baselines, ours, peaks = [], [], []
        for pair in pairs:
            (taken, value), _ = in_process(timed_plain, pair)
            (own, found), peak = in_process(timed_ours, tuple(paths[i] for i in pair))
            assert abs(found / value - 1) < 1e-6, (found, value)
            baselines.append(taken)
            ours.append(own)
            peaks.append(peak)
        size, baseline = f"d = {DIM}, {ROWS:,} rows a set", float(np.mean(baselines))
        yield Record.faster(
            f"csi: one pair, {size}, from stored moments", float(np.mean(ours)), baseline, 20, max(peaks)
        )
        count = UPSTREAM * DOWNSTREAM
        taken, peak = in_process(timed_matrix, paths)
        name = f"csi: {UPSTREAM} x {DOWNSTREAM} matrix, {size} (baseline: {count} times a pair's)"
        yield Record.faster(name, taken, count * baseline, 40, peak)
        taken, peak = in_process(timed_measure, tuple(paths[i] for i in pairs[0]))
        yield Record(name=f"csi: one pair with error bar and elements, {size}", ours=taken, unit="s", peak_mb=peak)
