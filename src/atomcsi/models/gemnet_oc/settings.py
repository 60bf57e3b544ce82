"""Sizes and switches of GemNet-OC."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Switches:
    """Which interactions there are besides triplets; see :class:`~atomcsi.models.gemnet_oc.model.GemNetOC`."""

    quad_interaction: bool
    atom_edge_interaction: bool
    edge_atom_interaction: bool
    atom_interaction: bool


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Numbers of features and layers; see :class:`~atomcsi.models.gemnet_oc.model.GemNetOC`."""

    num_blocks: int
    emb_size_atom: int
    emb_size_edge: int
    emb_size_trip_in: int
    emb_size_trip_out: int
    emb_size_quad_in: int
    emb_size_quad_out: int
    emb_size_aint_in: int
    emb_size_aint_out: int
    emb_size_rbf: int
    emb_size_cbf: int
    emb_size_sbf: int
    num_radial: int
    num_spherical: int
    num_before_skip: int
    num_after_skip: int
    num_concat: int
    num_atom: int
    num_output_afteratom: int
    num_atom_emb_layers: int
    num_global_out_layers: int
