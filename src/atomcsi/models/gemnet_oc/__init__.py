"""GemNet-OC (arXiv 2204.02782): from structures to features of atoms and edges."""

from atomcsi.models.gemnet_oc.model import GemNetOC

__all__ = ["GemNetOC"]
