"""Damaged raw files of every format end in one InputError or are read; nothing hangs, crashes or is run.

Libraries of C may crash or hang on what is damaged, so the cases run in a process of their own: this file, called with
a folder and the number of cases of each format. ATOMCSI_FUZZ_CASES sets that number for the test; 400 make 8000 in all.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import resource
import subprocess
import sys
import tarfile
import threading
import zlib
from collections import Counter
from pathlib import Path

import ase.db
import ase.io
import h5py
import lmdb
import numpy as np
from ase import Atoms
from ase.build import fcc111, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io.trajectory import Trajectory

from atomcsi.archives import unpack
from atomcsi.errors import InputError
from atomcsi.readers.ani1x import Ani1xReader
from atomcsi.readers.matbench import MatbenchReader
from atomcsi.readers.oc20 import Oc20Reader
from atomcsi.readers.oc22 import Oc22Reader
from atomcsi.readers.qm9 import Qm9Reader
from atomcsi.readers.qmof import QmofReader
from atomcsi.readers.rmd17 import Rmd17Reader
from atomcsi.readers.spice import SpiceReader
from atomcsi.readers.transition1x import Transition1xReader
from atomcsi.readers.user import open_structures

CASES = int(os.environ.get("ATOMCSI_FUZZ_CASES", "50"))
#: Seconds after which a case counts as hanging, and the bytes that reading may take.
PATIENCE, MEMORY = 60, 3 << 30


# --- intact files ---------------------------------------------------------------------------------------------


def images() -> list[Atoms]:
    """Molecules and slabs with energies, forces, tags and held atoms."""
    generator, found = np.random.default_rng(0), []
    for index in range(12):
        atoms = molecule("CH3OH") if index % 2 else fcc111("Cu", (1, 1, 3), vacuum=5.0, periodic=True)
        atoms.info.clear()  # extxyz cannot hold what ASE remembers of the surface
        if index % 2 == 0:
            atoms.set_constraint(FixAtoms([0]))
        forces = generator.normal(size=(len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=-index - 0.5, forces=forces)
        found.append(atoms)
    return found


def frames(count: int = 30) -> tuple[np.ndarray, ...]:
    """Numbers, positions, energies and forces of methane."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(2, count, 5, 3))
    return np.array([6, 1, 1, 1, 1], "u1"), vectors[0], generator.normal(size=count), vectors[1]


def write_hdf5(path: Path, groups: tuple[str, ...], names: tuple[str, ...]) -> None:
    with h5py.File(path, "w") as file:
        for group in groups:
            for name, array in zip(names, frames(), strict=True):
                compression = "gzip" if array.ndim == 3 else None
                file.create_dataset(f"{group}/{name}", data=array, compression=compression)


def ani1x(folder: Path) -> Path:
    names = ("atomic_numbers", "coordinates", "wb97x_dz.energy", "wb97x_dz.forces")
    write_hdf5(folder / "a.h5", ("C1H4", "C1H4x"), names)
    return folder / "a.h5"


def transition1x(folder: Path) -> Path:
    names = ("atomic_numbers", "positions", "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces")
    write_hdf5(folder / "a.h5", ("data/CH4/rxn0001", "data/CH4/rxn0002"), names)
    return folder / "a.h5"


def spice(folder: Path) -> Path:
    names = ("atomic_numbers", "conformations", "dft_total_energy", "dft_total_gradient")
    write_hdf5(folder / "a.h5", ("C", "C/x"), names)
    return folder / "a.h5"


def npz(folder: Path, save=np.savez) -> Path:
    save(folder / "a.npz", **dict(zip(Rmd17Reader.NAMES, frames(), strict=True)))
    return folder / "a.npz"


def compressed_npz(folder: Path) -> Path:
    return npz(folder, np.savez_compressed)


def extxyz(folder: Path) -> Path:
    ase.io.write(folder / "a.extxyz", images(), format="extxyz")
    return folder / "a.extxyz"


def extxyz_xz(folder: Path) -> Path:
    (folder / "a.extxyz.xz").write_bytes(lzma.compress(extxyz(folder).read_bytes()))
    return folder / "a.extxyz.xz"


def oc20(folder: Path, target: str = "0.txt.xz") -> Path:
    slab = """2
Lattice="4 0 0 0 5 0 0 0 20" Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 energy=-1.5 pbc="T T F"
Cu 0.0 0.0 5.0 F 0 0.1 0.2 0.3
O 1.0 1.0 7.0 T 2 -0.1 0.0 0.5
"""
    (folder / "0.extxyz.xz").write_bytes(lzma.compress((9 * slab).encode()))
    listing = "".join(f"random{i},frame{i},-98.25\n" for i in range(9))
    (folder / "0.txt.xz").write_bytes(lzma.compress(listing.encode()))
    mapping = {f"random{i}": {"bulk_symbols": "Cu4", "shift": np.float64(0.5), "top": True} for i in range(9)}
    (folder / "oc20_data_mapping.pkl").write_bytes(pickle.dumps(mapping))
    return folder / target


def oc20_mapping(folder: Path) -> Path:
    return oc20(folder, "oc20_data_mapping.pkl")


def tensor(array: np.ndarray) -> bytes:
    """A pickle of a torch tensor, as fairchem's LMDBs hold them; torch itself takes long to import."""
    import torch

    return torch.from_numpy(array)


def pyg_lmdb(folder: Path) -> Path:
    from torch_geometric.data import Data

    path = folder / "data.0000.lmdb"
    with lmdb.open(str(path), subdir=False, map_size=1 << 22, lock=False) as file, file.begin(write=True) as put:
        for index, atoms in enumerate(images()):
            cell = tensor(atoms.cell.array.astype("f4")[None])
            data = Data(
                pos=tensor(atoms.positions.astype("f4")),
                atomic_numbers=tensor(atoms.numbers.astype("f4")),
                force=tensor(atoms.calc.results["forces"].astype("f4")),
                y=atoms.calc.results["energy"],
                sid=index,
                fid=0,
                **({"cell": cell} if atoms.pbc.any() else {"pbc": tensor(np.zeros(3))}),
            )
            put.put(str(index).encode(), pickle.dumps(data))
        put.put(b"length", pickle.dumps(12))
    return path


def aselmdb(folder: Path) -> Path:
    path = folder / "a.aselmdb"
    with lmdb.open(str(path), subdir=False, map_size=1 << 22, lock=False) as file, file.begin(write=True) as put:
        for index, atoms in enumerate(images(), 1):
            row = {name: getattr(atoms, name).tolist() for name in ("numbers", "positions", "pbc")}
            row |= {"cell": atoms.cell.tolist(), **atoms.calc.results, "constraints": []}
            row["forces"] = {"__ndarray__": [[len(atoms), 3], "float64", row["forces"].ravel().tolist()]}
            put.put(str(index).encode(), zlib.compress(json.dumps(row).encode()))
        put.put(b"nextid", zlib.compress(b"13"))
    return path


def sqlite(folder: Path) -> Path:
    with ase.db.connect(folder / "a.db", use_lock_file=False) as file:
        for atoms in images():
            file.write(atoms)
    return folder / "a.db"


def traj(folder: Path) -> Path:
    with Trajectory(str(folder / "a.traj"), "w") as file:
        for atoms in images():
            file.write(atoms)
    return folder / "a.traj"


def single(folder: Path, name: str, form: str) -> Path:
    ase.io.write(folder / name, images()[0], format=form)
    return folder / name


def qm9(folder: Path) -> Path:
    text = (
        "5\ngdb {}\t" + "\t".join(["1.5"] * 15) + "\nC 0 0 0 0\n" + "H\t1.0\t2.0*^-1\t0\t0.1\n" * 4 + "1.0\nC\tC\nI\n"
    )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for index in range(1, 20):
            info = tarfile.TarInfo(f"dsgdb9nsd_{index:06d}.xyz")
            content = text.format(index).encode()
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    (folder / "dsgdb9nsd.xyz.tar.bz2").write_bytes(bz2.compress(buffer.getvalue()))
    (folder / "uncharacterized.txt").write_text("  2   CH4\n")
    return folder / "dsgdb9nsd.xyz.tar.bz2"


def crystal() -> dict:
    sites = [{"species": [{"element": "Cu", "occu": 1}], "xyz": [0.1 * i, 0.2, 0.3], "label": "Cu"} for i in range(4)]
    return {"lattice": {"matrix": [[4.0, 0, 0], [0, 5.0, 0], [0, 0, 6.0]]}, "sites": sites}


def matbench(folder: Path) -> Path:
    content = {"index": list(range(9)), "columns": ["structure", "n"], "data": [[crystal(), 1.5]] * 9}
    (folder / "a.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
    return folder / "a.json.gz"


def qmof(folder: Path) -> Path:
    targets = [{"qmof_id": f"{i}", "outputs": {"pbe": {"bandgap": 1.5, "energy_total": -2.5}}} for i in range(9)]
    (folder / "t.json").write_text(json.dumps(targets))
    (folder / "s.json").write_text(json.dumps([{"qmof_id": f"{i}", "structure": crystal()} for i in range(9)]))
    return folder / "s.json"


def archive(folder: Path) -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as outer:
        for name in ("0.txt", "inner/1.txt"):
            info = tarfile.TarInfo(name)
            info.size = 5000
            outer.addfile(info, io.BytesIO(random.Random(0).randbytes(5000)))
    (folder / "a.tar.gz").write_bytes(buffer.getvalue())
    return folder / "a.tar.gz"


#: Format -> what writes an intact file and returns its path, and what reads it.
FORMATS = {
    "ani1x": (ani1x, lambda path: Ani1xReader(path.parent, file=path.name)),
    "transition1x": (transition1x, lambda path: Transition1xReader(path.parent, file=path.name)),
    "spice": (spice, lambda path: SpiceReader(path.parent, file=path.name)),
    "rmd17": (npz, lambda path: Rmd17Reader(path.parent, file=path.name)),
    "rmd17-compressed": (compressed_npz, lambda path: Rmd17Reader(path.parent, file=path.name)),
    "oc20": (oc20, lambda path: Oc20Reader(path.parent, part="")),
    "oc20-mapping": (oc20_mapping, lambda path: Oc20Reader(path.parent, part="")),
    "oc22": (pyg_lmdb, lambda path: Oc22Reader(path.parent, folder="", metadata=None)),
    "qm9": (qm9, lambda path: Qm9Reader(path.parent)),
    "qmof": (qmof, lambda path: QmofReader(path.parent, targets="t.json", structures="s.json")),
    "matbench": (matbench, lambda path: MatbenchReader(path.parent, file=path.name)),
    "extxyz": (extxyz, open_structures),
    "extxyz.xz": (extxyz_xz, open_structures),
    "aselmdb": (aselmdb, open_structures),
    "db": (sqlite, open_structures),
    "traj": (traj, open_structures),
    "cif": (lambda folder: single(folder, "a.cif", "cif"), open_structures),
    "pdb": (lambda folder: single(folder, "a.pdb", "proteindatabank"), open_structures),
    "vasp": (lambda folder: single(folder, "a.vasp", "vasp"), open_structures),
    "archive": (archive, lambda path: unpack(path, path.parent / "out") or ()),
}


# --- the cases ------------------------------------------------------------------------------------------------


def damaged(content: bytes, seed: str) -> bytes:
    """Cuts a file off, flips some bits, or overwrites a run of bytes."""
    chance = random.Random(seed)
    kind, place = chance.randrange(3), chance.randrange(len(content))
    if kind == 0:
        return content[:place]
    changed = bytearray(content)
    if kind == 1:
        for _ in range(chance.randint(1, 8)):
            changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    else:
        run = chance.randbytes(chance.randint(1, 64))
        changed[place : place + len(run)] = run
    return bytes(changed)


def watch(event: str, _arguments: tuple) -> None:
    if event in ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect"):
        os._exit(99)


def run_cases(folder: Path, cases: int, first: int) -> None:
    """Writes the outcome of every case: ``read``, ``error``, or what should not be."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.addaudithook(watch)
    for number in range(first, cases * len(FORMATS)):
        name = list(FORMATS)[number // cases]
        intact = next((folder / name).glob("intact*"))
        path = folder / name / intact.name.removeprefix("intact-")
        path.write_bytes(damaged(intact.read_bytes(), f"{name} {number % cases}"))
        sys.stdout.write(f"{number} ")
        sys.stdout.flush()
        try:
            for structure in FORMATS[name][1](path):
                structure.problem()
            outcome = "read"
        except InputError as error:
            outcome = "error" if error.mend and "\n" not in str(error) else f"no good message: {error!r}"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        sys.stdout.write(" ".join(outcome.split()) + "\n")


def outcomes(folder: Path, cases: int) -> dict[int, str]:
    """Outcome of every case; a process that dies or hangs is replaced by another that goes on behind its case."""
    found: dict[int, str] = {}
    while len(found) < cases * len(FORMATS):
        command = [sys.executable, __file__, str(folder), str(cases), str(len(found))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            timer = None
            for line in process.stdout:
                number, _, outcome = line.strip().partition(" ")
                found[int(number)] = outcome
                if timer:
                    timer.cancel()
                timer = threading.Timer(PATIENCE, process.kill)
                timer.start()
            if timer:
                timer.cancel()
        if process.returncode:
            # The number of the case was printed, its outcome was not.
            last = max(found, default=0)
            found[last] = found.get(last) or f"ended the process ({process.returncode})"
    return found


def test_damaged_files(tmp_path):
    for name, (write, reader) in FORMATS.items():
        (tmp_path / name).mkdir()
        path = write(tmp_path / name)
        for structure in reader(path):
            assert not structure.problem()
        path.rename(path.with_name(f"intact-{path.name}"))
    found = outcomes(tmp_path, CASES)
    bad = {
        f"{list(FORMATS)[number // CASES]} {number % CASES}": outcome
        for number, outcome in found.items()
        if outcome not in ("read", "error")
    }
    assert not bad
    assert len(found) == CASES * len(FORMATS)
    assert Counter(found.values())["error"] > len(found) / 2


if __name__ == "__main__":
    run_cases(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
