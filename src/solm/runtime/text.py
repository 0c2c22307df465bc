"""Token by token to text, without ever showing half a character."""

from collections.abc import Collection
from typing import Any

_UNFINISHED = "\ufffd"
_LONGEST = 16
"""Tokens after which a character counts as finished: one has four bytes at most, and a token has at least one."""


class TextStream:
    """The text of a growing list of tokens, piece by piece.

    Only the last few tokens are decoded anew, so that a long reply costs no more per token than a short one (as
    text-generation-inference and vLLM do).

    skip_special_tokens: the text has none of them but `shown`.
    """

    def __init__(self, tokenizer: Any, skip_special_tokens: bool = False, shown: Collection[int] = ()):
        self.tokenizer, self.skip, self._always = tokenizer, skip_special_tokens, shown
        self.ids: list[int] = []
        self._context = self._shown = 0
        self._before = ""
        """The text of the tokens from `_context` to `_shown`, which is known."""

    def push(self, token: int) -> str:
        """What `token` makes known of the text; empty while a character is unfinished."""
        self.ids.append(token)
        return self._read(finished=False)

    def flush(self) -> str:
        """What is left at the end, unfinished characters as replacement characters."""
        return self._read(finished=True)

    def _read(self, finished: bool) -> str:
        now = self._decode(self.ids[self._context :])
        finished = finished or len(self.ids) - self._shown >= _LONGEST
        if not finished and (len(now) <= len(self._before) or now.endswith(_UNFINISHED)):
            return ""
        new, last = now[len(self._before) :], self._shown
        self._shown, self._before = len(self.ids), now
        if self._shown - self._context >= _LONGEST:
            self._context, self._before = last, self._decode(self.ids[last:])
        return new

    def _decode(self, ids: list[int]) -> str:
        if self.tokenizer is None or not ids:
            return ""
        place = next((place for place, token in enumerate(ids) if token in self._always), None)
        if place is not None:
            told = str(self.tokenizer.decode(ids[place : place + 1]))
            return self._decode(ids[:place]) + told + self._decode(ids[place + 1 :])
        return str(self.tokenizer.decode(ids, skip_special_tokens=self.skip))
