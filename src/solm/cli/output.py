"""The standard streams: results on standard output, remarks and progress on standard error."""

import errno
import io
import json
import logging
import os
import shutil
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from solm.core.curve import BudgetCurve
    from solm.runtime.language_model import LanguageModel
    from solm.runtime.prepare import Prepared
    from solm.runtime.reply import Reply

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


def print_result(content: Any, as_json: bool, *parts: Any) -> None:
    """The result of a command: one JSON object with --json, else texts and tables."""
    if as_json:
        print(json.dumps(content, ensure_ascii=False))
        return
    for part in parts:
        if isinstance(part, str):
            print(part)
        else:
            output().print(part)


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


def prepare_streams() -> None:
    """Have streams that were closed at the start raise `OSError` when they are used, but for errors, which are lost.
    Bytes that are not UTF-8 are read as lone surrogates, as Python reads arguments; commands check what they read."""
    # Python has None for a closed stream. Opening each, in this order, also keeps its number from other files.
    if sys.stdin is None:
        sys.stdin = open(os.open(os.devnull, os.O_WRONLY))  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def reason(error: OSError) -> str:
    """Why a standard stream cannot be used."""
    return "it is closed" if error.errno == errno.EBADF else error.strerror or str(error)


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
    and one every `interval` seconds; nothing with --quiet. A thread writes, because one part of the work may take
    minutes."""

    def __init__(self, interval: float | None = None) -> None:
        self._over = sys.stderr.isatty()
        self._interval = (_REDRAWN if self._over else _INTERVAL) if interval is None else interval
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._state: tuple[str, int, int | None, str] = ("", 0, None, "")
        self._begun = self._told = 0.0
        self._first = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the display, which may be before the block ends."""
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


def read_weights(prepared: "Prepared") -> "LanguageModel":
    """The model, ready to run; progress is shown where its weights are repacked."""
    with Progress() as progress:
        return prepared.load(lambda done, total: progress.show("repacking the weights, once", done, total))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def describe_speed(moments: list[float]) -> str:
    """How fast a reply came after its first token, whose tokens were chosen at `moments`, in seconds."""
    from solm.runtime.reply import step_milliseconds

    step = step_milliseconds(moments)
    return "too short to be timed" if step is None else f"{1000 / step:.1f} tokens/s, {step:.1f} ms per token"


def show_cost(lm: "LanguageModel", budget: str | None, reply: "Reply", moments: list[float], prompt: int) -> str | None:
    """Say what was requested and realised in all units that are measured, and where times and losses come from; returns
    what the budget saved in a reply to `prompt` tokens, None where nothing was to be saved.

    The factor over dense steps is given where the model has timings of this machine and as many threads.
    """
    from solm.core.budget import in_words
    from solm.runtime.reply import step_milliseconds

    requested, realised, steps = reply.compute.requested, reply.compute.realised, len(reply.tokens) - 1
    context = prompt + len(reply.tokens) // 2
    say(f"requested: {'' if budget is None else f'{budget}: '}{in_words(requested)}")
    say(f"realised:  {in_words(realised)}")
    if lm.timings is not None:
        where = f"step times: measured on {lm.timings.measured_on}"
        if lm.trained is not None and lm.trained.curve is not None and requested.keys() & {"loss", "loss_above"}:
            where += f"; loss: from the policy's curve at {lm.trained.curve.nearest(context):,} tokens"
        say(f"           {where}")
    if requested["net"] >= 1:
        return None
    if not steps:  # the first token comes from reading the prompt
        return "nothing, as the first token comes from reading the prompt; ask for a longer reply"
    saved = f"steps read {reply.compute.bytes:.3f} of the bytes of dense ones"
    step = step_milliseconds(moments)
    if lm.timings is not None and lm.timings_note is None and step is not None:
        dense = lm.timings.dense(prompt + steps // 2)
        saved += f", and are {dense / step:.2f} times as fast as dense ones ({dense:.1f} ms by the timings)"
    waited = reply.compute.whole_attention
    if waited and requested["attention"] < 1:
        saved += f"; in the first {waited} of {steps} steps attention read everything, as it always reads the first "
        saved += f"{lm.sparsity.sinks} tokens and the last {lm.sparsity.window}"
    return saved
