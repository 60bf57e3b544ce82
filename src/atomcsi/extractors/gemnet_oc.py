"""Features of GemNet-OC (arXiv 2204.02782): as it was pretrained here, or as JMP's published checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from atomcsi.errors import ConfigError, InputError
from atomcsi.extractors.base import Extractor
from atomcsi.models.gemnet_oc import GemNetOC
from atomcsi.models.gemnet_oc.jmp import load_jmp
from atomcsi.models.potential import build_backbone
from atomcsi.structure import MAX_ATOMIC_NUMBER, Structure
from atomcsi.training.model_files import CARD, WEIGHTS, load_backbone, read_card

#: JMP's number of edges per atom, and the least of which every interaction gets one.
_JMP_NEIGHBORS, _LEAST_NEIGHBORS = 30, 4


class GemNetOCExtractor(Extractor):
    """The invariant features of the atoms that GemNet-OC hands to its heads.

    Of a model that was pretrained here these are the outputs of all its output blocks. JMP-S and JMP-L (arXiv
    2310.16802) condense theirs to 256 numbers within the backbone; elements that were not in their pretraining data
    have features too, from embeddings that were never trained.

    Args:
        checkpoint: ``model.safetensors`` of a pretrained model, with its ``model.json`` beside it, or their folder;
            or a checkpoint in JMP's published layout, ``jmp-s.pt`` or ``jmp-l.pt``.
        device: Where it computes.
        cutoff: Length of the longest edges in Angstrom, for JMP only; by default what JMP was pretrained with, 8 in
            molecules and 12 in periodic structures. JMP was finetuned with 7 to 19, depending on the dataset.
        max_neighbors: Edges per atom, for JMP only; 30 by default, as in its pretraining.

    Raises:
        ConfigError: An option is out of range, or is given for a model that has its own.
        InputError: A file is missing or damaged, or is of another model.
    """

    needs_checkpoint = True
    elements = frozenset(range(1, MAX_ATOMIC_NUMBER + 1))

    def __init__(
        self,
        *,
        checkpoint: Path | None = None,
        device: str = "cpu",
        cutoff: float | None = None,
        max_neighbors: int | None = None,
    ) -> None:
        if checkpoint is not None and Path(checkpoint).is_dir():
            checkpoint = Path(checkpoint) / WEIGHTS
        super().__init__(device=device, checkpoint=checkpoint)
        path = Path(checkpoint)
        if path.name == WEIGHTS:
            if cutoff is not None or max_neighbors is not None:
                raise ConfigError("gemnet-oc takes cutoff and max_neighbors for JMP only: other models have their own")
            self._use_pretrained(path.parent)
        else:
            self._use_jmp(path, cutoff, _JMP_NEIGHBORS if max_neighbors is None else max_neighbors)

    def _use_pretrained(self, folder: Path) -> None:
        settings = read_card(folder)["backbone"]
        if settings["implementation"] != "gemnet-oc":
            raise InputError(folder / CARD, f"tells of a {settings['implementation']}", mend="GemNet-OC is needed")
        backbone = build_backbone(settings)
        load_backbone(backbone, folder)
        self._use(backbone)

    def _use_jmp(self, path: Path, cutoff: float | None, max_neighbors: int) -> None:
        if cutoff is not None and cutoff <= 0:
            raise ConfigError(f"the cutoff of gemnet-oc must be positive, not {cutoff}")
        if max_neighbors < _LEAST_NEIGHBORS:
            raise ConfigError(f"max_neighbors of gemnet-oc must be at least {_LEAST_NEIGHBORS}, not {max_neighbors}")
        self._use(load_jmp(path, cutoff=cutoff, max_neighbors=max_neighbors))

    def _use(self, backbone: GemNetOC) -> None:
        self._backbone = backbone.eval().to(self.device)
        self._collate = backbone.collate()
        self.dim, self.cutoff, self.max_neighbors = backbone.node_dim, backbone.cutoff, backbone.max_neighbors

    @torch.no_grad()
    def _rows(self, structures: Sequence[Structure]) -> np.ndarray:
        return self._backbone(self._collate(structures).to(self.device)).node.cpu().numpy()
