import pickle

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from atomcsi.catalogue import Graph
from atomcsi.models.batch import AtomBatch, collate
from atomcsi.models.edges import EdgeCollate
from atomcsi.models.neighbours import neighbours
from atomcsi.models.schnet import SchNet
from atomcsi.structure import Structure
from atomcsi.structure_batch import StructureBatch


def structure(atoms):
    cell = atoms.cell[:] if atoms.pbc.any() else None
    return Structure(
        numbers=atoms.numbers, positions=atoms.positions, source="x", label="x", cell=cell, pbc=tuple(atoms.pbc)
    )


@pytest.fixture
def mixed():
    """A crystal with an atom outside its cell, an atom alone, and a molecule."""
    crystal = bulk("NaCl", "rocksalt", a=5.6)
    crystal.positions[1] += 2 * crystal.cell[0]
    return [structure(crystal), structure(Atoms("He")), structure(molecule("CH3OH"))]


def per_structure(batch):
    return torch.bincount(batch.index[batch.target], minlength=len(batch)).tolist()


def test_edges_of_a_batch_are_those_of_its_structures(mixed):
    batch = EdgeCollate(cutoff=4.0, dtype=torch.float64)(mixed)
    lengths = batch.vectors().norm(dim=-1).split(per_structure(batch))
    for found, member in zip(lengths, mixed, strict=True):
        expected = np.linalg.norm(neighbours(member, 4.0)[2], axis=1)
        np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=0, atol=1e-12)
    assert torch.equal(batch.index[batch.source], batch.index[batch.target])
    assert (batch.target.diff() >= 0).all()


def test_all_else_is_as_without_edges(mixed):
    batch, expected = EdgeCollate(cutoff=4.0)(mixed), collate(mixed, vacuum=5.0)
    for name in AtomBatch.__slots__:
        torch.testing.assert_close(getattr(batch, name), getattr(expected, name), rtol=0, atol=0, equal_nan=True)


def test_graphs_of_datasets_narrow_that_of_the_model():
    """An fcc crystal with 12 neighbours at 2.55 Angstrom, 6 at 3.61 and 24 at 4.42, as of many datasets."""
    graphs = [
        None,
        Graph(cutoff=3.0, max_neighbors=50),
        Graph(cutoff=9.0, max_neighbors=50),
        Graph(cutoff=9.0, max_neighbors=5),
        Graph(cutoff=9.0, max_neighbors=42, max_neighbors_above={1: 13, 2: 5}),
    ]
    two_atoms = structure(bulk("Cu", a=3.61) * (1, 1, 2))
    members = StructureBatch.of([two_atoms] * len(graphs))
    members.dataset = np.arange(len(graphs))
    # Neighbours that are equally near are kept together: 13 means 18.
    expected = [2 * neighbours for neighbours in (42, 12, 42, 12, 18)]
    assert per_structure(EdgeCollate(cutoff=5.0, graphs=graphs)(members)) == expected
    assert per_structure(EdgeCollate(cutoff=5.0, max_neighbors=10, graphs=graphs)(members)) == [24] * 5


def test_goes_to_workers_and_devices(mixed):
    collate_with_edges = pickle.loads(pickle.dumps(EdgeCollate(cutoff=4.0, graphs=[Graph(cutoff=3, max_neighbors=9)])))
    moved = collate_with_edges(mixed).to("meta")
    assert moved.source.is_meta and moved.offset.is_meta and moved.positions.is_meta


def test_edges_are_left_out_with_their_probability(mixed):
    backbone = SchNet(hidden_channels=8, num_filters=8, num_interactions=1, cutoff=8.0)
    batch = backbone.collate()(mixed)
    whole = len(batch.source)
    backbone.drop_edges(0.3)
    torch.manual_seed(0)
    shares = [len(backbone.kept(batch).source) / whole for _ in range(30)]
    # Five standard errors of the mean.
    assert np.mean(shares) == pytest.approx(0.7, abs=5 * (0.7 * 0.3 / whole / len(shares)) ** 0.5)
    assert len(set(shares)) > 1
    kept = backbone.kept(batch)
    rows = {tuple(row) for row in torch.column_stack([batch.source, batch.target, batch.offset]).tolist()}
    assert {tuple(row) for row in torch.column_stack([kept.source, kept.target, kept.offset]).tolist()} < rows
    backbone.drop_edges(1 - 1e-9)
    assert len(backbone.kept(batch).source) == whole  # rather than none
    backbone.drop_edges(0.3)
    assert backbone.eval().kept(batch) is batch
