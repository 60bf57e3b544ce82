"""Features of CHGNet 0.3.0 (doi 10.1038/s42256-023-00716-3), whose weights are part of the package ``chgnet``."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from chgnet.model.model import CHGNet
from pymatgen.core import Structure as PymatgenStructure

from atomcsi.extractors.base import Extractor
from atomcsi.models.batch import periodic_cell
from atomcsi.structure import Structure

_WEIGHTS = "pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar"


class ChgnetExtractor(Extractor):
    """The 64 invariant features per atom from which CHGNet predicts magnetic moments, before its last convolution.

    The network was trained on crystals (MPtrj), so that molecules are outside of its domain. It knows periodic
    structures only: others are put into a box with vacuum.
    """

    dim = 64
    elements = frozenset(range(1, 95))

    def __init__(self, *, device: str = "cpu", checkpoint: Path | None = None) -> None:
        super().__init__(device=device, checkpoint=checkpoint)
        with as_file(files("chgnet") / _WEIGHTS) as path:
            content = torch.load(path, map_location="cpu", weights_only=True)["model"]
        with contextlib.redirect_stdout(io.StringIO()):  # it tells its number of parameters
            self._model = CHGNet.from_dict(content).eval().to(device)
        self._converter = self._model.graph_converter
        # Atoms without neighbours keep what their convolutions make of themselves alone.
        self._converter.on_isolated_atoms = "ignore"
        self.cutoff = self._converter.atom_graph_cutoff

    @torch.no_grad()
    def _rows(self, structures: Sequence[Structure]) -> np.ndarray:
        graphs = [self._converter(self._periodic(structure)).to(self.device) for structure in structures]
        return torch.cat(self._model(graphs, task="e", return_atom_feas=True)["atom_fea"]).cpu().numpy()

    def _periodic(self, structure: Structure) -> PymatgenStructure:
        cell = periodic_cell(structure, vacuum=self.cutoff + 1.0)
        return PymatgenStructure(cell, structure.numbers, structure.positions, coords_are_cartesian=True)
