"""Where a row's guesses come from without a model: its text, a prediction of the reply, what its grammar forces, and
what recent replies said.

A draft model guesses for several rows at once, see `solm.runtime.draft`.
"""

import threading
from collections.abc import Sequence
from typing import Protocol

from solm.runtime.grammars import Constraint

_KEYS = (4, 2)
"""Lengths of the endings that are looked up, the longest first."""
_FARTHEST = 16
"""Tokens back to which an earlier passage is compared with the end of the text."""
_CLASSES = (3, 4, 6, 9, _FARTHEST)
"""Common lengths from which on a passage belongs to the next class of acceptance."""
_TIMES = (2, 3, 5)
"""How often in a row a token followed from which on it belongs to the next class."""
_START = [-1, -1]
"""No tokens, which stand before a predicted reply and before the reply itself: they agree at their beginnings."""


class Source(Protocol):
    """Guesses the next tokens of one row. name: what replies call it."""

    @property
    def name(self) -> str: ...

    def add(self, token: int) -> None:
        """`token` became part of the reply."""

    def propose(self, most: int) -> tuple[list[int], int]:
        """At most so many tokens that may come next, and which class of the source's guesses they belong to: those of
        one are accepted about equally often."""


class Lookup:
    """Prompt lookup: what followed the last passage that ends as the text does now (Saxena, 2023).

    tokens: all of the text, prompt and reply. Classes go by how many tokens before the guesses agree.
    """

    name = "lookup"

    def __init__(self, tokens: Sequence[int]):
        self._text: list[int] = []
        self._known = self._text
        """Where passages are looked for."""
        self._after: dict[tuple[int, ...], int] = {}
        """By ending, the place of what followed it last."""
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """As `Source.add`."""
        self._index(self._text, token)

    def _index(self, known: list[int], token: int) -> None:
        for size in _KEYS:
            if len(known) >= size:
                self._after[tuple(known[-size:])] = len(known)
        known.append(token)

    def propose(self, most: int) -> tuple[list[int], int]:
        """As `Source.propose`."""
        text, known = self._text, self._known
        for size in _KEYS:
            place = self._after.get(tuple(text[-size:]))
            if place is not None and most > 0:
                alike, farthest = min(size, len(text)), min(_FARTHEST, place, len(text))
                while alike < farthest and known[place - 1 - alike] == text[-1 - alike]:
                    alike += 1
                found = known[place : place + most]
                while known is text and len(found) < most:  # the passage reaches the text's end, and so it repeats
                    found.append(found[len(found) - (len(known) - place)])
                return found, sum(alike >= least for least in _CLASSES)
        return [], 0


class Prediction(Lookup):
    """The same in a text that the reply is expected to be like, from whose beginning it starts."""

    name = "prediction"

    def __init__(self, predicted: Sequence[int]):
        super().__init__(())
        self._known = []
        for token in (*_START, *predicted):
            self._index(self._known, token)
        self._text = list(_START)

    def add(self, token: int) -> None:
        """As `Source.add`."""
        self._text.append(token)


class Memory:
    """What followed two tokens last in recent replies of a model, and how often in a row that was the same token. May
    be used by several threads."""

    def __init__(self, most: int = 1 << 16):
        self._most = most
        self._after: dict[tuple[int, int], tuple[int, int]] = {}
        self._lock = threading.Lock()

    def add(self, before: tuple[int, int], token: int) -> None:
        """`token` followed two others."""
        with self._lock:
            known, times = self._after.pop(before, (token, 0))
            self._after[before] = token, times + 1 if known == token else 1
            if len(self._after) > self._most:
                del self._after[next(iter(self._after))]  # seen longest ago

    def after(self, before: tuple[int, int]) -> tuple[int, int]:
        """The token that followed two others last, and how often in a row; 0: it is not known."""
        return self._after.get(before, (0, 0))


class Recalled:
    """What followed the last two tokens in recent replies to this and other prompts: replies of one model to one kind
    of request repeat its phrases. Classes go by how often that was the same.

    last: the last two tokens of the prompt, or fewer.
    """

    name = "recalled"

    def __init__(self, memory: Memory, last: Sequence[int]):
        self._memory = memory
        self._last = (*([-1] * (2 - len(last))), *last)[-2:]

    def add(self, token: int) -> None:
        """As `Source.add`."""
        first, second = self._last
        self._memory.add((first, second), token)
        self._last = second, token

    def propose(self, most: int) -> tuple[list[int], int]:
        """As `Source.propose`."""
        (first, second), found, kind = self._last, list[int](), 0
        while len(found) < most:
            token, times = self._memory.after((first, second))
            if not times:
                break
            kind = kind if found else sum(times >= least for least in _TIMES)
            found.append(token)
            first, second = second, token
        return found, kind


class Forced:
    """The tokens that a grammar leaves no choice about, spelled as the tokenizer would spell their text."""

    name = "grammar"

    def __init__(self, constraint: Constraint):
        self._constraint = constraint

    def add(self, token: int) -> None:
        """As `Source.add`; the row's sampler tells the constraint."""

    def propose(self, most: int) -> tuple[list[int], int]:
        """As `Source.propose`."""
        return self._constraint.forced()[: max(0, most)], 0
