"""Features of GemNet-OC (arXiv 2204.02782) as it was pretrained here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from atomcsi.errors import InputError
from atomcsi.extractors.base import Extractor
from atomcsi.models.batch import collate
from atomcsi.models.potential import build_backbone
from atomcsi.structure import MAX_ATOMIC_NUMBER, Structure
from atomcsi.training.model_files import CARD, WEIGHTS, load_backbone, read_card


class GemNetOCExtractor(Extractor):
    """The invariant features of the atoms behind GemNet-OC's output blocks, before any head.

    Args:
        checkpoint: ``model.safetensors`` of a pretrained model, with its ``model.json`` beside it, or their folder.
        device: Where it computes.

    Raises:
        InputError: One of the two files is missing or damaged, or is of another backbone.
    """

    needs_checkpoint = True
    elements = frozenset(range(1, MAX_ATOMIC_NUMBER + 1))

    def __init__(self, *, checkpoint: Path | None = None, device: str = "cpu") -> None:
        if checkpoint is not None and Path(checkpoint).is_dir():
            checkpoint = Path(checkpoint) / WEIGHTS
        super().__init__(device=device, checkpoint=checkpoint)
        if Path(checkpoint).name != WEIGHTS:
            mend = f"name the '{WEIGHTS}' that pretraining wrote"
            raise InputError(checkpoint, "is no model that was pretrained with atomcsi", mend=mend)
        folder = Path(checkpoint).parent
        settings = read_card(folder)["backbone"]
        if settings["implementation"] != "gemnet-oc":
            raise InputError(folder / CARD, f"tells of a {settings['implementation']}", mend="GemNet-OC is needed")
        self._backbone = build_backbone(settings)
        load_backbone(self._backbone, folder)
        self._backbone.eval().to(device)
        self.dim = self._backbone.node_dim
        self.cutoff = self._backbone.cutoff
        self.max_neighbors = self._backbone.max_neighbors

    @torch.no_grad()
    def _rows(self, structures: Sequence[Structure]) -> np.ndarray:
        batch = collate(structures, vacuum=self.cutoff + 1.0).to(self.device)
        return self._backbone(batch).node.cpu().numpy()
