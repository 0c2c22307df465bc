"""The texts of a fit: how much of each source is read, and what is held out for the comparison."""

import random
from dataclasses import dataclass
from typing import Self

import torch

from solm.core.errors import DataError
from solm.data.windows import TokenStream, fingerprint

HELD_OUT = 0.25
"""Part of every source, at its end, that only the comparison reads."""
SCORED = 129
"""Tokens after a context that the longest of the phases' texts has."""
_LEAST_TEXTS = 4
"""Texts that each part of a source must have room for."""
_CONTEXTS = (512, 384, 256, 128)

_READ, _PIECE = 6_000_000, 100_000
"""Characters of a source that are read at most, more than any fit uses, and of the pieces that long documents are cut
into."""


@dataclass(frozen=True)
class WholeTexts(TokenStream):
    """Texts of `each` tokens, one after another. Random windows are the beginnings of texts."""

    each: int

    @classmethod
    def of(cls, texts: torch.Tensor, name: str) -> "WholeTexts":
        """texts: [N, each] int64."""
        return cls(texts.flatten().to(torch.int32), name, fingerprint(texts), texts.shape[1])

    def random(self, count: int, length: int, generator: torch.Generator) -> torch.Tensor:
        texts = self.tokens.view(-1, self.each)
        if length > self.each:
            raise DataError(f"{self.name} holds texts of {self.each} tokens; {length} are needed")
        return texts[torch.randint(len(texts), (count,), generator=generator), :length].long()

    def parted(self, part: float, length: int) -> tuple[Self, Self]:
        """As `TokenStream.parted`, between two texts."""
        texts = len(self.tokens) // self.each
        return self._cut(int(texts * (1 - part)) * self.each, self.each)


def sample(documents: list[str], seed: int, most: int = _READ) -> list[str]:
    """Documents of together about `most` characters: all, or pieces from everywhere, in random order."""
    if sum(map(len, documents)) <= most:
        return documents
    pieces = [text[at : at + _PIECE] for text in documents for at in range(0, len(text), _PIECE)]
    random.Random(seed).shuffle(pieces)
    found, total = [], 0
    for piece in pieces:
        if total >= most:
            break
        found.append(piece)
        total += len(piece)
    return found


@dataclass(frozen=True)
class Texts:
    """The tokens of every source: what phases learn from, and what only the comparison reads. context: tokens that are
    read densely before those that are scored."""

    train: list[TokenStream]
    held_out: list[TokenStream]
    context: int

    @classmethod
    def split(cls, streams: list[TokenStream], limit: int | None) -> "Texts":
        """limit: the model's context. Raises `DataError` where a source or the model has too little room."""
        room = limit or 1 << 30
        for context in _CONTEXTS:
            wanted = context + SCORED
            parts = [_parted(stream, wanted) for stream in streams]
            if wanted <= room and all(_enough(train, held, wanted) for train, held in parts):
                return cls([train for train, _ in parts], [held for _, held in parts], context)
        least = 2 * _LEAST_TEXTS * (_CONTEXTS[-1] + SCORED)
        small = min(streams, key=lambda stream: len(stream.tokens))
        if room < _CONTEXTS[-1] + SCORED:
            raise DataError(
                f"the model's context of {room} tokens is below {_CONTEXTS[-1] + SCORED}, which a fit needs"
            )
        raise DataError(f"--data: {small.name} holds {len(small.tokens)} tokens; a fit needs {least} of every source")

    def windows(self, length: int) -> int:
        """How many texts of `length` tokens the comparison can have: as many from every source."""
        return len(self.held_out) * min(len(stream.tokens) // length for stream in self.held_out)


def _enough(train: TokenStream, held_out: TokenStream, length: int) -> bool:
    return min(len(train.tokens), len(held_out.tokens)) >= _LEAST_TEXTS * length


def _parted(stream: TokenStream, least: int) -> tuple[TokenStream, TokenStream]:
    """The parts of a source, of which the held-out one has room for a few texts of `least` tokens if it is not half."""
    total = len(stream.tokens)
    cut = total - max(round(HELD_OUT * total), min(_LEAST_TEXTS * least, total // 2))
    return (
        TokenStream(stream.tokens[:cut], stream.name, f"{stream.fingerprint}:{cut}"),
        TokenStream(stream.tokens[cut:], stream.name, f"{stream.fingerprint}:-{cut}"),
    )
