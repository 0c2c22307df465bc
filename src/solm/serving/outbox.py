"""Events on their way from the decoding thread to event loops."""

import asyncio
from contextlib import suppress
from typing import Any

Queue = asyncio.Queue[Any]


class Outbox:
    """Keeps events until they are sent, all of a step at once.

    A loop that woke for every event would want Python's lock in the middle of the others' work; after a step it answers
    clients while the engine computes the next one. For one thread, whatever the loops.
    """

    def __init__(self) -> None:
        self._kept: dict[asyncio.AbstractEventLoop, list[tuple[Queue, Any]]] = {}

    def put(self, loop: asyncio.AbstractEventLoop, queue: Queue, item: Any) -> None:
        """Keep an item for a queue that `loop` reads."""
        self._kept.setdefault(loop, []).append((queue, item))

    def send(self) -> None:
        """Put all that is kept into its queues."""
        kept, self._kept = self._kept, {}
        for loop, items in kept.items():
            with suppress(RuntimeError):  # a loop that was closed wants nothing any more
                loop.call_soon_threadsafe(_deliver, items)


def _deliver(items: list[tuple[Queue, Any]]) -> None:
    for queue, item in items:
        queue.put_nowait(item)
