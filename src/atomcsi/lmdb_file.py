"""Where the values of an LMDB file lie, found without liblmdb.

liblmdb trusts its files: it follows a damaged page number wherever that points, and the process dies. Here every
number is checked against the file before it is followed, so that a damaged file ends in an error. The values are
mapped, not read, and a map may be shared by forked workers, threads and arrays that outlive the file's object.

What is read is version 1 of LMDB's format (0.9.x, little-endian): pages of 2^k bytes; pages 0 and 1 are meta pages,
of which the one with the higher transaction is valid; the tree of the main database has branch and leaf pages, and
a value that is too large for a leaf lies in consecutive overflow pages. Named and sorted-duplicate databases are
not read.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from atomcsi.errors import InputError

#: Meta page behind its page header: magic and version, address and size of the map, 48 bytes on the free pages
#: (first the size of a page), 48 bytes on the main database (last the number of its root), last page, transaction.
_META = struct.Struct("<IIQQ")
_PAGE_SIZE, _NUMBER = struct.Struct("<I"), struct.Struct("<Q")
_PAGE_SIZE_AT, _ROOT_AT, _LAST_PAGE_AT, _TRANSACTION_AT = 16 + 24, 16 + 24 + 48 + 40, 16 + 24 + 2 * 48, 16 + 24 + 104
#: Page header: its own number, unused, kind, and the end of the table of its nodes (for overflow: length in pages).
_PAGE = struct.Struct("<QHHH2x")
#: Node: for a leaf the value's size (low, high half) and flags, for a branch the child's number; the key's size.
_NODE = struct.Struct("<HHHH")
_MAGIC, _VERSION, _NO_PAGE = 0xBEEFC0DE, 1, 0xFFFFFFFFFFFFFFFF
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_BIG = 1


class LmdbFile:
    """The main database of an LMDB file, mapped into memory.

    Args:
        path: The file; it must not be cut while it is in use.
        mend: What an error tells the user to do.

    Raises:
        InputError: The file is missing, is no LMDB, or cut off.
    """

    def __init__(self, path: Path | str, *, mend: str) -> None:
        self.path, self._mend = Path(path), mend
        if not self.path.is_file():
            raise InputError(path, "is missing")
        try:
            with self.path.open("rb") as file:
                # The view keeps the map open as long as any array looks into it.
                self.content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:  # no permission, or an empty file
            raise self._error(str(error)) from error
        size = len(self.content)
        if size < 512:
            raise self._error("it is cut off")
        self._transaction(0)
        self._page_size = _PAGE_SIZE.unpack_from(self.content, _PAGE_SIZE_AT)[0]
        if self._page_size not in (1 << power for power in range(9, 17)) or size < 2 * self._page_size:
            raise self._error("its first pages are damaged or cut off")
        newest = max(0, self._page_size, key=self._transaction)
        self._root, last_page = (_NUMBER.unpack_from(self.content, newest + at)[0] for at in (_ROOT_AT, _LAST_PAGE_AT))
        if size < (needed := (last_page + 1) * self._page_size):
            raise InputError(path, f"is cut off: it has {size} of {needed} bytes", mend=mend)

    def _transaction(self, meta: int) -> int:
        """Returns the transaction of the meta page that starts at ``meta``."""
        if _META.unpack_from(self.content, meta + 16)[:2] != (_MAGIC, _VERSION):
            raise self._error(f"it has no meta page at byte {meta}")
        return _NUMBER.unpack_from(self.content, meta + _TRANSACTION_AT)[0]

    def items(self) -> Iterator[tuple[bytes, int, int]]:
        """Yields every key, in order, with the start and the end of its value in :attr:`content`.

        Raises:
            InputError: The tree is damaged.
        """
        open_pages, seen = [] if self._root == _NO_PAGE else [self._root], set()
        while open_pages:
            number = open_pages.pop()
            if number in seen:
                raise self._error(f"page {number} occurs twice")
            seen.add(number)
            kind, nodes = self._nodes(number)
            if kind == _BRANCH:
                open_pages += [self._child(node) for node in reversed(nodes)]
            else:
                yield from map(self._entry, nodes)

    def values(self) -> dict[bytes, memoryview]:
        """Returns the value of every key, as a view into the file."""
        return {key: self.content[start:stop] for key, start, stop in self.items()}

    def _nodes(self, number: int) -> tuple[int, list[int]]:
        """Returns the kind of a page of the tree and where its nodes start."""
        start = self._within(number * self._page_size, self._page_size)
        own_number, _, kind, lower = _PAGE.unpack_from(self.content, start)
        if own_number != number or kind not in (_BRANCH, _LEAF) or not _PAGE.size <= lower <= self._page_size:
            raise self._error(f"page {number} is damaged")
        offsets = struct.unpack_from(f"<{(lower - _PAGE.size) // 2}H", self.content, start + _PAGE.size)
        if any(offset + _NODE.size > self._page_size for offset in offsets):
            raise self._error(f"page {number} is damaged")
        return kind, [start + offset for offset in offsets]

    def _child(self, node: int) -> int:
        low, middle, high, _ = _NODE.unpack_from(self.content, node)
        return low | middle << 16 | high << 32

    def _entry(self, node: int) -> tuple[bytes, int, int]:
        low, high, flags, key_size = _NODE.unpack_from(self.content, node)
        size, start = low | high << 16, node + _NODE.size + key_size
        key = bytes(self.content[node + _NODE.size : start])
        if flags not in (0, _BIG):
            raise self._error(f"the entry {key!r} is of an unknown kind")
        if flags == _BIG:
            number = _NUMBER.unpack_from(self.content, self._within(start, _NUMBER.size))[0]
            page = self._within(number * self._page_size, _PAGE.size)
            if _PAGE.unpack_from(self.content, page)[::2] != (number, _OVERFLOW):
                raise self._error(f"page {number} is damaged")
            start = page + _PAGE.size
        return key, self._within(start, size), start + size

    def _within(self, start: int, size: int) -> int:
        if start + size > len(self.content):
            raise self._error(f"it ends at byte {len(self.content)}, before what it refers to")
        return start

    def _error(self, problem: str) -> InputError:
        return InputError(self.path, f"is no readable LMDB: {problem}", mend=self._mend)
