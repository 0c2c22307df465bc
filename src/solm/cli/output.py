"""The standard streams: results on standard output, remarks and progress on standard error."""

import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from solm.core.errors import argument

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from solm.core.budget import BudgetLike
    from solm.runtime.language_model import LanguageModel
    from solm.runtime.load import Prepared

_INTERVAL = 30.0
"""Seconds between two lines of progress in a log."""
_LONGEST = 110
"""Characters of a line that holds a value of several parts."""


def quiet() -> bool:
    """Whether --quiet was given."""
    return logging.getLogger("solm").level >= logging.ERROR


def erase() -> str:
    """What removes the line of progress in a terminal."""
    return "\r\x1b[K" if sys.stderr.isatty() else ""


def say(text: str, end: str = "\n") -> None:
    """A remark on standard error, unless --quiet was given."""
    if not quiet():
        complain(text, end)


def complain(text: str, end: str = "\n") -> None:
    """The same of a mistake, which --quiet leaves. What cannot be written, as to a full disk, is lost."""
    with suppress(OSError):
        print(f"{erase()}{text}", end=end, file=sys.stderr, flush=True)


class Result(NamedTuple):
    """What a command prints: one JSON object with --json, else texts and tables, or without any the same in words."""

    content: dict[str, Any]
    parts: Iterable["str | Table"] | None = None


def print_result(result: Result, as_json: bool) -> None:
    """On standard output."""
    if as_json:
        print_json(result.content)
        return
    for part in in_lines(result.content) if result.parts is None else result.parts:
        if isinstance(part, str):
            print(part)
        else:
            output().print(part)


def in_lines(content: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """A JSON object for people: a line for every value that is there, and below it the parts of a long one. Whole
    numbers of a million and more are bytes in all that is printed so."""
    for name, value in content.items():
        line, below = f"{indent}{name:{22 - len(indent)}} {_in_words(value)}", f"{indent}  "
        if isinstance(value, Mapping | list) and len(line) > _LONGEST:
            yield f"{indent}{name}"
            yield from in_lines(value, below) if isinstance(value, Mapping) else (below + _in_words(p) for p in value)
        elif value not in (None, [], {}):
            yield line


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        parts = [(name, _in_words(part), isinstance(part, Mapping)) for name, part in value.items() if part is not None]
        return ", ".join(f"{name} ({words})" if nested else f"{name} {words}" for name, words, nested in parts)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if value < 1_000_000 else f"{value / 1e6:,.1f} MB"
    return ", ".join(map(_in_words, value)) if isinstance(value, list) else str(value)


def print_json(content: dict[str, Any]) -> None:
    """One JSON object in one line."""
    print(json.dumps(content, ensure_ascii=False))


def output() -> "Console":
    """Standard output; wide enough for the result table where it is not a terminal."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 130
    return console


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> "Table":
    """Rows of cells under columns, of which all but the first hold numbers."""
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        shown.add_column(column, justify="right" if number else "left")
    for row in rows:
        shown.add_row(*map(escape, row))
    return shown


class Progress:
    """How far a command is: in a terminal one line, which changes; else a line for every stage and one every half a
    minute. Nothing with --quiet."""

    def __init__(self) -> None:
        self._stage, self._told, self._begun, self._first = "", 0.0, 0.0, 0
        self._ends, self._interval = ("", 0.1) if sys.stderr.isatty() else ("\n", _INTERVAL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ends:
            say("", "")

    def show(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        """`done` of `total` parts of `stage` are finished; total None: not known."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._begun, self._first = stage, now, done
        elif now - self._told < self._interval:
            return
        self._told = now
        line = stage if total is None else f"{stage} {done}/{total}"
        if total is not None and self._first < done < total:
            left = (now - self._begun) / (done - self._first) * (total - done)
            line += f", about {timedelta(seconds=round(left))} left"
        line = f"{line}, {note}" if note else line
        say(line if self._ends else line[: get_terminal_size().columns - 1], self._ends)


def read_weights(prepared: "Prepared", budget: "BudgetLike" = None) -> "LanguageModel":
    """The model, ready to run, with step times of this machine where `budget` is one in time; progress is shown where
    its weights are repacked and where it is timed."""
    with Progress() as progress, argument("budget"):
        lm = prepared.load(lambda done, total: progress.show("repacking the weights, once", done, total))
        return lm.timed_for(budget, progress.show)
