"""The texts of a fit: how much of each source is read, what is held out for the comparison, and the model's own."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch

from solm.core.budget import Budget
from solm.core.errors import DataError
from solm.evaluation.texts import TokenStream, fingerprint
from solm.runtime.batch import Row, decode
from solm.runtime.language_model import LanguageModel
from solm.runtime.sampling import Plain, Sampler

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
            # Room for a few texts is held out, where that is not half.
            few = [min(_LEAST_TEXTS * wanted / max(1, len(stream.tokens)), 0.5) for stream in streams]
            parts = [stream.parted(max(HELD_OUT, part), 1) for stream, part in zip(streams, few, strict=True)]
            least = min(len(part.tokens) for pair in parts for part in pair)
            if wanted <= room and least >= _LEAST_TEXTS * wanted:
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


def draw_windows(streams: list[TokenStream], count: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """`count` windows [count, length] int64, every one from a source drawn uniformly."""
    picks = torch.randint(len(streams), (count,), generator=generator).tolist()
    return torch.cat([streams[pick].random(1, length, generator) for pick in picks])


def draw_halves(streams: list[TokenStream], texts: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """As `draw_windows`, where the second half of the texts is from the second half of every source: the halves share
    no token, where sources have room for that."""
    parts = [stream.parted(0.5, length) for stream in streams]
    first = draw_windows([part[0] for part in parts], texts // 2, length, generator)
    return torch.cat([first, draw_windows([part[1] for part in parts], texts - texts // 2, length, generator)])


@torch.no_grad()
def continued(
    lm: LanguageModel, starts: torch.Tensor, length: int, seed: int, progress: Callable[[int], None]
) -> list[list[int]]:
    """Every row of starts [N, C], continued densely at temperature 1 to `length` tokens in all.

    progress: called with the number of steps done.
    """
    dense, longest = lm.policy("dense"), length - starts.shape[1]
    rows = [
        Row(ids, dense, Budget().shares, longest, Sampler((seed << 16) + number, plain=Plain()))
        for number, ids in enumerate(starts.numpy())
    ]
    for done, _ in enumerate(decode(lm, rows, len(rows)), 1):
        progress(done // len(rows))
    return [[*ids.tolist(), *row.ids] for ids, row in zip(starts, rows, strict=True)]
