"""Texts: documents from files, folders, the hub or Python's own documentation, and windows of their tokens."""

import hashlib
import json
import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from transformers import PreTrainedTokenizerBase

from solm.core.errors import DataError, check_unicode, first_line

_SUFFIXES = (".txt", ".raw", ".jsonl")
_HELD_OUT_FRACTION = 4  # every fourth pydoc topic, by hash
_SPACED = [(" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."), (" n't", "n't"), ("( ", "("), (" )", ")")]
_TOGETHER = 16
"""Documents that are made tokens together: lists of Python's integers take five times the memory of the tokens."""


def documents(source: str) -> list[str]:
    """The documents of `source`.

    A ``.txt`` or ``.raw`` file (one document), a ``.jsonl`` file (field ``text``), a folder of those, ``pydoc``,
    ``pydoc:train`` or ``pydoc:heldout`` (Python's language documentation, split by topic), or a hub data set
    ``name[@config][:split]``.
    Raises `DataError` with file and line for anything malformed or empty.
    """
    if source.split(":")[0] == "pydoc":
        return _pydoc(source)
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES)
        if not files:
            raise DataError(f"the folder {source} holds no {', '.join(_SUFFIXES)} files")
        return [text for file in files for text in _read(file)]
    if path.suffix in _SUFFIXES or path.exists():
        return _read(path)
    return _hub(source)


def read_text(path: Path) -> str:
    """The text of a file; raises `DataError` where it cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _read(path: Path) -> list[str]:
    if path.suffix not in _SUFFIXES:
        raise DataError(f"{path} is none of {', '.join(_SUFFIXES)}")
    text = read_text(path)
    found = _jsonl(path, text) if path.suffix == ".jsonl" else [undo_wikitext(text)]
    if not any(document.strip() for document in found):
        raise DataError(f"{path} holds no text")
    return found


def _jsonl(path: Path, content: str) -> list[str]:
    texts = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error.msg})") from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise DataError(f"{path}, line {number}: expected an object with a string field 'text'")
        check_unicode(record["text"], f"{path}, line {number}: the text")
        texts.append(record["text"])
    return texts


def undo_wikitext(text: str) -> str:
    """WikiText's spaced tokens back to ordinary text; other text comes back unchanged."""
    if " @-@ " not in text and " @,@ " not in text:
        return text
    for spaced, plain in _SPACED:
        text = text.replace(spaced, plain)
    text = re.sub(r" ([.,;:!?%'])", r"\1", text)
    return re.sub(r'" ([^"]*) "', r'"\1"', text)


def _pydoc(source: str) -> list[str]:
    from pydoc_data.topics import topics

    part = source.partition(":")[2]
    if part not in ("", "train", "heldout"):
        raise DataError(f"unknown source {source!r}; choose pydoc, pydoc:train or pydoc:heldout")

    def held_out(topic: str) -> bool:
        return zlib.crc32(topic.encode()) % _HELD_OUT_FRACTION == 0

    # Several topics share a text; a text belongs to the part of its first topic only.
    first = {text: topic for topic, text in sorted(topics.items(), reverse=True)}
    texts = sorted((topic, text) for text, topic in first.items())
    return [text for topic, text in texts if not part or held_out(topic) == (part == "heldout")]


def _hub(source: str) -> list[str]:
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetNotFoundError
    except ImportError:
        raise DataError(f"no file {source}; hub data sets need: pip install '.[train]' in a checkout of solm") from None
    name, _, split = source.partition(":")
    name, _, config = name.partition("@")
    try:
        rows = load_dataset(name, config or None, split=split or "train")
        return [text for text in rows["text"] if isinstance(text, str) and text.strip()]
    except (DatasetNotFoundError, ConnectionError, ValueError, KeyError, OSError) as error:
        reason = first_line(error)
        raise DataError(f"{source!r} is neither a file, a folder nor a reachable hub data set: {reason}") from error


@dataclass(frozen=True)
class TokenStream:
    """All tokens of some sources in one row: tokens [M] int32; name for messages; fingerprint of the text. Windows of
    them are int64."""

    tokens: torch.Tensor
    name: str
    fingerprint: str

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
    return stream_of([text for source in sources for text in documents(source)], tokenizer, ", ".join(sources))


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
