"""What ``config/rates.yaml`` holds of networks, for its lines: ``python -m benchmarks.rates [ID ...]``.

A training step is everything from structures in memory to updated weights, for energies and direct forces, of eight
molecules of ethanol (9 atoms) and aspirin (21) or two slabs (89), as in :mod:`benchmarks.bench_gemnet_oc`, or of one of
them if the network is large. Embedding is the extractor's call for them. The seconds are the least of several calls, of
processor time on one core, because nothing but other programs makes a call slower; the matrix products and the
operations of a call are counted.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from ase.build import molecule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from atomcsi.config import BackboneSpec, extractor_catalogue
from atomcsi.extraction import build_extractor
from atomcsi.jobs import keep_freed_memory, set_threads
from atomcsi.models.potential import Potential, build_backbone
from atomcsi.structure import Structure
from benchmarks.bench_extractors import save_random_equiformer
from benchmarks.bench_gemnet_oc import structures_of

Call = Callable[[Sequence[Structure]], object]

_BACKBONES = Path("config/backbones")
_EXTRACTORS = ("sevennet-0", "chgnet", "equiformer-v2")
#: Seconds that a measurement goes on at least.
_ENOUGH = 2.0
#: Parameters of a network that is large.
_LARGE = 5e6
#: Operations that only say where the numbers of a tensor are, and start nothing on a GPU.
_VIEWS = frozenset(
    {"_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "expand", "lift_fresh", "permute", "select"}
    | {"slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view"}
)


def main() -> None:
    """Prints a line of YAML for each backbone and extractor that is named, or for all of them."""
    known = [*sorted(path.stem for path in _BACKBONES.glob("*.yaml")), *_EXTRACTORS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rates", description="Lines of config/rates.yaml.")
    parser.add_argument("ids", nargs="*", metavar="ID", help="backbones and extractors; default: all")
    set_threads(1)
    keep_freed_memory()
    for name in parser.parse_args().ids or known:
        backbone = _BACKBONES / f"{name}.yaml"
        line = _of_backbone(backbone) if backbone.exists() else _of_extractor(name)
        words = yaml.safe_dump(line, default_flow_style=True, sort_keys=False, width=1000)
        print(f"  {name}: {words.strip()}", flush=True)


def _of_backbone(path: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    spec = BackboneSpec.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    backbone = build_backbone(spec.model_dump())
    potential = Potential(backbone, heads=["energy", "forces"], forces="direct", readout="sum", datasets=1)
    optimizer = torch.optim.AdamW(potential.parameters(), 1e-5)
    collate = backbone.collate([None])
    backbone.fit_scales([collate(structures_of("aspirin"))])

    def gradients(structures: Sequence[Structure]) -> None:
        found = potential(collate(structures))
        (found.energy.abs().mean() + 10 * found.forces.norm(dim=1).mean()).backward()

    def step(structures: Sequence[Structure]) -> None:
        gradients(structures)
        optimizer.step()
        optimizer.zero_grad()

    parameters = sum(weights.numel() for weights in potential.parameters())
    return {"parameters": parameters, **_of_call(step, gradients, one=parameters > _LARGE)}


def _of_extractor(name: str) -> dict[str, Any]:
    spec = extractor_catalogue()[name]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "weights.pt" if name == "equiformer-v2" else None
        if checkpoint is not None:
            save_random_equiformer(checkpoint)
        extractor = build_extractor(spec, checkpoint, device="cpu")
    return {"features": extractor.dim, **_of_call(extractor.features, extractor.features, one=checkpoint is not None)}


def _of_call(call: Call, counted: Call, *, one: bool) -> dict[str, Any]:
    """Seconds and GFLOP of a structure by its atoms, and operations; for one structure at a time, or for several.

    The optimizer is not counted: on a GPU it updates all weights in a few operations, on a processor each by itself.
    """
    times, products, operations = {}, {}, 0
    for structures in (_ethanol(), structures_of("aspirin"), structures_of("slabs")):
        structures = structures[:1] if one else structures
        atoms, run = len(structures[0]), partial(call, structures)
        run()
        spent: list[float] = []
        while sum(spent) < _ENOUGH:
            start = time.process_time()
            run()
            spent.append(time.process_time() - start)
        counter = _Counter()
        with counter, FlopCounterMode(display=False, custom_mapping=_ONEDNN) as flops:
            counted(structures)
        times[atoms] = _rounded(min(spent) / len(structures))
        products[atoms] = _rounded(flops.get_total_flops() / len(structures) / 1e9)
        operations = max(operations, counter.operations)
    return {"seconds": times, "gigaflop": products, "operations": operations}


def _ethanol() -> list[Structure]:
    atoms, generator = molecule("CH3CH2OH"), np.random.default_rng(0)
    shifts = generator.normal(scale=0.05, size=(8, len(atoms), 3))
    return [Structure(numbers=atoms.numbers, positions=atoms.positions + x, source="", label="") for x in shifts]


class _Counter(TorchDispatchMode):
    """Counts operations that start work."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += function.overloadpacket.__name__ not in _VIEWS
        return function(*args, **(kwargs or {}))


def _linear(a: Sequence[int], b: Sequence[int], *_: Any, **__: Any) -> int:
    """Twice the products of a matrix of shape (n, k) and one of shape (m, k)."""
    return 2 * math.prod(a) * b[0]


#: The operator of GemNet-OC's products on CPUs, which PyTorch does not count.
_ONEDNN = {torch.ops.mkldnn._linear_pointwise: _linear}


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


if __name__ == "__main__":
    main()
