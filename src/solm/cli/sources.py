"""Texts that commands read: checked before a model is loaded, and made tokens after."""

from typing import TYPE_CHECKING

from solm.cli.checks import option
from solm.core.errors import DataError, SolmError
from solm.core.provenance import plain_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from solm.data.windows import TokenStream

Sources = list[tuple[str, list[str]]]
"""Texts by the name of where they come from."""


def read_sources(text: str, typed: str = "--data") -> Sources:
    """The texts of a list of sources; raises `DataError` for one that is missing, empty or malformed."""
    from solm.data.text import documents

    names = [part.strip() for part in text.split(",")]
    with option(typed):
        if not all(names):
            raise SolmError(f"{text!r} has an empty place; separate sources by one comma")
        return [(name, documents(name)) for name in names]


def long_enough(sources: Sources, tokens: int, typed: str = "--data") -> None:
    """Refuse a source that cannot hold one text of `tokens` tokens, because it has fewer bytes."""
    for name, texts in sources:
        size = sum(len(text.encode()) + 1 for text in texts)  # an end-of-text token follows every document
        if size < tokens:
            raise DataError(f"{typed}: {name} holds {size} bytes; one text needs {tokens} tokens")


def streams(sources: Sources, tokenizer: "PreTrainedTokenizerBase | None") -> "list[TokenStream]":
    """The tokens of every source, under a name without the machine's folders."""
    from solm.data.windows import stream_of

    assert tokenizer is not None
    names = plain_names([name for name, _ in sources])
    return [stream_of(texts, tokenizer, name) for name, (_, texts) in zip(names, sources, strict=True)]


def one_stream(sources: Sources | None, tokenizer: "PreTrainedTokenizerBase | None") -> "TokenStream | None":
    """The tokens of all sources together; None for None."""
    from solm.data.windows import stream_of

    if sources is None:
        return None
    assert tokenizer is not None
    texts = [text for _, found in sources for text in found]
    return stream_of(texts, tokenizer, ", ".join(plain_names([name for name, _ in sources])))
