"""What a model is trained to predict, and in which units its errors are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from atomcsi.yaml_source import Entry

#: How a metric's unit follows from eV and Angstrom, or from the unit that a property keeps.
METRIC_UNITS: Mapping[str, float] = {
    **{"eV/angstrom": 1.0, "meV/angstrom": 1e3, "eV": 1.0, "meV": 1e3, "eV/atom": 1.0, "meV/atom": 1e3},
    **dict.fromkeys(("1", "1/cm", "GHz", "debye", "bohr^2", "bohr^3", "cal/mol/K", "log10(GPa)"), 1.0),
}
MetricUnit = Literal[
    *("eV/angstrom", "meV/angstrom", "eV", "meV", "eV/atom", "meV/atom"),
    *("1", "1/cm", "GHz", "debye", "bohr^2", "bohr^3", "cal/mol/K", "log10(GPa)"),
]
#: The target of denoising: what was added to positions.
NOISE = "noise"
#: Targets that every structure may have; all others are properties.
LABELS = ("forces", "energy", NOISE)


class Target(Entry):
    """A target and how it is read off the atoms.

    Attributes:
        target: ``forces``, ``energy``, a property of the dataset, or in pretraining ``noise``.
        readout: How the numbers of atoms become that of their structure: extensive properties add up (``sum``), of
            intensive ones the ``mean`` or the ``max`` over the atoms counts.
        reference: What is taken off a scalar before it is trained on: a linear fit to the numbers of atoms of each
            element (``elements``), its ``mean`` over the train split, or nothing (``none``), as for classes.
    """

    target: str = "forces"
    readout: Literal["sum", "mean", "max"] = "sum"
    reference: Literal["elements", "mean", "none"] = "elements"

    @property
    def is_property(self) -> bool:
        """Whether it is a property, which takes the energy's place in batches and models."""
        return self.target not in LABELS
