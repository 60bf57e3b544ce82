"""The commands and files of README.md and of the pages in docs/, as a reader would type them.

A comment on the line before a block says what is to be done with it; pages show none of them:

- `<!-- not run: REASON -->`: the block is not run;
- `<!-- dry run: REASON -->`: Snakemake only plans, whatever else is run for real;
- `<!-- run -->`: Snakemake runs for real, even where it otherwise plans;
- `<!-- file: PATH -->`: the block is the content of a file that the reader writes;
- `<!-- edit: PATH -->`: the block is a change of a file, as `diff` writes it.

Without one, blocks in `sh` and `python` are run. In a table with the column "command", the commands are those of that
column; "add `--option`" stands for the table's first command with that option.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: What a page may call; anything else in a shell block is an error of the page, or is to be added here.
PROGRAMS = ("atomcsi", "snakemake", "make", "source", "python", "pytest", "ruff")
#: What blocks that are not run may call besides.
NOT_RUN = ("git", "cd", "conda", "bash", "$EDITOR", "tmux", "squeue", "torchrun", "apptainer", "tensorboard")

_MARK = re.compile(r"<!-- (not run|dry run|run|file|edit)(?:: (.+?))? -->")
_FENCE = re.compile(r"( *)(`{3,}|:{3,})(\S*)")


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes:
        page: The page, relative to the repository.
        line: Where the block begins, from 1.
        language: What stands behind the fence; ``sh`` for a command of a table.
        text: What the block holds.
        mark: What is to be done with it; empty if nothing is said.
        argument: The mark's reason or path.
    """

    page: str
    line: int
    language: str
    text: str
    mark: str = ""
    argument: str = ""

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether the block is run, if only as a plan."""
        return self.language in ("sh", "python") and self.mark in ("", "run", "dry run")

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block, each on one line."""
        joined = self.text.replace("\\\n", " ")
        return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def pages() -> list[str]:
    """Returns README.md and every page of the site, relative to the repository."""
    docs = ROOT / "docs"
    found = sorted(path for path in docs.rglob("*.md") if "_build" not in path.parts)
    return ["README.md", *(str(path.relative_to(ROOT)) for path in found)]


def blocks(page: str) -> list[Block]:
    """Returns every fenced block of a page, every command of its tables, and what looks like one in indented lines."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    found, number, mark = [], 0, ("", "")
    while number < len(lines):
        line = lines[number]
        if fence := _FENCE.match(line):
            indent, ticks, language = fence.groups()
            end = next(i for i in range(number + 1, len(lines)) if lines[i].strip() == ticks)
            text = "\n".join(inner.removeprefix(indent) for inner in lines[number + 1 : end]) + "\n"
            found.append(Block(page, number + 1, language, text, *mark))
            number = end
        elif line.startswith("|") and not lines[number - 1].startswith("|"):
            end = next((i for i in range(number, len(lines)) if not lines[i].startswith("|")), len(lines))
            found += _commands_of(page, number, lines[number:end])
            number = end - 1
        elif line.startswith("    ") and line.split()[0] in PROGRAMS:
            found.append(Block(page, number + 1, "", line))
        if line.strip():
            said = _MARK.fullmatch(line.strip())
            mark = (said[1], said[2] or "") if said else ("", "")
        number += 1
    return found


def _commands_of(page: str, first: int, table: list[str]) -> Iterator[Block]:
    """Yields the commands of a table that has a column of them."""
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in table]
    if "command" not in rows[0]:
        return
    column, base = rows[0].index("command"), None
    for number, row in enumerate(rows[2:], start=first + 3):
        cell = row[column]
        said = _MARK.search(cell)
        mark = (said[1], said[2] or "") if said else ("", "")
        for code in re.findall(r"`([^`]+)`", _MARK.sub("", cell)):
            if code.split()[0] in PROGRAMS:
                base = base or code
                yield Block(page, number, "sh", code, *mark)
            elif cell.startswith("add `") and code.startswith("--"):
                yield Block(page, number, "sh", f"{base} {code}", *mark)
