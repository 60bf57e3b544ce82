from fractions import Fraction

import numpy as np
import pytest
from ase.data import atomic_numbers

from atomcsi.errors import InputError
from atomcsi.statistics import Statistics, check_reference, read_reference
from atomcsi.structure import Structure
from atomcsi.structure_batch import StructureBatch


def batch(counts, energies) -> StructureBatch:
    """Structures with these numbers of atoms of H, C, N and O, shape (structures, 4)."""
    return StructureBatch.of(
        [
            Structure(
                numbers=np.repeat([1, 6, 7, 8], row),
                positions=np.zeros((sum(row), 3)),
                source=f"s{i}",
                label="",
                energy=energy,
            )
            for i, (row, energy) in enumerate(zip(counts, energies, strict=True))
        ]
    )


def exact_fit(counts, energies) -> tuple[list[Fraction], Fraction]:
    """Least squares by the normal equations and Gauss elimination in rational numbers."""
    rows = [[Fraction(int(c)) for c in row] for row in counts]
    values = [Fraction(float(e)) for e in energies]
    size = len(rows[0])
    columns = [*zip(*rows, strict=True), values]
    matrix = [[sum(a * b for a, b in zip(columns[i], column, strict=True)) for column in columns] for i in range(size)]
    for i in range(size):
        matrix[i] = [x / matrix[i][i] for x in matrix[i]]
        for j in set(range(size)) - {i}:
            matrix[j] = [x - matrix[j][i] * y for x, y in zip(matrix[j], matrix[i], strict=True)]
    solution = [row[-1] for row in matrix]
    left = [v - sum(a * b for a, b in zip(r, solution, strict=True)) for r, v in zip(rows, values, strict=True)]
    return solution, sum(x * x for x in left) / len(left)


@pytest.mark.parametrize("sizes", [(300,), (1, 299), (100, 100, 100)])
def test_the_reference_is_the_exact_least_squares(sizes):
    """Total energies of 1e4 eV with a spread of 1 meV, against rational arithmetic; however the stream is cut."""
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 10, (300, 4))
    energies = counts @ [-13.6, -1036.1, -1489.0, -2041.8] + generator.normal(scale=1e-3, size=300)
    statistics, start = Statistics(), 0
    for size in sizes:
        statistics.add(batch(counts[start : start + size], energies[start : start + size]))
        start += size
    found = statistics.summary()
    reference, variance = exact_fit(counts, energies)
    np.testing.assert_allclose(list(found["linear_reference"].values()), [float(x) for x in reference], rtol=1e-12)
    assert found["energy_std"] == pytest.approx(float(variance) ** 0.5, rel=1e-4)
    assert found["energy_range"] == [energies.min(), energies.max()]


def test_compositions_that_do_not_tell_elements_apart():
    """Water at any size: the solution of least norm, as from the design matrix itself."""
    counts = np.outer(np.arange(1, 50), [2, 0, 0, 1])
    energies = counts @ [-13.6, 0, 0, -2041.8] + np.random.default_rng(0).normal(scale=0.1, size=49)
    statistics = Statistics()
    for rows in np.array_split(np.arange(49), 5):
        statistics.add(batch(counts[rows], energies[rows]))
    expected = np.linalg.lstsq(counts[:, [0, 3]].astype(float), energies, rcond=None)[0]
    np.testing.assert_allclose(list(statistics.summary()["linear_reference"].values()), expected, rtol=1e-9)


def test_a_given_reference_is_kept():
    reference = np.zeros(119)
    reference[[1, 8]] = -10.0, -2000.0
    statistics = Statistics(reference)
    statistics.add(batch([[2, 0, 0, 1], [1, 0, 0, 1]], [-2021.0, -2010.0]))
    found = statistics.summary()
    assert found["linear_reference"] == {"1": -10.0, "8": -2000.0}
    assert found["energy_std"] == pytest.approx(0.5**0.5)  # residuals -1 and 0


@pytest.fixture
def official(real):
    return real / "oc22" / "oc22_linfit_coeffs.npz"


@pytest.mark.real
def test_the_official_reference_of_oc22(official):
    """What the file holds, and leftovers of its fit from 0.0004 to 6e10 eV for elements that OC22 lacks."""
    reference = read_reference(official, 100.0)
    assert reference[[1, 8, 79, 80]] == pytest.approx([-3.43403, -6.66451, -1.08486, 1.23949], rel=1e-5)
    absent = ["He", "B", "F", "Ne", "P", "S", "Cl", "Ar", "Br", "Kr", "Tc", "I", "Xe", "La", "U"]
    assert np.isnan(reference[[atomic_numbers[symbol] for symbol in absent]]).all()
    check_reference(reference, batch([[1, 1, 1, 1]], [0.0]), official)


@pytest.mark.real
def test_an_element_that_a_reference_lacks_is_refused(official):
    slab = Structure(numbers=np.array([1, 35]), positions=np.zeros((2, 3)), source="random7/frame3", label="")
    with pytest.raises(InputError, match=r"coeffs\.npz: has no credible energy for Br, which random7/frame3 holds"):
        check_reference(read_reference(official, 100.0), StructureBatch.of([slab]), official)


@pytest.mark.parametrize("content", [None, b"", b"no archive"])
def test_a_reference_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "x.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.npz: (is missing|holds no linear reference)"):
        read_reference(path, 100.0)
