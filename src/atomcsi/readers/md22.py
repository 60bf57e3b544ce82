"""MD22: one ``.npz`` per molecule of 42 to 370 atoms, molecular dynamics at PBE+MBD, in the layout of sGDML.

``z`` (atoms,), ``R`` (frames, atoms, 3) in Angstrom, ``E`` (frames, 1) in kcal/mol and ``F`` (frames, atoms, 3) in
kcal/mol/Angstrom, minus the gradient.
"""

from __future__ import annotations

from atomcsi.readers.rmd17 import Rmd17Reader


class Md22Reader(Rmd17Reader):
    """Reads the trajectory of one molecule; options as :class:`~atomcsi.readers.rmd17.Rmd17Reader`."""

    NAMES = ("z", "R", "E", "F")
