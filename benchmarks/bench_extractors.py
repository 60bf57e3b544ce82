"""Embedding, against the plain way to get the same features.

sevennet-0 on the molecules of G2, against its ASE calculator called for one after the other with a hook on the last
gate, which is how one gets its features without this project, and against our own extractor with batches of one.
EquiformerV2-31M with random weights on molecules and slabs, against fairchem's model called for one after the other.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from ase.collections import g2

from atomcsi.config import ExtractorSpec, extractor_catalogue
from atomcsi.distances.frechet import frechet
from atomcsi.extraction import build_extractor, extract, worker_pool
from atomcsi.jobs import keep_freed_memory, set_threads
from atomcsi.moments import Moments
from atomcsi.structure import Structure
from benchmarks.harness import Record, in_process, in_turn, seconds

CATALOGUE = extractor_catalogue()
#: Features of EquiformerV2-31M that are invariant, the first ones.
_INVARIANT = 128


def run() -> Iterator[Record]:
    """Yields the comparisons of both extractors, in processes of their own with one thread."""
    yield from in_process(_sevennet)[0]
    yield from _equiformer()


def _sevennet() -> list[Record]:
    set_threads(1)
    keep_freed_memory()
    spec, few, many = CATALOGUE["sevennet-0"], _molecules(2), _molecules(10)
    extractor = build_extractor(spec, device="cpu")
    calculator = _SevenNetCalculator()

    def ours(structures: Sequence[Structure], pool: Executor | None = None) -> list[np.ndarray]:
        return extract(structures, extractor, max_atoms=spec.max_atoms, max_edges=spec.max_edges, pool=pool)

    def plain() -> list[np.ndarray]:
        return [calculator(structure) for structure in few]

    def batches_of_one() -> list[np.ndarray]:
        return [extractor.features([structure])[0] for structure in many]

    deviation = _deviation(ours(few), plain())  # the first calls, which compile
    against_plain = in_turn(lambda: ours(few), plain)
    against_single = in_turn(lambda: ours(many), batches_of_one)
    with worker_pool(spec, 2, device="cpu") as pool:
        ours(few, pool)
        against_one_process = in_turn(lambda: ours(many, pool), lambda: ours(many), repeats=5)
    what = "extractors: sevennet-0, molecules"
    return [
        _rate(f"{what}, against its ASE calculator", len(few), *against_plain, target=1.4),
        _rate(f"{what}, against batches of one", len(many), *against_single, target=1.4),
        _rate(f"{what}, two processes against one", len(many), *against_one_process, target=1.8),
        Record(name=f"{what}, largest deviation", ours=deviation, unit="of the largest feature", target=1e-5),
    ]


class _SevenNetCalculator:
    """SevenNet's ASE calculator with a hook that keeps what leaves the last gate."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from sevenn.calculator import SevenNetCalculator

            self._calculator = SevenNetCalculator("7net-0", device="cpu")
        self._calculator.model.get_submodule("4_equivariant_gate").register_forward_hook(self._keep)

    def __call__(self, structure: Structure) -> np.ndarray:
        Atoms(structure.numbers, structure.positions, calculator=self._calculator).get_potential_energy()
        return self._seen

    def _keep(self, _module: torch.nn.Module, _inputs: object, output: dict[str, torch.Tensor]) -> None:
        self._seen = output["x"].detach().numpy().copy()


def _equiformer() -> Iterator[Record]:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "eq2_31M.pt"
        save_random_equiformer(checkpoint)
        (features, plain_features), (ours, plain), peaks = _in_turn_apart(
            lambda: in_process(_equiformer_ours, checkpoint), lambda: in_process(_equiformer_plain, checkpoint)
        )
    what, atoms = "extractors: equiformer-v2 31M", sum(map(len, _mixture()))
    against = f"{what}, bf16, against fairchem's model"
    yield _rate(against, atoms, ours, plain, target=2.5, unit="atoms/s", peak_mb=peaks[0])
    yield Record(name=f"{what}, peak memory", ours=peaks[0], unit="MB", target=1500)
    shift = max(abs(_csi(features, dim) / _csi(plain_features, dim) - 1) for dim in (_INVARIANT, None))
    yield Record(name=f"{what}, largest shift of CSI", ours=100 * shift, unit="%", target=0.5)


def _in_turn_apart(
    ours: Callable[[], tuple], baseline: Callable[[], tuple], repeats: int = 2
) -> tuple[tuple, tuple[float, float], tuple[float, float]]:
    """Calls two functions in turn that return ((features, seconds), peak) of a fresh process."""
    runs = [(ours(), baseline()) for _ in range(repeats)]
    features = tuple(side[0][0] for side in runs[0])
    times = tuple(min(run[i][0][1] for run in runs) for i in range(2))
    peaks = tuple(max(run[i][1] for run in runs) for i in range(2))
    return features, times, peaks


def _equiformer_ours(checkpoint: Path) -> tuple[list[np.ndarray], float]:
    set_threads(1)
    keep_freed_memory()
    spec: ExtractorSpec = CATALOGUE["equiformer-v2"]
    extractor = build_extractor(spec, checkpoint, device="cpu")
    return _timed(lambda: extract(_mixture(), extractor, max_atoms=spec.max_atoms, max_edges=spec.max_edges))


def _equiformer_plain(checkpoint: Path) -> tuple[list[np.ndarray], float]:
    """As fairchem's defaults have it: forces kept possible, float32, one structure after the other."""
    set_threads(1)
    from atomcsi.models.batch import collate
    from atomcsi.models.fairchem import FairchemBatch

    model = _random_equiformer(regress_forces=True).eval()
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module.module."): value for name, value in state.items()})

    @torch.no_grad()
    def features(structure: Structure) -> np.ndarray:
        embedding = model(FairchemBatch(collate([structure], vacuum=13.0)))["node_embedding"].embedding
        return embedding.flatten(start_dim=1).numpy()

    return _timed(lambda: [features(structure) for structure in _mixture()])


def save_random_equiformer(path: Path) -> None:
    """Writes random weights in the layout of fairchem's published checkpoints."""
    torch.manual_seed(0)
    state = _random_equiformer(regress_forces=False).state_dict()
    torch.save({"state_dict": {f"module.module.{name}": value for name, value in state.items()}}, path)


def _random_equiformer(*, regress_forces: bool) -> torch.nn.Module:
    from atomcsi.extractors.equiformer_v2 import SETTINGS_31M, EquiformerV2Backbone

    return EquiformerV2Backbone(**SETTINGS_31M, regress_forces=regress_forces)


def _molecules(copies: int) -> list[Structure]:
    """Molecules of G2 with at least four atoms, each in a few geometries, displaced at random."""
    generator = np.random.default_rng(0)
    atoms = [g2[name] for name in g2.names if len(g2[name]) >= 4]
    return [
        Structure(
            numbers=each.numbers,
            positions=each.positions + generator.normal(scale=0.05, size=each.positions.shape),
            source=f"{copy}/{i}",
            label=str(each.symbols),
        )
        for copy in range(copies)
        for i, each in enumerate(atoms)
    ]


def _mixture() -> list[Structure]:
    """Molecules of G2 and metal slabs with an adsorbate."""
    generator = np.random.default_rng(0)
    structures = _molecules(1)[::3]
    for metal in ("Cu", "Pd", "Pt", "Ag"):
        slab = fcc111(metal, (4, 4, 3), vacuum=8.0, periodic=True)
        add_adsorbate(slab, molecule("CO"), 2.0, "ontop")
        positions = slab.positions + generator.normal(scale=0.05, size=slab.positions.shape)
        structures.append(
            Structure(
                numbers=slab.numbers, positions=positions, source=metal, label=metal, cell=slab.cell[:], pbc=(True,) * 3
            )
        )
    return structures


def _csi(features: Sequence[np.ndarray], dim: int | None) -> float:
    """CSI by the first ``dim`` features between two halves of the molecules, which are nearer than slabs are."""
    molecules = [rows[:, :dim] for rows, each in zip(features, _mixture(), strict=True) if each.cell is None]
    halves = [Moments.of(np.concatenate(molecules[start::2])) for start in range(2)]
    return frechet(*halves).value


def _deviation(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    pairs = zip(found, expected, strict=True)
    return float(max(np.abs(rows - other).max() for rows, other in pairs) / max(np.abs(e).max() for e in expected))


def _timed(function: Callable[[], list[np.ndarray]]) -> tuple[list[np.ndarray], float]:
    found: list[np.ndarray] = []
    return found, seconds(lambda: found.extend(function()))


def _rate(
    name: str,
    count: int,
    ours: float,
    baseline: float,
    *,
    target: float,
    unit: str = "structures/s",
    peak_mb: float | None = None,
) -> Record:
    """A comparison of times for ``count`` things, as rates."""
    return Record(
        name=name,
        ours=count / ours,
        baseline=count / baseline,
        unit=unit,
        ratio=baseline / ours,
        target=target,
        peak_mb=peak_mb,
    )
