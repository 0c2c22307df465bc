"""The process of `solm serve`: says when it listens."""

import logging
import socket
from collections.abc import Callable

import uvicorn


def announcing(config: uvicorn.Config, started: Callable[[], None]) -> uvicorn.Server:
    """A server that calls `started` in its event loop once it listens."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                started()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            try:
                await super().shutdown(sockets)
            finally:
                if self.force_exit:  # a second Ctrl-C cancels the tasks that are left, and each would log a traceback
                    logging.getLogger("uvicorn.error").addFilter(lambda record: record.levelno < logging.ERROR)

    return Server(config)
