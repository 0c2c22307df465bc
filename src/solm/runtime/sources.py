"""Where a row's guesses come from without a model: its text, a prediction of the reply, and what its grammar forces.

A draft model guesses for several rows at once, see `solm.runtime.draft`.
"""

from collections.abc import Sequence
from typing import Protocol

from solm.runtime.grammars import Constraint

_KEYS = (4, 2)
"""Lengths of the endings that are looked up, the longest first."""
_FARTHEST = 16
"""Tokens back to which an earlier passage is compared with the end of the text."""
_CLASSES = (3, 4, 6, 9, _FARTHEST)
"""Common lengths from which on a passage belongs to the next class of acceptance."""
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
