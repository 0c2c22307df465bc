"""Stopping a run cleanly at a signal."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGTERM_CODE = 128 + signal.SIGTERM


class Interrupted(Exception):
    """A run stopped at a signal, with everything saved. exit_code: 130 (SIGINT) or 143 (SIGTERM)."""

    def __init__(self, exit_code: int):
        super().__init__("interrupted")
        self.exit_code = exit_code


@contextmanager
def signals(words: str = "stopping as soon as this part is saved; once more: at once") -> Iterator[list[int]]:
    """A list that SIGINT or SIGTERM appends its exit code to; a second signal acts as usual.

    words: what is said at the first one; empty: nothing.
    """
    stop: list[int] = []
    previous: dict[int, Any] = {}
    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)

    def handle(number: int, frame: object) -> None:
        stop.append(128 + number)
        signal.signal(number, previous[number])
        if words:
            logging.getLogger("solm").warning(words)

    for number in numbers:
        previous[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
