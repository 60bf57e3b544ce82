"""What can be named in the config, each as ``id: "module:attribute@version"`` and imported only when used.

A new reader, extractor, distance or backbone is one file and one line here. The version is raised whenever the
same input gives other numbers: the pipeline then recomputes what depends on it, and nothing else.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from atomcsi.errors import ConfigError, did_you_mean

READERS = {
    "ani1x": "atomcsi.readers.ani1x:Ani1xReader@1",
    "matbench": "atomcsi.readers.matbench:MatbenchReader@1",
    "md22": "atomcsi.readers.md22:Md22Reader@1",
    "oc20": "atomcsi.readers.oc20:Oc20Reader@1",
    "oc22": "atomcsi.readers.oc22:Oc22Reader@1",
    "qm9": "atomcsi.readers.qm9:Qm9Reader@1",
    "qmof": "atomcsi.readers.qmof:QmofReader@1",
    "rmd17": "atomcsi.readers.rmd17:Rmd17Reader@1",
    "spice": "atomcsi.readers.spice:SpiceReader@1",
    "transition1x": "atomcsi.readers.transition1x:Transition1xReader@1",
    "user": "atomcsi.readers.user:UserReader@2",
}
EXTRACTORS = {
    "chgnet": "atomcsi.extractors.chgnet:ChgnetExtractor@1",
    "composition": "atomcsi.extractors.composition:CompositionExtractor@1",
    "equiformer-v2": "atomcsi.extractors.equiformer_v2:EquiformerV2Extractor@1",
    "gemnet-oc": "atomcsi.extractors.gemnet_oc:GemNetOCExtractor@1",
    "sevennet": "atomcsi.extractors.sevennet:SevenNetExtractor@2",
}
DISTANCES = {
    "coverage": "atomcsi.distances.coverage:Coverage@1",
    "elements": "atomcsi.distances.elements:Elements@1",
    "energy": "atomcsi.distances.energy:Energy@1",
    "frechet": "atomcsi.distances.frechet:Frechet@2",
    "frechet-invariant": "atomcsi.distances.frechet_invariant:InvariantFrechet@1",
    "kid": "atomcsi.distances.kid:Kid@1",
    "mmd": "atomcsi.distances.mmd:RbfMmd@1",
    "sliced-wasserstein": "atomcsi.distances.sliced_wasserstein:SlicedWasserstein@1",
}
BACKBONES = {
    "dimenet-plus-plus": "atomcsi.models.dimenet_plus_plus:DimeNetPlusPlus@1",
    "equiformer-v2": "atomcsi.models.equiformer_v2:EquiformerV2@1",
    "gemnet-oc": "atomcsi.models.gemnet_oc.model:GemNetOC@3",
    "painn": "atomcsi.models.painn:PaiNN@1",
    "schnet": "atomcsi.models.schnet:SchNet@1",
}

#: Versions of the steps around them, raised for the same reason.
STEPS = {
    "convert": 2,
    "embed": 3,
    "measure": 3,
    "mix": 1,
    "effective_rank": 1,
    "score": 1,
    "experiment": 3,
    "train": 3,
    "finetune": 2,
}


def implementation(registry: Mapping[str, str], name: str) -> str:
    """Returns ``name@version``: what a result depends on."""
    return f"{name}@{registry[name].partition('@')[2]}"


def load(registry: Mapping[str, str], name: str) -> Any:
    """Imports the entry ``name`` of a registry.

    Raises:
        ConfigError: No such entry.
    """
    if name not in registry:
        raise ConfigError(f"unknown implementation '{name}'{did_you_mean(name, registry)}")
    module, attribute = _location(registry, name)
    return getattr(import_module(module), attribute)


def keywords(registry: Mapping[str, str], name: str) -> set[str]:
    """Returns the keyword arguments that the class of an entry takes.

    Read from its source: importing it would take the seconds that PyTorch takes, at each start of Snakemake.
    """
    module, attribute = _location(registry, name)
    tree = ast.parse(Path(find_spec(module).origin).read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == attribute)
    found = (node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return {argument.arg for constructor in found for argument in constructor.args.kwonlyargs}


def _location(registry: Mapping[str, str], name: str) -> tuple[str, str]:
    module, _, attribute = registry[name].partition("@")[0].partition(":")
    return module, attribute
