"""Graphs, tables and angles of GemNet-OC, against loops and closed forms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.neighborlist import neighbor_list
from scipy.special import eval_legendre, sph_harm_y

from atomcsi.catalogue import Graph
from atomcsi.models.gemnet_oc import basis
from atomcsi.models.gemnet_oc.graph import GemNetCollate, GraphSettings
from atomcsi.models.gemnet_oc.settings import Switches
from atomcsi.models.gemnet_oc.tables import picked, placed, to_rows, to_tables
from atomcsi.structure import Structure
from atomcsi.structure_batch import StructureBatch

#: Reach in Angstrom of the graphs here: longer than the cell, so that atoms see images of themselves.
CUTOFF = 4.0
SWITCHES = ("quad_interaction", "atom_edge_interaction", "edge_atom_interaction", "atom_interaction")
#: Limits that cut in every structure here.
LIMITED = {"max_neighbors": 8, "max_neighbors_qint": 4, "max_neighbors_aeaint": 6}


def structure(atoms):
    return Structure(
        numbers=atoms.numbers,
        positions=atoms.positions,
        source="x",
        label="x",
        cell=atoms.cell[:] if atoms.pbc.any() else None,
        pbc=tuple(atoms.pbc),
    )


def make_molecule(name="CH3CH2OH"):
    atoms = molecule(name)
    atoms.positions += np.random.default_rng(0).normal(scale=0.05, size=atoms.positions.shape)
    return atoms


def make_crystal(atoms=3, length=3.2, seed=0):
    """Of a tilted cell, without symmetry."""
    draw = np.random.default_rng(seed)
    cell = length * (np.eye(3) + draw.uniform(-0.15, 0.15, (3, 3)))
    positions = draw.uniform(0, 1, (atoms, 3)) @ cell
    return Atoms("H" * atoms, positions=positions, cell=cell, pbc=True)


def settings(**changes):
    """All interactions, and no limits but those that are given."""
    limits = dict.fromkeys(["max_neighbors", "max_neighbors_qint", "max_neighbors_aeaint", "max_neighbors_aint"], 1000)
    return GraphSettings(
        **{"cutoff": CUTOFF, "molecule_cutoff": None, "neighbor_rule": "fairchem", "qint_tags": (0, 1, 2)}
        | limits
        | {"switches": Switches(**dict.fromkeys(SWITCHES, True))}
        | changes
    )


def batch_of(members, **changes):
    collate = GemNetCollate(settings=settings(**changes), dtype=torch.float64)
    return collate([structure(atoms) for atoms in members])


def vectors(edges, batch):
    """From target to source."""
    return (batch.positions[edges.source] + edges.shift - batch.positions[edges.target]).numpy()


def keys(edges, batch, names=None):
    """What edges there are: ends, and vectors to 1e-6 Angstrom."""
    names = np.arange(len(batch.numbers)) if names is None else names
    rounded = vectors(edges, batch).round(6) + 0.0  # without negative zeros
    return sorted(zip(names[edges.source].tolist(), names[edges.target].tolist(), *rounded.T.tolist(), strict=True))


class TestEdges:
    def test_all_within_the_cutoff_equal_ase(self):
        """As ASE's own search finds them, which is not the one that is used."""
        members = [make_molecule(), make_crystal()]
        batch = batch_of(members)
        expected, first = [], 0
        for atoms in members:
            target, source, vector = neighbor_list("ijD", atoms, CUTOFF)
            expected += zip((source + first).tolist(), (target + first).tolist(), *(vector.round(6) + 0.0).T.tolist(),
                            strict=True)  # fmt: skip
            first += len(atoms)
        graph = batch.graph
        for edges in (graph.main, graph.atom_edge, graph.quadruplet, graph.pairs):
            assert keys(edges, batch) == sorted(expected)

    @pytest.mark.parametrize("rule", ["fairchem", "jmp", "order-free"])
    def test_each_edge_has_its_opposite(self, rule):
        batch = batch_of([make_molecule(), make_crystal()], **LIMITED, neighbor_rule=rule)
        main, reverse = batch.graph.main, batch.graph.reverse
        assert torch.equal(reverse[reverse], torch.arange(len(main)))
        assert not (reverse == torch.arange(len(main))).any()
        assert torch.equal(main.source[reverse], main.target)
        np.testing.assert_allclose(vectors(main, batch)[reverse], -vectors(main, batch), atol=1e-12)
        assert (main.target.diff() >= 0).all()

    def test_opposites_of_quadruplet_edges(self):
        """Equal images have equal numbers: the opposite's is that of the edge a -> b among all edges."""
        batch = batch_of([make_crystal()], neighbor_rule="order-free")
        middle, main = batch.graph.quadruplet, batch.graph.main
        # Without limits both hold the same edges, in the same order.
        assert keys(middle, batch) == keys(main, batch)
        assert torch.equal(middle.image, main.image)
        assert torch.equal(batch.graph.opposite_image, main.image[batch.graph.reverse])

    def test_the_nearest_are_kept(self):
        batch = batch_of([make_crystal()], **LIMITED)
        every = batch_of([make_crystal()])
        distances = np.linalg.norm(vectors(every.graph.pairs, every), axis=1)
        for edges, limit in ((batch.graph.quadruplet, 4), (batch.graph.atom_edge, 6)):
            found = np.linalg.norm(vectors(edges, batch), axis=1)
            for atom in range(3):
                expected = np.sort(distances[every.graph.pairs.target == atom])[:limit]
                np.testing.assert_allclose(np.sort(found[edges.target == atom]), expected, atol=1e-12)

    def test_order_free_edges_do_not_depend_on_the_order_of_atoms(self):
        """The rules of published models do, where limits cut."""
        atoms, order = make_crystal(8, 5.0), np.random.default_rng(3).permutation(8)
        for rule, same in (("order-free", True), ("fairchem", False), ("jmp", False)):
            first, second = (batch_of([each], **LIMITED, neighbor_rule=rule) for each in (atoms, atoms[order]))
            assert (keys(first.graph.main, first) == keys(second.graph.main, second, order)) == same

    def test_order_free_edges_are_those_that_either_end_keeps(self):
        atoms = make_crystal(8, 5.0)
        batch = batch_of([atoms], **LIMITED, neighbor_rule="order-free")
        target, source, vector, distance = neighbor_list("ijDd", atoms, CUTOFF)
        expected = set()
        for atom in range(8):
            own = np.flatnonzero(target == atom)
            for edge in own[np.argsort(distance[own])[:8]]:
                v = (vector[edge].round(6) + 0.0).tolist()
                expected |= {(source[edge], atom, *v), (atom, source[edge], *(-x + 0.0 for x in v))}
        assert keys(batch.graph.main, batch) == sorted(expected)

    def test_tags_choose_quadruplets(self):
        """An edge is in the middle of quadruplets if one of its ends has one of the tags."""
        crystal = replace(structure(make_crystal()), tags=np.array([0, 1, 2]))
        graph = GemNetCollate(settings=settings(qint_tags=(1,)))([crystal]).graph
        every = graph.pairs
        expected = ((every.source == 1) | (every.target == 1)).sum()
        assert len(graph.quadruplet) == expected < len(every)
        assert ((graph.quadruplet.source == 1) | (graph.quadruplet.target == 1)).all()


class TestPerStructureGraphs:
    def test_cutoffs_and_limits_are_the_datasets(self):
        molecule_, crystal = structure(make_molecule()), structure(make_crystal(8, 5.0))
        graphs = [Graph(cutoff=2.0, max_neighbors=30), Graph(cutoff=5.0, max_neighbors=30, max_neighbors_above={7: 12})]
        own = settings(max_neighbors=30, max_neighbors_qint=8, max_neighbors_aeaint=20)
        together = StructureBatch.of([molecule_, crystal, molecule_])
        batch = GemNetCollate(settings=own, graphs=graphs)(replace(together, dataset=np.array([0, 1, 1])))
        assert batch.graph.cutoff.tolist() == [2.0, 5.0, 5.0]
        distances = torch.as_tensor(np.linalg.norm(vectors(batch.graph.pairs, batch), axis=1))
        reach = torch.stack([distances[batch.index[batch.graph.pairs.target] == i].max() for i in range(3)])
        assert (reach[:2] > torch.tensor([1.9, 4.7])).all()
        assert (reach < torch.tensor([2.0, 5.0, 5.0])).all()
        # QMOF's rule: of a structure with more than 7 atoms, 12 neighbours; of the other graphs 8/30 and 20/30 of it.
        of_crystal = batch.index == 1
        for edges, limit in ((batch.graph.quadruplet, 12 * 8 // 30), (batch.graph.atom_edge, 12 * 20 // 30)):
            count = torch.bincount(edges.target, minlength=len(of_crystal))[of_crystal]
            assert (count == limit).all()
        count = torch.bincount(batch.graph.pairs.target)[of_crystal]
        assert (count > 12).all()
        assert (count <= 12 * 1000 // 30).all()

    def test_molecules_may_have_a_cutoff_of_their_own(self):
        members = [make_molecule("C6H6"), make_crystal()]
        batch = batch_of(members, molecule_cutoff=2.0)
        for i, cutoff in enumerate((2.0, CUTOFF)):
            alone = batch_of(members[i : i + 1], cutoff=cutoff)
            own = batch.index[batch.graph.main.target] == i
            assert own.sum() == len(alone.graph.main)
            assert batch.graph.cutoff[i] == cutoff


class TestTriangles:
    @staticmethod
    def found(graph):
        """Main edge c -> a, quadruplet edge b -> a and main edge d -> b of each triangle, by position."""
        main, middle = graph.main, graph.quadruplet
        tables = [to_tables(torch.arange(len(edges)), edges) for edges in (main, middle)]
        pairs = [torch.cartesian_prod(x, y) for group in zip(*tables, strict=True) for x, y in zip(*group, strict=True)]
        c, b = torch.cat(pairs)[graph.triangles[0]].T
        of_atom = torch.zeros(int(main.target.max()) + 1, main.width, dtype=torch.long)
        of_atom[main.target, main.rank] = torch.arange(len(main))
        d = of_atom[middle.source].flatten()[graph.triangles[1]]
        return list(zip(c.tolist(), b.tolist(), d.tolist(), strict=True))

    def test_equal_a_loop_over_quadruplets(self):
        """All c -> a <- b <- d with c = d, the image included, of a crystal whose atoms see images of themselves."""
        batch = batch_of([make_crystal(), make_molecule("CH4")], **LIMITED)
        main, middle = batch.graph.main, batch.graph.quadruplet
        of_main, of_middle = vectors(main, batch), vectors(middle, batch)
        expected = []
        for q, (a, b) in enumerate(zip(middle.target.tolist(), middle.source.tolist(), strict=True)):
            for c in np.flatnonzero(main.target == a):
                for d in np.flatnonzero((main.target == b) & (main.source == main.source[c])):
                    # Both seen from a.
                    if np.abs(of_main[c] - (of_middle[q] + of_main[d])).max() < 1e-6:
                        expected.append((c, q, d))
        assert len(expected) > 50
        assert sorted(self.found(batch.graph)) == sorted(expected)


class TestTables:
    @pytest.fixture
    def batch(self):
        """Atoms with very different numbers of edges, from none on."""
        return batch_of([make_molecule("C6H6"), Atoms("H"), make_crystal(), Atoms("H2", [[0, 0, 0], [0, 0, 3]])])

    def test_round_trip(self, batch):
        edges = batch.graph.main
        rows = torch.randn(len(edges), 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        tables = to_tables(rows, edges)
        assert [tuple(table.shape) for table in tables] == [(*shape, 3, 2) for shape in edges.shapes]
        assert torch.equal(to_rows(tables, edges), rows)

    def test_each_atom_has_its_own_edges_and_nothing_else(self, batch):
        edges, natoms = batch.graph.main, len(batch.numbers)
        rows = torch.randn(len(edges), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        sums = torch.cat([table.sum(1) for table in to_tables(rows, edges)])
        expected = rows.new_zeros(natoms).index_add(0, edges.target, rows)
        torch.testing.assert_close(sums[batch.graph.place], expected)

    def test_little_is_empty(self, batch):
        """One table would be as wide as the crystal's atoms have edges, for all atoms."""
        edges = batch.graph.main
        assert sum(atoms for atoms, _ in edges.shapes) == len(batch.numbers)
        assert len(edges) <= sum(atoms * width for atoms, width in edges.shapes) < len(batch.numbers) * edges.width

    def test_gradients(self):
        slot = torch.tensor([0, 3, 1])
        rows = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        table = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        for function, inputs in ((lambda x: placed(x, slot, 4), rows), (lambda x: picked(x, slot), table)):
            assert torch.autograd.gradcheck(function, inputs)
            assert torch.autograd.gradgradcheck(function, inputs)


class TestAngles:
    def test_polynomials_are_zonal_harmonics(self):
        """Y_l0 of SciPy, and Legendre's polynomials with their normalisation."""
        x = np.linspace(-1, 1, 101)
        found = basis.polynomials(torch.as_tensor(x), 7).numpy()
        for degree in range(7):
            expected = eval_legendre(degree, x) * ((2 * degree + 1) / (4 * np.pi)) ** 0.5
            np.testing.assert_allclose(found[degree], expected, atol=1e-14)
            np.testing.assert_allclose(found[degree], sph_harm_y(degree, 0, np.arccos(x), 0).real, atol=1e-14)

    @pytest.mark.parametrize("number", [1, 2, 4, 7])
    def test_dihedral_angles_are_differences_of_azimuths(self, number):
        """Azimuths around an axis of vectors of any length; the dihedral from cross products, as in a textbook."""
        draw = np.random.default_rng(0)
        axis = torch.nn.functional.normalize(torch.as_tensor(draw.standard_normal((50, 3))), dim=1)
        c, d = torch.as_tensor(draw.standard_normal((2, 50, 3)))
        normals = np.cross(c, axis), np.cross(d, axis)
        cosine = (
            np.sum(normals[0] * normals[1], 1) / np.linalg.norm(normals[0], axis=1) / np.linalg.norm(normals[1], axis=1)
        )
        frame = basis.perpendicular(axis)
        of_c, of_d = (basis.azimuth_functions(*torch.einsum("ei,eij->je", v, frame), number).numpy() for v in (c, d))
        found = basis.dihedral_coefficients(number) @ (of_c * of_d)
        expected = basis.polynomials(torch.as_tensor(cosine), number).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-13)

    def test_frames_are_orthonormal(self):
        direction = torch.cat([torch.eye(3), -torch.eye(3), torch.nn.functional.normalize(torch.ones(1, 3))]).double()
        frame = torch.cat([direction[:, :, None], basis.perpendicular(direction)], dim=2)
        torch.testing.assert_close(frame.transpose(1, 2) @ frame, torch.eye(3).double().expand(7, 3, 3))

    def test_no_azimuth_where_three_atoms_are_in_line(self):
        """Functions are 0 and the flag is 1, and no gradient is infinite."""
        x = torch.tensor([0.0, 1e-7, 0.3], dtype=torch.float64, requires_grad=True)
        y = torch.tensor([0.0, -1e-7, 0.4], dtype=torch.float64, requires_grad=True)
        found = basis.azimuth_functions(x, y, 3)
        assert found[-1].tolist() == [1, 1, 0]
        assert not found[:-1, :2].any()
        np.testing.assert_allclose(found[:5, 2].detach(), [1, 0.6, 0.8, 0.6**2 - 0.8**2, 2 * 0.6 * 0.8], atol=1e-15)
        found.sum().backward()
        assert x.grad.isfinite().all()
        assert y.grad.isfinite().all()
        # Planes that are undefined count as at right angles: P_m(0).
        expected = basis.polynomials(torch.zeros(1, dtype=torch.float64), 4)[:, 0].numpy()
        np.testing.assert_allclose(basis.dihedral_coefficients(4)[:, -1], expected, atol=1e-15)

    def test_radial_basis_ends_smoothly(self):
        """The envelope of DimeNet: 1 at 0, and 0 with two derivatives at the cutoff."""
        x = torch.tensor([0.0, 1.0 - 1e-4, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
        value = basis.envelope(x)
        (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        assert value.tolist()[0] == 1
        assert value.tolist()[2:] == first.tolist()[2:] == second.tolist()[2:] == [0, 0]
        # (1 - x)^3 (1 + 3x + 6x^2 + 10x^3 + 15x^4) is the polynomial in factors: 35 (1 - x)^3 near 1.
        assert value[1].item() == pytest.approx(35e-12, rel=1e-3)
