"""The log beside a store: whether it is damaged where nothing but damage can be meant.

SQLite ends a log at the first page whose checksum is wrong. After a power cut it must:
pages of the last commit may be missing. Of a page that was damaged later it cannot tell
that apart, and goes back to what was before it without a word, whatever has been
acknowledged since. But each commit is synced before the next one is written; so where
two commits follow each other behind the end that SQLite finds, the log went on there
once, and what is in between was on disk.

The forms are those of https://www.sqlite.org/walformat.html. Nothing is written here.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import BinaryIO, NamedTuple

#: Of the log: magic number, version, page size, sequence, two salts, two checksums.
_LOG_HEAD = struct.Struct(">8I")
_MAGIC = 0x377F0682
#: Of each page: its number, pages of the file if it ends a commit, salts, checksums.
_PAGE_HEAD = struct.Struct(">6I")
_CHECKED_BYTES = 8

#: Of the log's index, where SQLite keeps it: its version, and after eight bytes that do
#: not matter here the number of the last page that is valid.
_INDEX_HEAD = struct.Struct("=I12xI")
_INDEX_HEAD_BYTES = 48
_INDEX_VERSION = 3007000


class _Head(NamedTuple):
    """What stands before a page in the log."""

    page: int
    ends_commit: int
    salts: tuple[int, int]
    sums: tuple[int, int]


def commits_are_lost(path: Path) -> bool:
    """Tell whether commits in the log of a store can be read no more.

    Asked while a connection is open that has read the file, and nobody else writes.
    """
    valid_pages = _valid_pages(path)
    log = path.with_name(path.name + "-wal")
    if valid_pages is None or not log.exists():
        return False
    with log.open("rb") as file:
        return _goes_on(file, valid_pages, _page_bytes(path))


def _valid_pages(path: Path) -> int | None:
    """Return how many pages of the log SQLite found valid, ``None`` if unknown."""
    try:
        with path.with_name(path.name + "-shm").open("rb", buffering=0) as file:
            # No more: what comes behind is locked by bytes, and Windows reads none.
            index = file.read(2 * _INDEX_HEAD_BYTES)
    except FileNotFoundError:
        return None
    first, second = index[:_INDEX_HEAD_BYTES], index[_INDEX_HEAD_BYTES:]
    if len(second) < _INDEX_HEAD_BYTES or first != second:
        return None
    version, valid_pages = _INDEX_HEAD.unpack_from(first)
    return int(valid_pages) if version == _INDEX_VERSION else None


def _page_bytes(path: Path) -> int:
    """Return the size of a page, from the head of the file itself."""
    with path.open("rb") as file:
        (size,) = struct.unpack(">H", file.read(18)[16:])
    return 65536 if size == 1 else int(size)


def _goes_on(file: BinaryIO, valid_pages: int, page_bytes: int) -> bool:
    """Tell whether one commit follows another behind the valid pages of a log."""
    step = _PAGE_HEAD.size + page_bytes
    log_head = file.read(_LOG_HEAD.size)
    salts = _salts_of(log_head)
    file.seek(_LOG_HEAD.size + valid_pages * step)
    before: _Head | None = None
    while True:
        data = file.read(step)
        if len(data) < step:
            return False
        page, ends_commit, salt_1, salt_2, *sums = _PAGE_HEAD.unpack_from(data)
        now = _Head(page, ends_commit, (salt_1, salt_2), (sums[0], sums[1]))
        if salts is not None and now.salts != salts:
            # Pages of a former log, which are in the file since, lie behind this one.
            # Where the log's own head is damaged none can be told from another.
            before = None
            continue
        # Where disks want it, SQLite fills a block up with the same page once more.
        follows = before is not None and before.ends_commit and now.page != before.page
        if follows and before is not None and _fits(data, before.sums, now.sums):
            return True
        before = now


def _salts_of(log_head: bytes) -> tuple[int, int] | None:
    """Return the salts of a log, or ``None`` if its head is damaged."""
    if len(log_head) < _LOG_HEAD.size:
        return None
    magic, _, _, _, salt_1, salt_2, *sums = _LOG_HEAD.unpack(log_head)
    order = {_MAGIC: "<", _MAGIC | 1: ">"}.get(magic)
    if order is None or _summed(log_head[:24], (0, 0), order) != tuple(sums):
        return None
    return salt_1, salt_2


def _fits(data: bytes, before: tuple[int, int], sums: tuple[int, int]) -> bool:
    """Tell whether a page was written behind one with these checksums."""
    native = "<" if sys.byteorder == "little" else ">"
    for order in (native, "<>".replace(native, "")):
        summed = _summed(data[:_CHECKED_BYTES], before, order)
        if _summed(data[_PAGE_HEAD.size :], summed, order) == sums:
            return True
    return False


def _summed(data: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    """Return the checksums of a log, carried on over some data."""
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    one, two = sums
    for first, second in zip(words, words, strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two
