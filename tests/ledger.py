"""What the tests broke and what came of it: the table of docs/reliability.md."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from pipeline import ROOT

PAGE = ROOT / "docs" / "reliability.md"
#: The table stands between this line and the end of the page.
_MARK = "<!-- table: made by `make fault-test` -->"
_ROW = re.compile(r"^\| ([^*|]+) \| (\d+) \|", re.MULTILINE)


class Ledger:
    """Counts faults by kind; tests add what they injected once the results have been checked."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[int, str, int | None]] = {}

    def add(self, fault: str, outcome: str, *, injected: int = 1, lost: int | None = None) -> None:
        """Adds faults that were survived.

        Args:
            fault: What was done to the pipeline.
            outcome: What came of it.
            injected: How often it was done.
            lost: Bytes of results that are not those of an undisturbed run; None if there is nothing to compare.
        """
        count, _, before = self._rows.get(fault, (0, outcome, None))
        lost = before if lost is None else lost + (before or 0)
        self._rows[fault] = (count + injected, outcome, lost)

    def write(self, page: Path = PAGE) -> None:
        """Replaces the page's table, or warns and leaves it as it is if tests were left out, skipped or failed.

        By what the table has and these tests have not: to give up a row or to count less, delete the row first.
        """
        head, _, table = page.read_text().partition(_MARK)
        fewer = [
            f"{fault}: {self._rows.get(fault, (0,))[0]} of {count}"
            for fault, count in _ROW.findall(table)
            if self._rows.get(fault, (0,))[0] < int(count)
        ]
        if fewer:
            warnings.warn(f"{page} was left as it is. It has what these tests did not survive: {fewer}", stacklevel=2)
            return
        lines = ["| fault | injected | survived | bytes lost | outcome |", "|---|---:|---:|---:|---|"]
        for fault, (count, outcome, lost) in sorted(self._rows.items()):
            lines.append(f"| {fault} | {count} | {count} | {'–' if lost is None else lost} | {outcome} |")
        total, lost = (sum(row[column] or 0 for row in self._rows.values()) for column in (0, 2))
        lines.append(f"| **all** | **{total}** | **{total}** | **{lost}** | |")
        page.write_text(f"{head}{_MARK}\n\n" + "\n".join(lines) + "\n")
