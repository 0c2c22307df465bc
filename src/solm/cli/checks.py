"""What commands check before anything slow: settings, files to write, texts to read. Errors name the option."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from solm.core.errors import DataError, SolmError, argument
from solm.core.files import is_stream, place_of
from solm.core.provenance import plain_names

if TYPE_CHECKING:
    from solm.evaluation.texts import TokenStream

Settings = TypeVar("Settings", bound=BaseModel)
Sources = list[tuple[str, list[str]]]
"""Texts by the name of where they come from."""


def settings(kind: type[Settings], more: Mapping[str, Any] | None = None, **values: Any) -> Settings:
    """A settings object of options, and of `more` that --set gives. Raises `SolmError` that names the option, its value
    and what is allowed."""
    try:
        return kind(**(values | dict(more or {})))
    except ValidationError as error:
        first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "[key]")
    option = f"--set {field}" if field.partition(".")[0] in (more or {}) else f"--{field.replace('_', '-')}"
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        reason = f"there is no such setting; choose among {', '.join(kind.model_fields)}"
    raise SolmError(f"{option}: {reason} (got {first['input']!r})")


def out_file(path: Path | None) -> None:
    """Check that a file can be written at `path` of --out. Devices and pipes are not opened before they are written."""
    if path is None:
        return
    if path.is_dir():
        raise SolmError(f"--out: {path} is a folder; give a file")
    if not is_stream(path):
        out_folder(place_of(path).parent, path)


def fit_options(out: Path, minutes: float | None) -> None:
    """Check the folder and the minutes of a fit."""
    if minutes is not None and not 0 < minutes <= 10_000:
        raise SolmError(f"--minutes: {minutes:g} is out of range: it must be above 0 and at most 10000")
    out_folder(out)


def out_folder(folder: Path, path: Path | None = None) -> None:
    """Check that `folder` of --out can be written to, or can be made. path: what will be written there."""
    path = path or folder
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise SolmError(f"--out: cannot write {path}: {existing} is not a folder")
    try:  # permissions do not tell everything: a file system may be read-only or none that takes files
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise SolmError(f"--out: cannot write {path}: {existing}: {error.strerror}") from error


def read_sources(text: str, tokens: int, name: str = "data") -> Sources:
    """The texts of a list of sources, each long enough for one text of `tokens` tokens. Raises `DataError` for one that
    is missing, empty, malformed or has fewer bytes; name: of the argument."""
    from solm.evaluation.texts import documents

    names = [part.strip() for part in text.split(",")]
    with argument(name):
        if not all(names):
            raise SolmError(f"{text!r} has an empty place; separate sources by one comma")
        sources = [(each, documents(each)) for each in names]
        for each, texts in sources:
            size = sum(len(text.encode()) + 1 for text in texts)  # an end-of-text token follows every document
            if size < tokens:
                raise DataError(f"{each} holds {size} bytes; one text needs {tokens} tokens")
    return sources


def streams(sources: Sources, tokenizer: Any) -> "list[TokenStream]":
    """The tokens of every source, under a name without the machine's folders."""
    from solm.evaluation.texts import stream_of

    names = plain_names([name for name, _ in sources])
    return [stream_of(texts, tokenizer, name) for name, (_, texts) in zip(names, sources, strict=True)]
