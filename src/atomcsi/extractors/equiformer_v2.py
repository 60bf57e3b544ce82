"""Features of EquiformerV2 (arXiv 2306.12059) from published checkpoints, as the paper uses them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from atomcsi.errors import ConfigError, InputError, did_you_mean
from atomcsi.extractors.base import Extractor
from atomcsi.models.batch import collate
from atomcsi.models.checkpoints import load_weights, read_checkpoint
from atomcsi.models.equiformer_v2 import EquiformerV2Blocks, published_weights
from atomcsi.models.fairchem import FairchemBatch  # before fairchem's own modules
from atomcsi.structure import Structure

# isort: split
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone

#: EquiformerV2-31M, for checkpoints without a config.
SETTINGS_31M: Mapping[str, Any] = {
    "max_neighbors": 20,
    "max_radius": 12.0,
    "max_num_elements": 90,
    "num_layers": 8,
    "sphere_channels": 128,
    "attn_hidden_channels": 64,
    "num_heads": 8,
    "attn_alpha_channels": 64,
    "attn_value_channels": 16,
    "ffn_hidden_channels": 128,
    "norm_type": "layer_norm_sh",
    "lmax_list": [4],
    "mmax_list": [2],
    "grid_resolution": 18,
    "edge_channels": 128,
    "attn_activation": "silu",
    "ffn_activation": "silu",
    "use_grid_mlp": True,
    "weight_init": "uniform",
}
#: Needed whatever a checkpoint's config says: forces would keep the graph of the whole network in memory.
_FIXED = {"use_pbc": True, "otf_graph": True, "regress_forces": False}
_FEATURES, _PRECISIONS = ("full", "invariant"), ("float32", "bf16")


class EquiformerV2Extractor(Extractor):
    """The last node embedding of EquiformerV2.

    Args:
        checkpoint: A checkpoint in fairchem's published layout, such as ``eq2_31M_ec4_allmd.pt``.
        features: ``full`` for all spherical-harmonic coefficients of all channels, 3200 numbers in the 31M model,
            which rotate with the structure; ``invariant`` for those of degree 0, 128 numbers, which do not.
        device: Where it computes.
        seed: Seed of the random frames in which the network sees its edges; they change features by about 2e-5.
        precision: ``float32``, or ``bf16`` for the network's matrix products, which is faster where processors have
            instructions for it and changes features by about 1 %; geometry stays in float32.

    Raises:
        ConfigError: ``features`` or ``precision`` is neither of the two.
        InputError: The checkpoint does not exist, is none, holds code or is one of another architecture.
    """

    needs_checkpoint = True

    def __init__(
        self,
        *,
        checkpoint: Path | None = None,
        features: Literal["invariant", "full"] = "full",
        device: str = "cpu",
        seed: int = 0,
        precision: Literal["float32", "bf16"] = "float32",
    ) -> None:
        super().__init__(device=device, checkpoint=checkpoint)
        for option, value, known in (("features", features, _FEATURES), ("precision", precision, _PRECISIONS)):
            if value not in known:
                raise ConfigError(f"unknown {option} '{value}' of equiformer-v2{did_you_mean(str(value), known)}")
        self._model = _load(Path(checkpoint)).to(device)
        self._model.seed = seed
        # Coefficients come in the order of their degrees.
        self._coefficients = 1 if features == "invariant" else (max(self._model.lmax_list) + 1) ** 2
        self.dim = self._coefficients * self._model.sphere_channels
        self.elements = frozenset(range(1, self._model.max_num_elements))
        self.cutoff, self.max_neighbors = self._model.cutoff, self._model.max_neighbors
        self._autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")

    @property
    def invariant_dim(self) -> int:
        """The coefficients of degree 0, which come first."""
        return self._model.sphere_channels

    @torch.no_grad()
    def _rows(self, structures: Sequence[Structure]) -> np.ndarray:
        batch = collate(structures, vacuum=self.cutoff + 1.0).to(self.device)
        with self._autocast:
            embedding = self._model(FairchemBatch(batch))["node_embedding"].embedding
        return embedding[:, : self._coefficients].flatten(start_dim=1).float().cpu().numpy()


def _load(path: Path) -> EquiformerV2Blocks:
    """Builds the model that a checkpoint describes and loads its weights; see :class:`EquiformerV2Extractor`."""
    content = read_checkpoint(path)
    try:
        model = EquiformerV2Blocks(**_settings(path, content.get("config")))
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(path, f"its config does not describe an EquiformerV2 ({error})") from None
    load_weights(path, model, published_weights(content), "EquiformerV2")
    return model.eval()


def _settings(path: Path, config: Any) -> dict[str, Any]:
    """Returns the keywords of the model in a checkpoint's config; those of the 31M model without one."""
    if not config:
        return {**SETTINGS_31M, **_FIXED}
    model = config["model"]
    if isinstance(model, Mapping) and "backbone" in model:
        # Later ones are of a backbone with any heads.
        model = {**model["backbone"], "name": model["backbone"]["model"]}
    # Older checkpoints name the model and hold its settings beside it.
    name, settings = (model["name"], model) if isinstance(model, Mapping) else (model, config["model_attributes"])
    if not str(name).startswith("equiformer_v2"):
        raise InputError(path, f"is a checkpoint of '{name}'", mend="EquiformerV2 is needed")
    known = inspect.signature(EquiformerV2Backbone).parameters
    return {**{key: value for key, value in settings.items() if key in known}, **_FIXED}
