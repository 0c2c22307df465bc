"""Documents from a named source."""

import json
import re
import zlib
from pathlib import Path

from solm.core.errors import DataError, check_unicode, first_line

_SUFFIXES = (".txt", ".raw", ".jsonl")
_HELD_OUT_FRACTION = 4  # every fourth pydoc topic, by hash
_SPACED = [(" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."), (" n't", "n't"), ("( ", "("), (" )", ")")]


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
