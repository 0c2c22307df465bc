"""Token windows: a context to prefill and the tokens that follow it."""

import hashlib
from dataclasses import dataclass, replace
from typing import Self

import torch
from transformers import PreTrainedTokenizerBase

from solm.core.errors import DataError
from solm.data.text import documents

_TOGETHER = 16
"""Documents that are made tokens together: lists of Python's integers take five times the memory of the tokens."""


@dataclass(frozen=True)
class TokenStream:
    """All tokens of some sources in one row: tokens [M] int32; name for messages; fingerprint of the text. Windows of
    them are int64."""

    tokens: torch.Tensor
    name: str
    fingerprint: str

    def beginning(self, length: int) -> torch.Tensor:
        """The first tokens [1, length]."""
        self._check(length)
        return self.tokens[None, :length].long()

    def random(self, count: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """`count` windows [count, length] at uniformly random places."""
        self._check(length)
        starts = torch.randint(len(self.tokens) - length + 1, (count,), generator=generator)
        return self.tokens[starts[:, None] + torch.arange(length)].long()

    def spaced(self, count: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """`count` windows [count, length] that do not overlap, in random order; fewer where there are not as many."""
        self._check(length)
        windows = self.tokens[: len(self.tokens) // length * length].view(-1, length)
        return windows[torch.randperm(len(windows), generator=generator)[:count]].long()

    def parted(self, part: float, length: int) -> tuple[Self, Self]:
        """The tokens without their last `part`, and those; twice all of them where the part is 0, or one of the two
        would hold no window of `length`."""
        return self._cut(int(len(self.tokens) * (1 - part)), length)

    def _cut(self, at: int, length: int) -> tuple[Self, Self]:
        at = min(at, len(self.tokens) - length) if at < len(self.tokens) else 0
        if at < length:
            return self, self
        return replace(self, tokens=self.tokens[:at]), replace(self, tokens=self.tokens[at:])

    def _check(self, length: int) -> None:
        if len(self.tokens) < length:
            raise DataError(f"{self.name} holds {len(self.tokens)} tokens; one text needs {length}")


def token_stream(sources: list[str] | str, tokenizer: PreTrainedTokenizerBase) -> TokenStream:
    """The tokens of all documents of `sources`, an end-of-text token between documents."""
    sources = [sources] if isinstance(sources, str) else sources
    texts = [text for source in sources for text in documents(source)]
    name = ", ".join(sources)
    return stream_of(texts, tokenizer, name)


def stream_of(texts: list[str], tokenizer: PreTrainedTokenizerBase, name: str) -> TokenStream:
    """The tokens of `texts`."""
    if not texts:
        raise DataError(f"{name} holds no text")
    separator = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    parts = []
    for first in range(0, len(texts), _TOGETHER):
        encoded = _encoded(texts[first : first + _TOGETHER], tokenizer)
        parts.append(torch.tensor([token for ids in encoded for token in [*ids, *separator]], dtype=torch.int32))
    return TokenStream(torch.cat(parts), name, fingerprint(*parts))


def _encoded(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The tokens of every text. solm's `Tokenizer` encodes by itself; where it is called it first makes a tokenizer of
    transformers', which takes tens of megabytes."""
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return list(tokenizer(texts, add_special_tokens=False, verbose=False).input_ids)
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def fingerprint(*parts: torch.Tensor) -> str:
    """What tells tokens on the host, in parts that follow one another, from others."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.contiguous().long().numpy().tobytes())
    return found.hexdigest()[:16]
