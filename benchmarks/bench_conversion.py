"""Conversion of raw files: time a structure on one core, and peak memory, at full size.

The files are synthetic, in the layouts of the official ones: an ANI-1x release file of 1 million conformers, and
50 000 slabs of OC20 in ten files. The baseline is what the field's scripts do: ASE or h5py, a ``Data`` of PyTorch
Geometric a structure, a pickle each into LMDB; on a part of the same files.
"""

from __future__ import annotations

import lzma
import pickle
import tempfile
import time
from collections.abc import Iterator
from io import StringIO
from itertools import islice
from pathlib import Path

import ase.io
import h5py
import lmdb
import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from ase.constraints import FixAtoms

from atomcsi.catalogue import Conversion
from atomcsi.convert import convert
from benchmarks.harness import Record, in_process

_CONFORMERS = 1_000_000
_FORMULAE = 500
_SLABS, _SLAB_FILES = 50_000, 10
_BASELINE = 2000


def run() -> Iterator[Record]:
    """Yields time and memory of both conversions."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_ani1x(root / "ani1x" / "ani1x-release.h5", _CONFORMERS)
        yield from _records("ANI-1x release file, 1M conformers", _ani1x(), root / "ani1x", _ani1x_baseline, 50.0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_oc20(root / "oc20", _SLABS)
        yield from _records("OC20 S2EF files, 50k slabs", _oc20(), root / "oc20", _oc20_baseline, None)


def _records(what: str, dataset: Conversion, raw: Path, baseline: object, target: float | None) -> Iterator[Record]:
    (seconds, structures), peak = in_process(_convert, dataset, raw, 1)
    ours = 1e6 * seconds / structures
    theirs = 1e6 * in_process(baseline, raw)[0]
    yield Record(name=f"conversion: {what}: time a structure, one process", ours=ours, unit="us", target=target)
    yield Record(
        name=f"conversion: {what}: against pickled Data", ours=ours, baseline=theirs, unit="us", ratio=theirs / ours
    )
    yield Record(name=f"conversion: {what}: peak memory", ours=peak, unit="MB", target=1000.0, peak_mb=peak)
    seconds_of_two, _ = _convert(dataset, raw, 2)
    yield Record(
        name=f"conversion: {what}: two processes against one",
        ours=seconds_of_two,
        baseline=seconds,
        unit="s",
        ratio=seconds / seconds_of_two,
    )


def _convert(dataset: Conversion, raw: Path, threads: int) -> tuple[float, int]:
    start = time.perf_counter()
    written = convert(dataset, "bench", raw, raw.with_name(f"lmdb{threads}"), threads=threads)
    return time.perf_counter() - start, sum(metadata["structures"] for metadata in written.values())


def _ani1x() -> Conversion:
    return Conversion.model_validate(
        {
            "licence": "none",
            "source": "synthetic",
            "reader": {"format": "ani1x"},
            "units": {"energy": "hartree"},
            "split": {"kind": "random", "by": "group", "train": "rest", "val": _CONFORMERS // 20},
        }
    )


def _oc20() -> Conversion:
    return Conversion.model_validate(
        {
            "licence": "none",
            "source": "synthetic",
            "reader": {"format": "oc20"},
            "units": {"energy": "eV"},
            "split": {"kind": "source", "parts": {"train": "train"}},
        }
    )


def write_ani1x(path: Path, conformers: int) -> None:
    """Writes a file in the layout of ``ani1x-release.h5``: molecules of H, C, N and O of 8 to 26 atoms."""
    generator = np.random.default_rng(0)
    path.parent.mkdir(parents=True)
    each = conformers // _FORMULAE
    with h5py.File(path, "w") as file:
        for number in range(_FORMULAE):
            natoms = int(generator.integers(8, 27))
            group = file.create_group(f"M{number:04d}")
            group["atomic_numbers"] = generator.choice([1, 6, 7, 8], natoms).astype("u1")
            shape = (each, natoms, 3)
            group["coordinates"] = generator.normal(size=shape).astype("f4")
            group["wb97x_dz.energy"] = -40.0 * natoms + generator.normal(size=each)
            group["wb97x_dz.forces"] = generator.normal(scale=0.05, size=shape).astype("f4")


def write_oc20(folder: Path, slabs: int) -> None:
    """Writes files in the layout of OC20 S2EF: CO, OH and NH3 on three metals, 51 atoms on average."""
    generator = np.random.default_rng(0)
    part = folder / "train"
    part.mkdir(parents=True)
    each = slabs // _SLAB_FILES
    templates = [_slab(metal, adsorbate) for metal in ("Cu", "Pt", "Ag") for adsorbate in ("CO", "OH", "NH3")]
    text = StringIO()
    for number in range(each):
        atoms = templates[number % len(templates)].copy()
        atoms.positions += generator.normal(scale=0.05, size=atoms.positions.shape)
        atoms.info["energy"] = -4.0 * len(atoms) + generator.normal()
        atoms.arrays["forces"] = generator.normal(scale=0.3, size=atoms.positions.shape)
        ase.io.write(text, atoms, format="extxyz")
    frames = lzma.compress(text.getvalue().encode(), preset=1)
    for file in range(_SLAB_FILES):
        (part / f"{file}.extxyz.xz").write_bytes(frames)
        lines = [f"random{file * each + i},frame{i % 200},-150.0\n" for i in range(each)]
        (part / f"{file}.txt.xz").write_bytes(lzma.compress("".join(lines).encode(), preset=1))
    labels = {f"random{i}": {"bulk_symbols": ("Cu", "Pt", "Ag")[i % 3]} for i in range(slabs)}
    (folder / "oc20_data_mapping.pkl").write_bytes(pickle.dumps(labels))


def _slab(metal: str, adsorbate: str) -> Atoms:
    atoms = fcc111(metal, size=(4, 3, 4), vacuum=10.0)
    add_adsorbate(atoms, molecule(adsorbate), 2.0, "ontop")
    heights = atoms.get_tags()  # ASE counts layers from the top; 0 is the adsorbate
    atoms.set_tags(np.select([heights == 0, heights <= 2], [2, 1], 0))
    atoms.set_constraint(FixAtoms(mask=heights > 2))
    return atoms


def _ani1x_baseline(raw: Path) -> float:
    """Seconds a structure."""
    with h5py.File(raw / "ani1x-release.h5") as file:
        frames = (
            (group["atomic_numbers"][:], group["coordinates"][row], group["wb97x_dz.energy"][row],
             group["wb97x_dz.forces"][row])
            for group in file.values()
            for row in range(len(group["coordinates"]))
        )  # fmt: skip
        return _write_pickles(raw, frames)


def _oc20_baseline(raw: Path) -> float:
    """Seconds a structure."""
    with lzma.open(raw / "train" / "0.extxyz.xz", "rt") as stream:
        atoms = ase.io.iread(StringIO(stream.read()), format="extxyz")
        return _write_pickles(raw, ((a.numbers, a.positions, a.get_potential_energy(), a.get_forces()) for a in atoms))


def _write_pickles(raw: Path, frames: Iterator[tuple]) -> float:
    import torch
    from torch_geometric.data import Data

    path = raw / "baseline.lmdb"
    start = time.perf_counter()
    environment = lmdb.open(str(path), subdir=False, map_size=1 << 40)
    with environment.begin(write=True) as transaction:
        for index, (numbers, positions, energy, forces) in enumerate(islice(frames, _BASELINE)):
            data = Data(
                pos=torch.tensor(positions, dtype=torch.float32),
                atomic_numbers=torch.tensor(numbers, dtype=torch.float32),
                natoms=len(numbers),
                force=torch.tensor(forces, dtype=torch.float32),
                y=float(energy),
                sid=index,
                fid=index,
                tags=torch.full((len(numbers),), 2),
            )
            transaction.put(str(index).encode(), pickle.dumps(data, protocol=-1))
    environment.close()
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds / _BASELINE
