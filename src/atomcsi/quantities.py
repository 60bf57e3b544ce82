"""Numbers, times and sizes in words, for pages and terminals."""

from __future__ import annotations

import math


def number(value: float | None) -> str:
    """Writes a number with three significant digits and no exponent; a dash if there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    return f"{value:,.{max(2 - math.floor(math.log10(abs(value))), 0)}f}"


def duration(seconds: float | None) -> str:
    """Writes a time in the unit that suits it."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds)} s"


def file_size(count: float) -> str:
    """Writes a number of bytes in the unit that suits it, of 1000 and not of 1024."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= size:
            return f"{number(count / size)} {unit}"
    return f"{number(count / 1e3)} kB"
