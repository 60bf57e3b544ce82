"""Training steps of GemNet-OC-S, against fairchem-core 1.10's of the same sizes, on aspirin and on slabs as in OC20.

A step is everything from structures in memory to updated weights: graphs, forward and backward pass, AdamW. Both run
in turn in one process with one thread; their memory is measured in processes of their own.
"""

from __future__ import annotations

import io
import resource
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ase.build import add_adsorbate, fcc111, molecule
from torch import Tensor, nn

from atomcsi.jobs import keep_freed_memory, set_threads
from atomcsi.models.batch import collate
from atomcsi.models.fairchem import FairchemBatch  # before fairchem's own modules
from atomcsi.models.gemnet_oc.model import GemNetOC
from atomcsi.structure import Structure
from benchmarks.harness import Record, in_process, in_turn

# isort: split
from fairchem.core.models.gemnet_oc import gemnet_oc
from fairchem.core.modules.scaling import ScaleFactor

_ASPIRIN = Path("resources/demo/rmd17-mini/rmd17-mini.zip")
_GRAPH = {"max_neighbors_qint": 8, "max_neighbors_aeaint": 20, "max_neighbors_aint": 1000, "qint_tags": [1, 2]}
_COMMON = {"num_global_out_layers": 2, "cutoff": 12.0, "max_neighbors": 30, **_GRAPH}

Step = Callable[[], None]


def run() -> Iterator[Record]:
    """Yields speed and memory in float32 and bfloat16, and the speed of graphs, for molecules and for slabs."""
    for name in ("8 aspirin molecules", "2 slabs of 89 atoms"):
        speed, _ = in_process(_speed, name)
        fairchem_mb = _memory(name, "fairchem")
        ours_mb = {precision: _memory(name, precision) for precision in ("float32", "bfloat16")}
        for precision, target in (("float32", 1.2), ("bfloat16", 1.8)):
            ours, theirs = speed[precision]
            what = f"gemnet-oc-s: training step, {name}, {precision} against fairchem's float32"
            yield Record.faster(what, ours, theirs, target, ours_mb[precision])
        yield Record(
            name=f"gemnet-oc-s: memory of a training step, {name}, float32", ours=ours_mb["float32"],
            baseline=fairchem_mb, unit="MB", ratio=fairchem_mb / ours_mb["float32"], target=1 / 0.7,
        )  # fmt: skip
        yield Record.faster(f"gemnet-oc-s: graphs and indices, {name}", *speed["graphs"], target=5)


def _speed(name: str) -> dict[str, tuple[float, float]]:
    """Seconds of ours and of fairchem's."""
    set_threads(1)
    keep_freed_memory()
    structures = structures_of(name)
    theirs, ours = _fairchem(structures), _ours(structures)
    found = {precision: in_turn(partial(ours, precision), theirs) for precision in ("float32", "bfloat16")}
    model, batch = _fairchem_model(), FairchemBatch(collate(structures, vacuum=14.0))
    collate_graphs = GemNetOC(**_COMMON).collate()
    return found | {"graphs": in_turn(lambda: collate_graphs(structures), lambda: model.get_graphs_and_indices(batch))}


def _memory(name: str, what: str) -> float:
    """What steps add to the memory of a process that has built the model, in MB."""
    (before, after), _ = in_process(_peaks, name, what)
    return after - before


def _peaks(name: str, what: str) -> tuple[float, float]:
    set_threads(1)
    structures = structures_of(name)
    step = _fairchem(structures) if what == "fairchem" else partial(_ours(structures), what)
    before = _peak_mb()
    for _ in range(2):
        step()
    return before, _peak_mb()


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def structures_of(name: str) -> list[Structure]:
    """Returns what a benchmark is named after: eight molecules of aspirin, or two slabs."""
    if "aspirin" in name:
        with zipfile.ZipFile(_ASPIRIN) as archive, tarfile.open(fileobj=archive.open("rmd17.tar.bz2")) as files:
            member = next(member for member in files if member.name.endswith(".npz"))
            frames = np.load(io.BytesIO(files.extractfile(member).read()))
            numbers, positions = frames["nuclear_charges"], frames["coords"][:8]
        return [Structure(numbers=numbers, positions=x, source="", label="") for x in positions]
    return [_slab(seed) for seed in range(2)]


def _slab(seed: int) -> Structure:
    slab = fcc111("Cu", (4, 4, 5), vacuum=8.0)
    add_adsorbate(slab, molecule("CH3CH2OH"), 2.2, "ontop")
    positions = slab.positions + np.random.default_rng(seed).normal(scale=0.08, size=slab.positions.shape)
    tags = np.array([0] * 48 + [1] * 32 + [2] * 9)
    return Structure(
        numbers=slab.numbers, positions=positions, source="", label="", cell=slab.cell[:], pbc=(True,) * 3, tags=tags
    )


def _loss(energy: Tensor, forces: Tensor) -> Tensor:
    return energy.abs().mean() + 10 * forces.norm(dim=1).mean()


def _ours(structures: Sequence[Structure]) -> Callable[[str], None]:
    torch.manual_seed(0)
    model = GemNetOC(**_COMMON)
    heads = nn.ModuleList(nn.Linear(size, 1, bias=False) for size in (model.node_dim, model.edge_dim))
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], 1e-4)
    make_batch = model.collate()

    def step(precision: str) -> None:
        batch = make_batch(structures)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            features = model(batch)
            atoms, edges = (head(x).float() for head, x in zip(heads, (features.node, features.edge()), strict=True))
        energy = torch.zeros(len(batch)).index_add(0, batch.index, atoms[:, 0])
        forces = torch.zeros(len(batch.numbers), 3).index_add(0, features.edge_target, edges * features.edge_direction)
        _update(optimizer, _loss(energy, forces))

    return step


def _fairchem(structures: Sequence[Structure]) -> Step:
    model = _fairchem_model()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def step() -> None:
        found = model(FairchemBatch(collate(structures, vacuum=14.0)))
        _update(optimizer, _loss(found["energy"], found["forces"]))

    return step


def _fairchem_model() -> nn.Module:
    torch.manual_seed(0)
    sizes = asdict(GemNetOC(num_blocks=1).bases.sizes) | _COMMON | {"num_blocks": 4}
    model = gemnet_oc.GemNetOC(
        **sizes, num_elements=118, sbf={"name": "legendre_outer"}, direct_forces=True,
        otf_graph=True, quad_interaction=True, atom_edge_interaction=True, edge_atom_interaction=True,
        atom_interaction=True,
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, ScaleFactor):
            module.scale_factor.data.fill_(1.0)
    return model


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
