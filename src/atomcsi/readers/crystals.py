"""Crystals as pymatgen writes them to JSON: what QMOF and MatBench are made of.

A structure has ``lattice.matrix`` (3, 3), vectors as rows, in Angstrom, and ``sites``, each with ``species`` (one
``element`` with ``occu`` 1 on an ordered site) and ``xyz``, Cartesian, in Angstrom. Files hold thousands of them in one
JSON text, which is read in a stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ijson
import numpy as np
from ase.data import atomic_numbers

from atomcsi.readers.raw import label_of, naming, opened, parsing
from atomcsi.structure import Structure

#: Isotopes have symbols of their own in pymatgen.
_NUMBERS = {**atomic_numbers, "D": 1, "T": 1}


def items(path: Path, prefix: str) -> Iterator[Any]:
    """Yields the values at an ijson prefix, such as ``item`` for those of a list, one in memory at a time.

    Raises:
        InputError: The file is missing, damaged, or no JSON.
    """
    with opened(path, "rb") as stream, naming(path, ijson.JSONError):
        yield from ijson.items(stream, prefix, use_float=True)


def crystal(content: Mapping[str, Any], path: Path, source: str, **fields: Any) -> Structure:
    """Returns the structure of pymatgen's dictionary, labelled by its formula.

    Args:
        content: The dictionary.
        path: The file that an error names.
        source: The record's name.
        fields: Further fields of the structure.

    Raises:
        InputError: It is no ordered crystal.
    """
    with parsing(path, source, "is no crystal that can be read"):
        numbers = np.array([_number(site) for site in content["sites"]], dtype=np.int64)
        positions = np.array([site["xyz"] for site in content["sites"]], dtype=float)
        cell = np.array(content["lattice"]["matrix"], dtype=float).reshape(3, 3)
    return Structure(
        numbers=numbers,
        positions=positions,
        source=source,
        label=label_of(numbers, path, source),
        cell=cell,
        pbc=(True, True, True),
        **fields,
    )


def _number(site: Mapping[str, Any]) -> int:
    (species,) = site["species"]
    if species.get("occu", 1) != 1:
        raise ValueError("a site is occupied only in part")
    return _NUMBERS[species["element"]]
