"""A cache of recent prompts: a new prompt that begins like one of them reuses its keys and values."""

from collections import OrderedDict

import numpy as np

from solm.backends.session import Session


class PrefixCache:
    """Sessions of recent prompts, at most `tokens` tokens together. The least recently used one is dropped first."""

    def __init__(self, tokens: int, page: int):
        self.tokens, self.page = tokens, page
        self._kept: OrderedDict[tuple[int, ...], Session] = OrderedDict()

    @property
    def held(self) -> int:
        """Tokens kept."""
        return sum(len(ids) for ids in self._kept)

    def find(self, ids: np.ndarray, capacity: int) -> Session | None:
        """A copy of the kept session that shares the most whole pages with ids [C]; None where none shares a page. At
        least one token of ids is left to read, because its logits are needed."""
        best, most = None, 0
        for known in self._kept:
            count = min(len(known), len(ids) - 1)
            same = np.array(known[:count]) == ids[:count]
            shared = int(np.logical_and.accumulate(same).sum()) // self.page * self.page
            if shared > most:
                best, most = known, shared
        if best is None:
            return None
        self._kept.move_to_end(best)
        return self._kept[best].copy(most, capacity)

    def keep(self, ids: np.ndarray, session: Session) -> None:
        """Keep a copy of `session`, one row that has read ids [C]. Kept prompts that ids begins with are dropped."""
        whole = len(ids) // self.page * self.page
        known = tuple(ids[:whole].tolist())
        if not whole or whole > self.tokens or known in self._kept:
            return
        for other in [other for other in self._kept if known[: len(other)] == other]:
            del self._kept[other]
        self._kept[known] = session.copy(whole)
        while self.held > self.tokens:
            self._kept.popitem(last=False)
