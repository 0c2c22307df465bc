"""Several server processes on this machine, each on a Unix socket: started, watched, started again when they end."""

import asyncio
import ctypes
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from solm.backends.machine import default_threads
from solm.core.errors import SolmError

_LOG = logging.getLogger("solm.serving")
_LOOK, _LOOK_AGAIN = 0.2, 10.0
"""Seconds between looks at whether a replica is ready, and whether it still is."""
_ANSWER, _SILENT = 10.0, 6
"""Seconds that a replica gets to answer a look, and looks in a row after which one that has not is ended."""
_NO_ANSWER = 504
_LONGEST_PAUSE = 30.0
"""Seconds before one that keeps ending is started again."""
_STEADY = 60.0
"""Seconds after which a replica does not count as one that keeps ending."""
_END_WITH_PARENT = 1
"""Linux's PR_SET_PDEATHSIG."""


class Replica:
    """One process. load: requests that it answers. ready: whether it takes any. was_ready: whether it ever did.
    outdated: whether its keys may be older than those of the others."""

    def __init__(self, number: int, socket: Path):
        self.number, self.socket = number, socket
        self.load, self.ready, self.was_ready, self.outdated = 0, False, False, False
        self.process: asyncio.subprocess.Process | None = None
        # A connection for every request: one that is used again may have been closed meanwhile, which would look like a
        # replica that has ended with a request.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self.transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=limits)

    def reread_keys(self) -> None:
        """Make the process read its keys again: at once where it takes requests, else before it does. While it starts,
        SIGHUP would end it."""
        self.outdated = not self.ready
        if self.ready and self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGHUP)

    async def status(self, path: str) -> int | None:
        """Of the answer to GET `path`; `_NO_ANSWER` for none in time, None where nobody takes the request."""
        request = httpx.Request("GET", f"http://localhost{path}", extensions={"timeout": {"read": _ANSWER}})
        try:
            answer = await self.transport.handle_async_request(request)
            await answer.aread()
        except httpx.ReadTimeout:
            return _NO_ANSWER
        except httpx.TransportError:
            return None
        return answer.status_code


class Replicas:
    """`count` processes of `command`, to which ``--uds`` and a socket are added. They share the threads that one would
    compute on, but for OMP_NUM_THREADS, which counts for each.

    seconds: what a process gets to end when it is told to.
    """

    def __init__(self, command: Sequence[str], count: int, seconds: float):
        self._command, self._seconds = list(command), seconds
        shared = 1 if os.environ.get("OMP_NUM_THREADS") else count
        self._threads = max(1, default_threads() // shared)
        self._folder = Path(tempfile.mkdtemp(prefix="solm-"))
        self.all = [Replica(number, self._folder / str(number)) for number in range(count)]
        self._keeping: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start all and wait until they are ready. Raises `SolmError` where one ends before."""
        self._keeping = [asyncio.create_task(self._keep(replica)) for replica in self.all]
        while not all(replica.ready for replica in self.all):
            for task in self._keeping:
                if task.done():
                    task.result()
            await asyncio.sleep(_LOOK)

    def reread_keys(self) -> None:
        """Make all read their keys again."""
        for replica in self.all:
            replica.reread_keys()

    async def stop(self) -> None:
        """End all, each as on SIGTERM, and wait for them."""
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        self._keeping = []
        await asyncio.gather(*(self._end(replica) for replica in self.all))
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _end(self, replica: Replica) -> None:
        process, replica.ready = replica.process, False
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), self._seconds)
            except TimeoutError:
                process.kill()
                await process.wait()
        await replica.transport.aclose()

    async def _keep(self, replica: Replica) -> None:
        """Start a replica again whenever it ends. Raises `SolmError` where it cannot be started, or ends, before it was
        ready once."""
        clock, pause = asyncio.get_running_loop().time, 0.5
        while True:
            begun = clock()
            replica.socket.unlink(missing_ok=True)
            replica.outdated = False
            try:
                replica.process = await asyncio.create_subprocess_exec(
                    *self._command, "--uds", str(replica.socket), stdout=asyncio.subprocess.DEVNULL,
                    env={**os.environ, "OMP_NUM_THREADS": str(self._threads), "FORWARDED_ALLOW_IPS": "*"},
                    preexec_fn=_end_with_parent(),
                    start_new_session=True,  # Ctrl-C is for this process, which ends the others in good order
                )  # fmt: skip
            except OSError as error:  # such as too many processes or too little memory
                if not replica.was_ready:
                    raise SolmError(f"replica {replica.number} cannot be started: {error.strerror}") from error
                pause = min(2 * pause, _LONGEST_PAUSE)
                _LOG.error("replica %d cannot be started (%s); again in %g s", replica.number, error.strerror, pause)
                await asyncio.sleep(pause)
                continue
            watching = asyncio.create_task(self._watch(replica))
            try:
                code = await replica.process.wait()
            finally:
                watching.cancel()
                replica.ready = False
            if not replica.was_ready:
                raise SolmError(f"replica {replica.number} ended with {_told(code)} before it was ready")
            pause = min(2 * pause, _LONGEST_PAUSE) if clock() - begun < _STEADY else 1.0
            _LOG.error("replica %d ended with %s; started again in %g s", replica.number, _told(code), pause)
            await asyncio.sleep(pause)

    async def _watch(self, replica: Replica) -> None:
        """Keep `ready` true to a running replica; end one that can no longer decode, or hangs after it was ready."""
        assert replica.process is not None
        begun, silent = False, 0
        while True:
            status = await replica.status("/health/ready")
            replica.ready = status == 200
            begun = begun or replica.ready
            silent = silent + 1 if status == _NO_ANSWER else 0
            replica.was_ready = replica.was_ready or replica.ready
            if replica.ready and replica.outdated:
                replica.reread_keys()
            if status == 503 and await replica.status("/health/live") == 503:
                _LOG.error("replica %d can no longer decode", replica.number)
                replica.process.kill()
            if begun and silent >= _SILENT:
                _LOG.error("replica %d has not answered %d times", replica.number, silent)
                replica.process.kill()
            await asyncio.sleep(_LOOK_AGAIN if replica.ready else _LOOK)


def _told(code: int) -> str:
    return f"code {code}" if code >= 0 else signal.Signals(-code).name


def _end_with_parent() -> Callable[[], object] | None:
    """What makes a new process get SIGTERM when this one ends, even if it is killed; on Linux."""
    control = getattr(ctypes.CDLL(None), "prctl", None)
    return None if control is None else lambda: control(_END_WITH_PARENT, signal.SIGTERM)
