"""What can be named in the config, each as ``id: "module:attribute"`` and imported only when used.

A new reader, extractor, distance or backbone is one file and one line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from atomcsi.errors import ConfigError, did_you_mean

READERS = {
    "ani1x": "atomcsi.readers.ani1x:Ani1xReader",
    "extxyz": "atomcsi.readers.extxyz:ExtxyzReader",
    "md22": "atomcsi.readers.md22:Md22Reader",
    "oc20": "atomcsi.readers.oc20:Oc20Reader",
    "oc22": "atomcsi.readers.oc22:Oc22Reader",
    "qm9": "atomcsi.readers.qm9:Qm9Reader",
    "rmd17": "atomcsi.readers.rmd17:Rmd17Reader",
    "spice": "atomcsi.readers.spice:SpiceReader",
    "transition1x": "atomcsi.readers.transition1x:Transition1xReader",
}
EXTRACTORS = {
    "composition": "atomcsi.extractors.composition:CompositionExtractor",
    "equiformer-v2": "atomcsi.extractors.equiformer_v2:EquiformerV2Extractor",
    "sevennet": "atomcsi.extractors.sevennet:SevenNetExtractor",
}
DISTANCES = {"frechet": "atomcsi.distances.frechet:frechet"}
BACKBONES = {"gemnet-oc": "atomcsi.models.gemnet_oc:GemNetOC"}


def load(registry: Mapping[str, str], name: str) -> Any:
    """Imports the entry ``name`` of a registry.

    Raises:
        ConfigError: No such entry.
    """
    if name not in registry:
        raise ConfigError(f"unknown implementation '{name}'{did_you_mean(name, registry)}")
    module, attribute = registry[name].split(":")
    return getattr(import_module(module), attribute)
