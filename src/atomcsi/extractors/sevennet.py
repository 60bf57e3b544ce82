"""Features of SevenNet-0 (doi 10.1021/acs.jctc.4c00190), whose weights are part of the package ``sevenn``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from atomcsi.extractors.base import Extractor
from atomcsi.models.neighbours import neighbours
from atomcsi.structure import Structure


class SevenNetExtractor(Extractor):
    """The 128 invariant features per atom from which 7net-0 predicts atomic energies.

    The network was trained on crystals (MPtrj), so that molecules are outside of its domain.
    """

    dim = 128

    def __init__(self, *, device: str = "cpu", checkpoint: Path | None = None) -> None:
        super().__init__(device=device, checkpoint=checkpoint)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of accelerators for other devices, and of deprecations in e3nn
            from sevenn.calculator import SevenNetCalculator

            calculator = SevenNetCalculator("7net-0", device=device)
        model = calculator.model
        self.elements = frozenset(calculator.type_map)
        self.cutoff = calculator.cutoff
        self._species = model.z_to_onehot_tensor.to(device)
        # What follows the last gate turns features into energies and, by differentiation, forces.
        last = max(i for i, name in enumerate(model._modules) if name.endswith("_equivariant_gate"))
        self._layers = list(model)[: last + 1]

    @torch.no_grad()
    def _rows(self, structures: Sequence[Structure]) -> np.ndarray:
        sources, targets, vectors, start = [], [], [], 0
        for structure in structures:
            source, target, vector = neighbours(structure, self.cutoff)
            sources.append(source + start)
            targets.append(target + start)
            vectors.append(vector)
            start += len(structure)
        edges = np.stack([np.concatenate(sources), np.concatenate(targets)])
        numbers = torch.as_tensor(np.concatenate([s.numbers for s in structures]).astype(np.int64))
        data = {
            "x": self._species[numbers.to(self.device)],
            "edge_index": torch.as_tensor(edges, dtype=torch.long, device=self.device),
            "edge_vec": torch.as_tensor(np.concatenate(vectors), dtype=torch.float32, device=self.device),
        }
        for layer in self._layers:
            data = layer(data)
        return data["x"].cpu().numpy()
