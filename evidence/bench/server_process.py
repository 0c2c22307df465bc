"""Servers as processes: started, ready, their peak memory, stopped."""

import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from evidence.bench.common import MODEL

STARTED = 600
"""Seconds until a server has to be ready."""


@dataclass(frozen=True)
class Server:
    """A server that answers. process: the one that was started."""

    address: str
    process: int

    @property
    def peak_gib(self) -> float:
        """The largest resident sizes of its processes so far, together."""
        total, waiting = 0, [self.process]
        while waiting:
            folder = Path("/proc") / str(waiting.pop())
            total += int(re.findall(r"VmHWM:\s+(\d+)", (folder / "status").read_text())[0])
            for task in (folder / "task").iterdir():
                waiting += (task / "children").read_text().split()
        return total / 2**20


def ours(*options: str, model: str = MODEL) -> list[str]:
    """The command of `solm serve`."""
    what = ["--policy", "auto"] if model == MODEL else ["--model", model]
    return [sys.executable, "-m", "solm.cli", "serve", *what, "--name", "served", *options]


def on_cpu(asked: Any, *more: str) -> list[str]:
    """The same on the cpu backend, with the options that --serve gives."""
    return ours("--backend", "cpu", *shlex.split(asked.serve), *more, model=asked.model)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def server(command: list[str], port: int, log: Path) -> Iterator[Server]:
    """A server process, ready to answer. A command without {port} in it is given --port."""
    named = [part.replace("{port}", str(port)) for part in command]
    with log.open("w") as out:
        process = subprocess.Popen(
            named if named != command else [*command, "--port", str(port)], stdout=out, stderr=out
        )
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + STARTED
    try:
        while True:
            try:
                found = httpx.get(f"{address}/health")
                if found.status_code == 404:
                    found = httpx.get(f"{address}/v1/models")
                if found.status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{' '.join(command)} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield Server(address, process.pid)
    finally:
        process.terminate()
        process.wait()
