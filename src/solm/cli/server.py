"""The process of `solm serve`: says when it listens, reads its keys again on SIGHUP, starts and ends its replicas."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Sequence

import uvicorn

from solm.core.errors import SolmError
from solm.serving.keys import ApiKey, KeyRing
from solm.serving.replicas import Replicas

_LOG = logging.getLogger("solm.serving")


CLOSING = 3.0
"""Seconds that a client gets to end its side of a connection without a request, when the server stops."""
_TLS = ("--ssl-certfile", "--ssl-keyfile")


def announcing(config: uvicorn.Config, started: Callable[[], None]) -> uvicorn.Server:
    """A server that calls `started` in its event loop once it listens. When it stops, requests get the configured
    time, and connections without one `CLOSING`."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                started()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            cutting = asyncio.create_task(_cut_off_idle(self))
            try:
                await super().shutdown(sockets)
            finally:
                cutting.cancel()
                if self.force_exit:  # a second Ctrl-C cancels the tasks that are left, and each would log a traceback
                    logging.getLogger("uvicorn.error").addFilter(lambda record: record.levelno < logging.ERROR)

    return Server(config)


async def _cut_off_idle(server: uvicorn.Server) -> None:
    """End TLS connections that clients keep for later: both sides have to say so, and asyncio would wait half a minute
    for theirs."""
    clock, idle_since = asyncio.get_running_loop().time, dict[object, float]()
    while True:
        for connection in list(server.server_state.connections):
            cycle, transport = getattr(connection, "cycle", None), getattr(connection, "transport", None)
            if (cycle is not None and not cycle.response_complete) or transport is None:
                idle_since.pop(connection, None)
            elif clock() - idle_since.setdefault(connection, clock()) >= CLOSING:
                transport.abort()
        await asyncio.sleep(0.1)


def replica_options(given: Sequence[str], rows: int) -> list[str]:
    """The command line of a replica from that of the server in front: one process, TLS only in front, and `rows`, since
    a replica cannot know how much memory the others will take."""
    kept, rest = [], iter(given)
    for each in rest:
        if each in _TLS:
            next(rest, None)
        elif each.partition("=")[0] not in _TLS:
            kept.append(each)
    return [*kept, "--replicas", "1", "--max-rows", str(rows), "--rows-fit"]


async def run_in_front(server: uvicorn.Server, replicas: Replicas) -> None:
    """Start replicas, run the server in front of them, and end them however that ends."""
    try:
        await replicas.start()
        await server.serve()
    finally:
        await replicas.stop()


def reread_on_hangup(
    keys: KeyRing, read: Callable[[], list[ApiKey]], replaced: Callable[[], None] | None = None
) -> None:
    """Replace `keys` by what `read` gives whenever SIGHUP arrives, and call `replaced`; where `read` raises, they stay
    as they are.

    Requests in flight go on as they began. Call it in the event loop.
    """
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()
    one_at_a_time = asyncio.Lock()

    async def reread() -> None:
        async with one_at_a_time:
            try:
                keys.replace(await asyncio.to_thread(read))
                _LOG.info("API keys were read again: %d", len(keys))
                if replaced is not None:
                    replaced()
            except SolmError as error:
                _LOG.error("API keys stay as they were: %s", " ".join(str(error).split()))

    def hung_up() -> None:
        task = loop.create_task(reread())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(signal.SIGHUP, hung_up)
