"""What commands print: results on standard output, remarks and progress on standard error."""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from solm.core.curve import BudgetCurve

_NOTICEABLE = 2.0
"""Seconds after which somebody who waits should be told what for."""
_INTERVAL = 30.0
"""Seconds between two lines of progress in a log."""


def quiet() -> bool:
    """Whether --quiet was given."""
    return logging.getLogger("solm").level >= logging.ERROR


def say(text: str) -> None:
    """A remark on standard error, unless --quiet was given. One that cannot be written, as to a full disk, is lost."""
    if not quiet():
        complain(text)


def complain(text: str) -> None:
    """The same of a mistake, which --quiet leaves."""
    with suppress(OSError):
        print(text, file=sys.stderr)


def print_json(content: Any) -> None:
    """The one JSON object of a command with --json."""
    print(json.dumps(content, ensure_ascii=False))


def output() -> "Console":
    """Standard output; wide enough for the result table where it is not a terminal."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 130
    return console


def curve_table(curve: "BudgetCurve") -> "Table":
    """What the budgets of a policy take and lose."""
    from rich.table import Table

    from solm.core.curve import COLUMNS

    shown = Table(*COLUMNS, title=curve.about, title_justify="left")
    for row in curve.rows():
        shown.add_row(*row)
    return shown


class Progress(Protocol):
    """How far a command is."""

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: Any, error: Any, trace: Any) -> None: ...
    def stop(self) -> None:
        """End the display before the block ends."""

    def show(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        """`done` of `total` parts of `stage` are finished; total None: not known."""


def progress_bar(shown: bool = True) -> Progress:
    """Progress with the time left: a bar where standard error is a terminal, else a line at least every 30 seconds."""
    if not shown or quiet():
        return _Silent()
    return _Bar() if sys.stderr.isatty() else _Lines()


@contextmanager
def repacking() -> Iterator[Callable[[int, int], None]]:
    """What shows the progress of repacking weights, from the moment on that it takes noticeably long."""
    with ExitStack() as stack:
        begun: float | None = None
        bar: Progress | None = None

        def show(done: int, total: int) -> None:
            nonlocal begun, bar
            now = time.monotonic()
            begun = now if begun is None else begun
            if bar is None and now - begun > _NOTICEABLE and done < total:
                bar = stack.enter_context(progress_bar())
            if bar is not None:
                bar.show("repacking the weights, once", done, total)

        yield show


class _Silent:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        pass

    def stop(self) -> None:
        pass

    def show(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        pass


class _Bar:
    """A bar with counts, elapsed time and time left; it vanishes when done."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("ETA"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._stage, self._task = "", self._bar.add_task("", total=None, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._bar.stop()

    def show(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        if stage != self._stage:
            self._bar.reset(self._task, description=stage)  # the time left is that of this stage
            self._stage = stage
        self._bar.update(self._task, completed=done, total=total, note=note)


class _Lines:
    """Lines for a log. A thread writes them, because one part of the work may take minutes."""

    def __init__(self, interval: float = _INTERVAL) -> None:
        self._interval, self._ended, self._lock = interval, threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._state: tuple[str, int, int | None, str] = ("", 0, None, "")
        self._begun = self._told = 0.0
        self._first = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.stop()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def show(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        with self._lock:
            changed = stage != self._state[0]
            self._state = stage, done, total, note
            if changed:
                self._begun, self._first = time.monotonic(), done
                self._write()

    def _run(self) -> None:
        while not self._ended.wait(min(1.0, self._interval)):
            with self._lock:
                if self._state[0] and time.monotonic() - self._told >= self._interval:
                    self._write()

    def _write(self) -> None:
        stage, done, total, note = self._state
        self._told = now = time.monotonic()
        elapsed, finished = now - self._begun, done - self._first
        line = stage if total is None else f"{stage} {done}/{total}"
        if elapsed >= 1:
            line += f", {_clock(elapsed)} elapsed"
        if total is not None and finished > 0 and done < total:
            line += f", about {_clock(elapsed / finished * (total - done))} left"
        with suppress(OSError):
            print(line + (f", {note}" if note else ""), file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
