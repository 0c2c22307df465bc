"""Keys and values of recent prompts, page by page: a prompt does not read again what it begins with alike."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from threading import Lock

import numpy as np

from solm.backends.session import Session

_LEAST_READ = 7
"""Tokens that a prompt reads in any case. Fewer at its end are computed otherwise, in the last bits (the cpu backend's
`least_chunk`), than the same ones in a longer stretch: the reply would depend on what is kept."""


@dataclass(eq=False)
class _Kept:
    """A session of one prompt's pages, of which pages [start, end) are counted here."""

    session: Session
    start: int
    end: int
    bytes: int = 0


@dataclass(eq=False)
class _Page:
    """A page, known by the one before it and its tokens. number: its own name. index: its place in the prompt."""

    number: int
    index: int
    kept: _Kept


class PrefixCache:
    """Whole pages of recent prompts in at most `memory` bytes, the least recently used ones dropped first.

    page: tokens of a page. A page is dropped after all that follow it. Prompts are read densely, so what is kept serves
    every policy and budget. Where sessions share pages (the cpu backend), every page is held once; elsewhere prompts
    that part ways are held whole.
    """

    def __init__(self, memory: float, page: int):
        self.memory, self.page = memory, page
        self.bytes = 0
        self.lock = Lock()
        """For those who use it in several threads."""
        self._pages: OrderedDict[tuple[int, bytes], _Page] = OrderedDict()  # the least recently used one first
        self._numbers = count(1)

    @property
    def tokens(self) -> int:
        """Tokens kept."""
        return len(self._pages) * self.page

    def find(self, ids: np.ndarray, capacity: int) -> Session | None:
        """A session with room for `capacity` tokens that has read as many whole pages of ids [C] as are kept; None
        where none is."""
        found = self._use(ids[: max(0, len(ids) - _LEAST_READ)])
        return found[-1].kept.session.copy(len(found) * self.page, capacity) if found else None

    def keep(self, ids: np.ndarray, session: Session) -> None:
        """Keep the whole pages of `session`, one row that has read ids [C] and began with what `find` gave."""
        known, whole = self._use(ids), len(ids) // self.page
        if whole == len(known) or not self.memory:
            return
        kept = _Kept(session.copy(whole * self.page), 0, whole)
        for page in known:
            page.kept.start = page.index + 1
            self._count(page.kept)
            page.kept = kept
        number = known[-1].number if known else 0
        added = []
        for index, tokens in enumerate(self._chunks(ids)):
            if index >= len(known):
                added.append(((number, tokens), _Page(next(self._numbers), index, kept)))
                number = added[-1][1].number
        for key, page in reversed(added):  # the first page is the last one to go
            self._pages[key] = page
        self._use(ids[: len(known) * self.page])
        self._count(kept)
        self._shrink()

    def _use(self, ids: np.ndarray) -> list[_Page]:
        """The pages kept that ids [C] begins with, in order; they are the last ones used now."""
        found: dict[tuple[int, bytes], _Page] = {}
        number = 0
        for tokens in self._chunks(ids):
            page = self._pages.get((number, tokens))
            if page is None:
                break
            found[number, tokens] = page
            number = page.number
        for key in reversed(found):
            self._pages.move_to_end(key)
        return list(found.values())

    def _chunks(self, ids: np.ndarray) -> Iterator[bytes]:
        """The tokens of every whole page."""
        for first in range(0, len(ids) // self.page * self.page, self.page):
            yield ids[first : first + self.page].tobytes()

    def _count(self, kept: _Kept) -> None:
        """Count what a session takes beside the others."""
        held = 0
        if kept.end > kept.start:
            held = kept.session.copy_bytes(kept.end * self.page, kept.start * self.page)
        self.bytes += held - kept.bytes
        kept.bytes = held

    def _shrink(self) -> None:
        """Drop pages until the rest is within the memory."""
        cut = set()
        while self.bytes > self.memory:
            page = self._pages.popitem(last=False)[1]
            page.kept.end = page.index
            self._count(page.kept)
            cut.add(page.kept)
        for kept in cut:
            if kept.end > kept.start:
                kept.session = kept.session.copy(kept.end * self.page)
