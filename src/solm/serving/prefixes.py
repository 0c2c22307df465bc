"""Prompts that were read lately, so that what a new one shares with them is not read again."""

from collections import OrderedDict

import torch

from solm.backends.session import Session


class PrefixCache:
    """The last prompts' sessions, at most `tokens` tokens in all, least recently used ones dropped first."""

    def __init__(self, tokens: int, page: int):
        self.tokens, self.page = tokens, page
        self._kept: OrderedDict[tuple[int, ...], Session] = OrderedDict()

    @property
    def held(self) -> int:
        """Tokens kept."""
        return sum(len(ids) for ids in self._kept)

    def find(self, ids: torch.Tensor, capacity: int) -> Session | None:
        """A session that has seen as many whole pages of ids [C], but never all of them, as any prompt kept."""
        best, most = None, 0
        for known in self._kept:
            count = min(len(known), len(ids) - 1)
            same = torch.tensor(known[:count]) == ids[:count]
            shared = int(same.long().cumprod(0).sum()) // self.page * self.page
            if shared > most:
                best, most = known, shared
        if best is None:
            return None
        self._kept.move_to_end(best)
        return self._kept[best].copy(most, capacity)

    def keep(self, ids: torch.Tensor, session: Session) -> None:
        """Keep a copy of what `session`, one row, has read: ids [C]. Prompts that it continues are dropped."""
        whole = len(ids) // self.page * self.page
        known = tuple(ids[:whole].tolist())
        if not whole or whole > self.tokens or known in self._kept:
            return
        for other in [other for other in self._kept if known[: len(other)] == other]:
            del self._kept[other]
        self._kept[known] = session.copy(whole)
        while self.held > self.tokens:
            self._kept.popitem(last=False)
