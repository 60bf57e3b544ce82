"""Writers of the official file layouts, and archives whose bytes depend on their content alone."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import lmdb
import numpy as np
import torch
from ase import Atoms, units
from pymatgen.io.ase import AseAtomsAdaptor
from torch_geometric.data import Data

from .frames import KCAL_PER_EV, Frames
from .molecules import Reaction
from .surfaces import Snapshot

# --- archives ---------------------------------------------------------------------------------------------


def tar_bytes(files: Mapping[str, bytes]) -> bytes:
    """Pack files into a tar with neither times nor owners."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_bytes(files: Mapping[str, bytes]) -> bytes:
    """Pack files into a zip, uncompressed, dated 1980-01-01."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Pack arrays into a compressed npz."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def hdf5(path: Path, write: Callable[[h5py.File], None]) -> None:
    """Create an HDF5 file (h5py stores no times by itself)."""
    with h5py.File(path, "w", libver="latest") as handle:  # half the size for many small groups
        write(handle)


def put(group: h5py.Group, name: str, data: np.ndarray, unit: str | None = None) -> None:
    """Store an array, compressed where that can help."""
    packed = {"compression": "gzip", "compression_opts": 9, "shuffle": True} if data.nbytes > 1024 else {}
    dataset = group.create_dataset(name, data=data, **packed)
    if unit is not None:
        dataset.attrs["units"] = unit


# --- molecules --------------------------------------------------------------------------------------------


def write_ani1x(path: Path, groups: Mapping[str, Frames]) -> None:
    """ANI-1x release: a group per formula, Hartree and Hartree/Angstrom (forces, not gradients)."""

    def write(handle: h5py.File) -> None:
        for formula, frames in groups.items():
            group = handle.create_group(formula)
            put(group, "atomic_numbers", frames.numbers.astype(np.uint8))
            put(group, "coordinates", frames.positions.astype(np.float32))
            put(group, "wb97x_dz.energy", frames.energy / units.Hartree)
            put(group, "wb97x_dz.forces", (frames.forces / units.Hartree).astype(np.float32))

    hdf5(path, write)


def write_transition1x(path: Path, reactions: Mapping[str, Mapping[str, Sequence[tuple[str, Reaction]]]]) -> None:
    """Transition1x: everything in ``/data``, its parts linked from ``/train``, ``/val`` and ``/test``; eV.

    Args:
        path: File to write.
        reactions: Split, formula, and the reactions of the formula with their names.
    """

    def write_frames(group: h5py.Group, frames: Frames) -> None:
        put(group, "atomic_numbers", frames.numbers.astype(np.uint8))
        put(group, "positions", frames.positions)
        put(group, "wB97x_6-31G(d).energy", frames.energy)
        put(group, "wB97x_6-31G(d).forces", frames.forces)

    def write(handle: h5py.File) -> None:
        for split, formulae in reactions.items():
            for formula, members in formulae.items():
                for name, reaction in members:
                    group = handle.create_group(f"data/{formula}/{name}")
                    write_frames(group, reaction.path)
                    for part in ("reactant", "product", "transition_state"):
                        write_frames(group.create_group(part), getattr(reaction, part))
                    handle.require_group(f"{split}/{formula}")[name] = group  # a hard link

    hdf5(path, write)


def write_spice(path: Path, molecules: Mapping[str, tuple[Frames, str, str, np.ndarray]]) -> None:
    """SPICE: bohr, Hartree and the gradient (minus the force).

    Args:
        path: File to write.
        molecules: By name: frames, SMILES, subset, energies (eV) of the isolated atoms.
    """
    force_unit = units.Hartree / units.Bohr

    def write(handle: h5py.File) -> None:
        for name, (frames, smiles, subset, atom_energies) in molecules.items():
            group = handle.create_group(name)
            group.create_dataset("smiles", data=[smiles], dtype=h5py.string_dtype())
            group.create_dataset("subset", data=[subset], dtype=h5py.string_dtype())
            put(group, "atomic_numbers", frames.numbers.astype(np.int16))
            put(group, "conformations", (frames.positions / units.Bohr).astype(np.float32), "bohr")
            put(group, "dft_total_energy", frames.energy / units.Hartree, "hartree")
            put(group, "formation_energy", (frames.energy - atom_energies.sum()) / units.Hartree, "hartree")
            put(group, "dft_total_gradient", (-frames.forces / force_unit).astype(np.float32), "hartree/bohr")

    hdf5(path, write)


def write_rmd17(path: Path, molecule: str, frames: Frames, old: Frames, old_indices: np.ndarray) -> None:
    """Revised MD17: npz in tar.bz2 in zip, kcal/mol.

    Args:
        path: The zip to write.
        molecule: Name in the file name.
        frames: Frames with the labels to use.
        old: The same frames with those of the other, older level of theory.
        old_indices: Position of each frame in the trajectory.
    """
    npz = npz_bytes(
        {
            "nuclear_charges": frames.numbers.astype(np.uint8),
            "coords": frames.positions,
            "energies": frames.energy * KCAL_PER_EV,
            "forces": kcal_forces(frames),
            "old_indices": old_indices.astype(np.int64),
            "old_energies": old.energy * KCAL_PER_EV,
            "old_forces": kcal_forces(old),
        }
    )
    tar = bz2.compress(tar_bytes({f"rmd17/npz_data/rmd17_{molecule}.npz": npz}))
    path.write_bytes(zip_bytes({"rmd17.tar.bz2": tar}))


def kcal_forces(frames: Frames) -> np.ndarray:
    """Forces in kcal/mol/Angstrom, again rounded to float32 for the sake of compression."""
    return (frames.forces * KCAL_PER_EV).astype(np.float32).astype(np.float64)


def write_md22(path: Path, name: str, theory: str, frames: Frames) -> None:
    """MD22 (the sGDML dataset layout), kcal/mol."""
    energy, forces = frames.energy[:, None] * KCAL_PER_EV, kcal_forces(frames)
    z = frames.numbers.astype(np.uint8)
    digest = hashlib.md5()
    for array in (z, frames.positions, energy, forces):
        digest.update(hashlib.md5(np.ascontiguousarray(array).ravel()).digest())
    arrays = {
        "type": np.array("d"),
        "code_version": np.array("atomcsi demo recipe"),
        "name": np.array(name),
        "theory": np.array(theory),
        "z": z,
        "R": frames.positions,
        "r_unit": np.array("Ang"),
        "E": energy,
        "e_unit": np.array("kcal/mol"),
        "F": forces,
        "md5": np.array(digest.hexdigest()),
    }
    for key, values in (("E", energy), ("F", forces)):
        arrays |= {f"{key}_{stat}": getattr(values, stat)() for stat in ("min", "max", "mean")}
        arrays[f"{key}_var"] = values.var()
    path.write_bytes(npz_bytes(arrays))


def write_qm9(folder: Path, texts: Mapping[int, str], uncharacterized: Sequence[int]) -> None:
    """Raw QM9: the archive of xyz files, and the list of molecules to remove (nine header lines, one footer)."""
    files = {f"dsgdb9nsd_{index:06d}.xyz": text.encode() for index, text in texts.items()}
    (folder / "dsgdb9nsd.xyz.tar.bz2").write_bytes(bz2.compress(tar_bytes(files)))
    rule = "=" * 80
    header = [
        rule,
        "Molecules that QM9 calls uncharacterized (they failed its geometry consistency check).",
        "This list is a stand-in for the official one: it has the same layout, but only",
        f"the first {len(uncharacterized)} of the 3054 entries and none of the SMILES columns.",
        "",
        "Index: as in the names of the xyz files.",
        rule,
        "     Index",
        rule,
    ]
    lines = [*header, *(f"{index:10d}" for index in uncharacterized), rule]
    (folder / "uncharacterized.txt").write_text("\n".join(lines) + "\n")


# --- surfaces ---------------------------------------------------------------------------------------------


def extxyz_text(atoms: Atoms, energy: float, forces: np.ndarray, movable: np.ndarray) -> str:
    """One OC20 frame: header and columns as in the official files, eight decimals."""
    lattice = " ".join(f"{x:.8f}" for x in atoms.cell.array.ravel())
    lines = [
        str(len(atoms)),
        f'Lattice="{lattice}" Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 '
        f'energy={energy:.8f} free_energy={energy:.8f} pbc="T T T"',
    ]
    for i, symbol in enumerate(atoms.get_chemical_symbols()):
        position = "".join(f"{x:16.8f} " for x in atoms.positions[i])
        force = "".join(f" {x:15.8f}" for x in forces[i])
        lines.append(f"{symbol:<2} {position}{'T' if movable[i] else 'F':>4} {atoms.get_tags()[i]:7d}{force}")
    return "\n".join(lines) + "\n"


def write_oc20(path: Path, frames: Sequence[str], index: Sequence[str], chunk: int) -> None:
    """OC20 S2EF: a tar with pairs ``N.extxyz.xz`` and ``N.txt.xz``.

    Args:
        path: The tar to write; its stem, twice, is the folder inside.
        frames: extxyz text of every frame.
        index: ``random<sid>,frame<fid>,<reference energy>`` of every frame.
        chunk: Frames in one pair.
    """
    files = {}
    for number, start in enumerate(range(0, len(frames), chunk)):
        stem = f"{path.stem}/{path.stem}/{number}"
        members = slice(start, start + chunk)
        files[f"{stem}.extxyz.xz"] = lzma.compress("".join(frames[members]).encode(), preset=9)
        files[f"{stem}.txt.xz"] = lzma.compress("".join(f"{line}\n" for line in index[members]).encode())
    path.write_bytes(tar_bytes(files))


def write_pickle(path: Path, mapping: Mapping[Any, dict[str, Any]]) -> None:
    """A metadata table of builtins only."""
    path.write_bytes(pickle.dumps(dict(mapping), protocol=4))


class StablePickler(pickle.Pickler):
    """Pickles tensors to the same bytes in every process.

    PyTorch names a storage after its address in memory; here every storage, which stands alone in its own
    stream, has the name ``0``.
    """

    def reducer_override(self, obj: Any) -> Any:
        """Reduce a storage as PyTorch does, but for the name."""
        if not isinstance(obj, torch.storage.TypedStorage):
            return NotImplemented
        buffer = io.BytesIO()
        torch.save(obj, buffer, _use_new_zipfile_serialization=False)
        key = str(obj._cdata).encode()
        # In the protocol of the stream a short text is "X", its length in four bytes, and the text.
        content = buffer.getvalue().replace(
            b"X" + len(key).to_bytes(4, "little") + key, b"X" + (1).to_bytes(4, "little") + b"0"
        )
        return torch.storage._load_from_bytes, (content,)


def write_oc22(path: Path, splits: Mapping[str, Sequence[Data]]) -> None:
    """OC22 S2EF-total: an archive of LMDB folders with pickled PyG objects.

    Args:
        path: The tar.gz to write.
        splits: Objects of every split.
    """
    files = {}
    with TemporaryDirectory() as folder:
        for split, objects in splits.items():
            file = Path(folder) / f"{split}.lmdb"
            with lmdb.open(str(file), subdir=False, map_size=2**26, lock=False) as database:
                with database.begin(write=True) as transaction:
                    for i, data in enumerate(objects):
                        buffer = io.BytesIO()
                        StablePickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(data)
                        transaction.put(str(i).encode(), buffer.getvalue())
                    transaction.put(b"length", pickle.dumps(len(objects), protocol=pickle.HIGHEST_PROTOCOL))
                compact = Path(folder) / f"{split}.copy"
                database.copy(str(compact), compact=True)
            name = f"s2ef_total_train_val_test_lmdbs/data/oc22/s2ef-total/{split}/data.0000.lmdb"
            files[name] = compact.read_bytes()
    path.write_bytes(gzip.compress(tar_bytes(files), compresslevel=9, mtime=0))


# --- crystals ---------------------------------------------------------------------------------------------


def write_matbench(path: Path, target: str, rows: Sequence[tuple[Atoms, float]]) -> None:
    """MatBench: a data frame of pymatgen's structures and one number each, as JSON in gzip."""
    structures = [AseAtomsAdaptor.get_structure(Atoms(atoms)).as_dict() for atoms, _ in rows]
    frame = {
        "index": list(range(len(rows))),
        "columns": ["structure", target],
        "data": [[structure, value] for structure, (_, value) in zip(structures, rows, strict=True)],
    }
    path.write_bytes(gzip.compress(json.dumps(frame).encode(), compresslevel=9, mtime=0))


def write_omat24(path: Path, folder: str, snapshots: Sequence[Snapshot]) -> None:
    """OMat24: an archive of a folder with ASE's rows in LMDB, as zlib-compressed JSON with plain lists for arrays.

    Args:
        path: The tar.gz to write.
        folder: Name of the folder inside.
        snapshots: The structures; numbers are written with six decimals.
    """

    def packed(content: Any) -> bytes:
        return zlib.compress(json.dumps(content).encode(), 9)

    def row(number: int, shot: Snapshot) -> dict[str, Any]:
        return {
            "numbers": shot.atoms.numbers.tolist(),
            "positions": shot.atoms.positions.round(6).tolist(),
            "cell": shot.atoms.cell.array.round(6).tolist(),
            "pbc": shot.atoms.pbc.tolist(),
            "energy": round(shot.energy, 6),
            "forces": shot.forces.round(6).tolist(),
            "calculator": "unknown",
            "calculator_parameters": {},
            "unique_id": f"{number:032x}",
            "ctime": 0.0,
            "mtime": 0.0,
            "user": "recipe",
            "key_value_pairs": {},
            "data": {},
        }

    with TemporaryDirectory() as temporary:
        file, compact = Path(temporary) / "data.aselmdb", Path(temporary) / "data.copy"
        with lmdb.open(str(file), subdir=False, map_size=2**26, lock=False) as database:
            with database.begin(write=True) as transaction:
                for number, shot in enumerate(snapshots, 1):
                    transaction.put(str(number).encode(), packed(row(number, shot)))
                transaction.put(b"nextid", packed(len(snapshots) + 1))
                transaction.put(b"metadata", packed({}))
            database.copy(str(compact), compact=True)
        files = {f"{folder}/data.0000.aselmdb": compact.read_bytes()}
    path.write_bytes(gzip.compress(tar_bytes(files), compresslevel=9, mtime=0))
