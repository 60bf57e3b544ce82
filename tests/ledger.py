"""What the tests broke and what came of it: the table of docs/reliability.md."""

from __future__ import annotations

from pathlib import Path

from pipeline import ROOT

PAGE = ROOT / "docs" / "reliability.md"
#: The table stands between this line and the end of the page.
_MARK = "<!-- table: made by `make fault-test` -->"


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
        """Replaces the page's table."""
        lines = ["| fault | injected | survived | bytes lost | outcome |", "|---|---:|---:|---:|---|"]
        for fault, (count, outcome, lost) in sorted(self._rows.items()):
            lines.append(f"| {fault} | {count} | {count} | {'–' if lost is None else lost} | {outcome} |")
        total, lost = (sum(row[column] or 0 for row in self._rows.values()) for column in (0, 2))
        lines.append(f"| **all** | **{total}** | **{total}** | **{lost}** | |")
        head = page.read_text().partition(_MARK)[0]
        page.write_text(f"{head}{_MARK}\n\n" + "\n".join(lines) + "\n")
