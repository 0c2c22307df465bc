"""The standard streams: results on standard output, remarks and progress on standard error."""

import errno
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from solm.core.errors import argument

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from solm.core.budget import BudgetLike
    from solm.runtime.language_model import LanguageModel
    from solm.runtime.load import Prepared

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_INTERVAL, _REDRAWN = 30.0, 0.5
"""Seconds between two lines of progress, in a log and in a terminal."""
_ERASE = "\r\x1b[K"
"""Removes a terminal's line."""


def quiet() -> bool:
    """Whether --quiet was given."""
    return logging.getLogger("solm").level >= logging.ERROR


def say(text: str) -> None:
    """A remark on standard error, unless --quiet was given."""
    if not quiet():
        complain(text)


def complain(text: str) -> None:
    """The same of a mistake, which --quiet leaves."""
    _write((_ERASE if sys.stderr.isatty() else "") + text)


class Result(NamedTuple):
    """What a command prints: one JSON object with --json, else texts and tables."""

    content: dict[str, Any]
    parts: Iterable["str | Table"]


def print_result(result: Result, as_json: bool) -> None:
    """On standard output."""
    if as_json:
        print_json(result.content)
        return
    for part in result.parts:
        if isinstance(part, str):
            print(part)
        else:
            output().print(part)


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
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        shown.add_column(column, justify="right" if number else "left")
    for row in rows:
        shown.add_row(*row)
    return shown


def is_of_output(error: OSError) -> bool:
    """Whether standard output caused an error. What it holds is dropped then, of which Python would complain at its
    end."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # of a stream without a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return error.filename is None and error.errno in _FULL  # with PYTHONUNBUFFERED it holds nothing


class Progress:
    """How far a command is and the time left: in a terminal a line that is written over, else a line for every stage
    and one every half a minute; nothing with --quiet. A thread writes, because one part of the work may take
    minutes."""

    def __init__(self) -> None:
        self._over = sys.stderr.isatty()
        self._interval = _REDRAWN if self._over else _INTERVAL
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._state: tuple[str, int, int | None, str] = ("", 0, None, "")
        self._begun = self._told = 0.0
        self._first = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._over:
            _write(_ERASE, "")

    def show(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        """`done` of `total` parts of `stage` are finished; total None: not known."""
        with self._lock:
            changed = stage != self._state[0]
            self._state = stage, done, total, note
            if changed:
                self._begun, self._first = time.monotonic(), done
                self._tell()

    def _run(self) -> None:
        while not self._ended.wait(min(1.0, self._interval)):
            with self._lock:
                if self._state[0] and time.monotonic() - self._told >= self._interval:
                    self._tell()

    def _tell(self) -> None:
        stage, done, total, note = self._state
        self._told = now = time.monotonic()
        elapsed, finished = now - self._begun, done - self._first
        line = stage if total is None else f"{stage} {done}/{total}"
        if elapsed >= 1:
            line += f", {_clock(elapsed)} elapsed"
        if total is not None and finished > 0 and done < total:
            line += f", about {_clock(elapsed / finished * (total - done))} left"
        if note:
            line += f", {note}"
        if quiet():
            return
        if self._over:
            _write(_ERASE + line[: shutil.get_terminal_size().columns - 1], "\r")
        else:
            _write(line)


def _write(text: str, end: str = "\n") -> None:
    """Write to standard error. What cannot be written, as to a full disk, is lost."""
    with suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


def read_weights(prepared: "Prepared", budget: "BudgetLike" = None) -> "LanguageModel":
    """The model, ready to run, with step times of this machine where `budget` is one in time; progress is shown where
    its weights are repacked and where it is timed."""
    with Progress() as progress, argument("budget"):
        lm = prepared.load(lambda done, total: progress.show("repacking the weights, once", done, total))
        return lm.timed_for(budget, progress.show)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
