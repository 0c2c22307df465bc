"""Passages of held-out text that are the same bytes for every model, whatever its tokenizer."""

import random
from dataclasses import dataclass

from solm.core.errors import DataError
from solm.data.text import documents
from solm.evaluation.sources import shares_of

SLACK = 200
"""Characters within which a passage finds the spaces that it is cut at."""


@dataclass(frozen=True)
class Passage:
    """`before` is read, `text` is scored."""

    before: str
    text: str

    @property
    def bytes(self) -> int:
        return len(self.text.encode())


def passages(sources: list[str], count: int, context: int, length: int) -> list[Passage]:
    """`count` passages that do not overlap, as many of every source within one. Raises `DataError` where a source has
    too few."""
    whole, found = context + length + SLACK, []
    for source, share in zip(sources, shares_of(count, len(sources)), strict=True):
        texts = documents(source)
        places = [(text, at) for text in texts for at in range(0, len(text) - whole + 1, whole)]
        random.Random(0).shuffle(places)
        cut = [passage for text, at in places if (passage := passage_at(text, at, context, length)) is not None]
        if len(cut) < share:
            raise DataError(f"{source} has {len(cut)} passages of {context} and {length} characters, of {share}")
        found += cut[:share]
    return found


def passage_at(text: str, at: int, context: int, length: int) -> Passage | None:
    """About `context` and then about `length` characters of `text` from `at` on; None where no spaces are near."""
    begun = text.find(" ", at + context)
    ended = text.find(" ", begun + length)
    if begun < 0 or ended < 0 or ended > at + context + length + SLACK:
        return None
    return Passage(text[at:begun], text[begun:ended])
