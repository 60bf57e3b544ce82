"""What the readers give for the real samples, against what is known of molecules: units, signs, energies."""

import numpy as np
import pytest
from ase import units
from ase.io import read

from atomcsi.errors import ConfigError
from atomcsi.readers.ani1x import Ani1xReader
from atomcsi.readers.pyg_lmdb import structure_of
from atomcsi.readers.qm9 import PROPERTIES, Qm9Reader
from atomcsi.readers.rmd17 import Rmd17Reader
from atomcsi.readers.spice import SpiceReader
from atomcsi.unpickle import load_pyg_data

KCAL = units.kcal / units.mol


def bond_of_hydrogen(structures, energy: float, length: float) -> tuple[float, float]:
    """Stiffness (eV/Angstrom^2) and length (Angstrom) of the C-H bond, by regression of the forces on hydrogens.

    Args:
        structures: Molecules.
        energy: Their unit of energy in eV.
        length: Their unit of length in Angstrom.
    """
    lengths, pulls = [], []
    for structure in structures:
        positions, forces = structure.positions * length, structure.forces * (energy / length)
        carbons = np.flatnonzero(structure.numbers == 6)
        for hydrogen in np.flatnonzero(structure.numbers == 1):
            distances = np.linalg.norm(positions[carbons] - positions[hydrogen], axis=1)
            if len(carbons) and distances.min() < 1.35:
                outward = (positions[hydrogen] - positions[carbons[distances.argmin()]]) / distances.min()
                lengths.append(distances.min())
                pulls.append(forces[hydrogen] @ outward)
    slope, intercept = np.polyfit(lengths, pulls, 1)
    return -slope, intercept / -slope


@pytest.mark.real
@pytest.mark.parametrize(
    ("reader", "folder", "file", "energy", "length"),
    [
        (Rmd17Reader, "rmd17", "rmd17_aspirin_train_01.npz", KCAL, 1.0),
        (Rmd17Reader, "rmd17", "rmd17_ethanol_train_01.npz", KCAL, 1.0),
        (SpiceReader, "spice", "SPICE-1.1.4_n2.hdf5", units.Hartree, units.Bohr),
    ],
)
def test_the_c_h_bond_has_its_stiffness(real, reader, folder, file, energy, length):
    """Force fields and infrared spectra: 4.7 to 5.2 mdyn/Angstrom, which is 29 to 33 eV/Angstrom^2, at 1.09 Angstrom.

    A gradient in place of a force would make it negative; wrong units would miss it by far.
    """
    stiffness, equilibrium = bond_of_hydrogen(reader(real / folder, file=file), energy, length)
    assert 29 < stiffness < 34
    assert equilibrium == pytest.approx(1.10, abs=0.02)


@pytest.mark.real
def test_the_c_h_bond_in_jmp_s_ani1x(real):
    entries = load_pyg_data(real / "ani1x" / "ani1x_pickle16_train.pkl")
    structures = [structure_of(entry, "ani1x", str(index)) for index, entry in enumerate(entries)]
    stiffness, equilibrium = bond_of_hydrogen(structures, 1.0, 1.0)  # JMP converts to eV
    assert 26 < stiffness < 34
    assert equilibrium == pytest.approx(1.10, abs=0.02)


@pytest.mark.real
def test_spice_s_gradient_is_the_force_reversed(real):
    def forces(**options):
        return np.concatenate([s.forces for s in SpiceReader(real / "spice", file="SPICE-1.1.4_n2.hdf5", **options)])

    np.testing.assert_array_equal(forces(forces="gradient"), -forces())
    np.testing.assert_array_equal(forces(forces="minus-gradient"), forces())
    with pytest.raises(ConfigError, match="unknown forces of SPICE 'gradiant'; did you mean 'gradient'"):
        SpiceReader(real, file="x", forces="gradiant")


@pytest.mark.real
def test_aspirin_has_its_published_force(real):
    """JMP's root mean square over 950 frames: 1.2733 eV/Angstrom; here 1000 others of the same 100 000."""
    forces = [s.forces for s in Rmd17Reader(real / "rmd17", file="rmd17_aspirin_train_01.npz")]
    assert np.sqrt(np.mean(np.square(forces))) * KCAL == pytest.approx(1.265, abs=0.01)


@pytest.mark.real
def test_ani1x_energies_are_those_of_its_atoms(real):
    """At wB97X/6-31G(d) the free atoms have -0.4993, -37.8338, -54.5732 and -75.0424 Hartree (ANI-1x's own table).

    What remains is what holds the molecules together: a few eV an atom, and never less than nothing.
    """
    atoms = {1: -0.4993212, 6: -37.8338335, 7: -54.5732825, 8: -75.0424519}
    structures = list(Ani1xReader(real / "ani1x", file="ani1_n5.hdf5"))
    for structure in structures:
        bound = (sum(atoms[number] for number in structure.numbers.tolist()) - structure.energy) * units.Hartree
        assert 2.0 < bound / len(structure) < 6.0
    assert len(structures) == 8


@pytest.fixture
def qm9_files(tmp_path, real):
    """The first molecules of QM9 as files in its raw layout, from the sample's numbers."""
    names = ("A", "B", "C", "mu", "alpha", "epsHOMO", "epsLUMO", "epsgap", "<R2>", "zpve", "U0", "U", "H", "G", "Cv")
    molecules = read(real / "qm9" / "qm9_reduced_100.xyz", ":")
    for index, atoms in enumerate(molecules, 1):
        lines = [str(len(atoms)), f"gdb {index}\t" + "\t".join(str(atoms.info[name]) for name in names)]
        lines += [f"{s}\t{x}\t{y}\t{z}\t0.0" for s, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True)]
        (tmp_path / f"dsgdb9nsd_{index:06d}.xyz").write_text("\n".join([*lines, "1.0", "C\tC", "InChI"]))
    return Qm9Reader(tmp_path, file="", uncharacterized=None)


@pytest.mark.real
def test_qm9_has_the_19_targets(qm9_files):
    assert len(PROPERTIES) == len(Qm9Reader.properties) == 19
    methane, ammonia, *_ = structures = list(qm9_files)
    # The field's table (gdb9.sdf.csv) in kcal/mol: -395.9996 for methane, -276.8611 for ammonia.
    assert methane.properties["U0_atom"] * units.Hartree / KCAL == pytest.approx(-395.9996, abs=1e-3)
    assert ammonia.properties["U0_atom"] * units.Hartree / KCAL == pytest.approx(-276.8611, abs=1e-3)
    for structure in structures:
        p = structure.properties
        assert p["gap"] == pytest.approx(p["lumo"] - p["homo"], abs=2e-4)
        assert p["U0"] < p["U"] < p["H"] and p["G"] < p["H"]
        # Each atom is bound by 2 to 6 eV.
        assert 2 < -p["U0_atom"] * units.Hartree / len(structure) < 6


@pytest.mark.real
def test_qm9_s_free_atoms_are_pytorch_geometric_s(qm9_files):
    table = pytest.importorskip("torch_geometric.datasets.qm9").atomrefs
    for structure in qm9_files:
        for column, name in ((7, "U0"), (8, "U"), (9, "H"), (10, "G")):
            free = dict(zip((1, 6, 7, 8, 9), table[column], strict=True))  # eV
            expected = structure.properties[name] * units.Hartree - sum(free[z] for z in structure.numbers.tolist())
            assert structure.properties[f"{name}_atom"] * units.Hartree == pytest.approx(expected, abs=1e-4)
