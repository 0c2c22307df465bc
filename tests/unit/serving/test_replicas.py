"""Replicas as processes: one that ends is started again, as soon as it can be, and all read their keys again when they
are told to."""

import asyncio
import errno
import signal
import sys

import pytest

from solm.core.errors import SolmError
from solm.serving import replicas as module
from solm.serving.replicas import Replicas

IMITATION = """
import http.server, pathlib, signal, socketserver, sys, time
folder, socket = pathlib.Path(sys.argv[1]), sys.argv[3]
(folder / "started").open("a").write(".")
while (folder / "wait").exists():
    time.sleep(0.02)
number = pathlib.Path(socket).name

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass

class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

signal.signal(signal.SIGHUP, lambda *_: (folder / "heard").open("a").write(number))
Server(socket, Handler).serve_forever()
"""
"""Ready once there is no file ``wait``. Notes which replica got a SIGHUP, which would end it before."""


async def until(true) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


def test_all_read_their_keys_again_and_one_that_starts_does_so_once_it_is_ready(tmp_path):
    def text(name: str) -> str:
        path = tmp_path / name
        return path.read_text() if path.exists() else ""

    async def run() -> None:
        replicas = Replicas([sys.executable, "-c", IMITATION, str(tmp_path)], 2, 5.0)
        try:
            await replicas.start()
            replicas.reread_keys()
            await until(lambda: sorted(text("heard")) == ["0", "1"])

            (tmp_path / "wait").touch()
            ended = replicas.all[1]
            ended.process.kill()
            await until(lambda: len(text("started")) == 3)
            replicas.reread_keys()
            await until(lambda: text("heard").count("0") == 2)
            await asyncio.sleep(0.5)
            assert ended.process.returncode is None
            assert (ended.ready, text("heard").count("1")) == (False, 1)

            (tmp_path / "wait").unlink()
            await until(lambda: text("heard").count("1") == 2)
            assert ended.ready
            assert not ended.outdated
            assert len(text("started")) == 3

            ended.process.kill()  # what starts after it reads the keys anyway
            await until(lambda: not ended.ready)
            await until(lambda: ended.ready)
            assert len(text("started")) == 4
            await asyncio.sleep(0.5)
            assert text("heard").count("1") == 2
        finally:
            await replicas.stop()
        assert [replica.process.returncode for replica in replicas.all] == [-signal.SIGTERM] * 2

    asyncio.run(run())


def test_one_that_hangs_is_ended_and_started_again(tmp_path, monkeypatch):
    for name, seconds in (("_ANSWER", 0.3), ("_LOOK", 0.02), ("_LOOK_AGAIN", 0.02)):
        monkeypatch.setattr(module, name, seconds)

    async def run() -> None:
        replicas = Replicas([sys.executable, "-c", IMITATION, str(tmp_path)], 1, 5.0)
        try:
            await replicas.start()
            (replica,) = replicas.all
            hung = replica.process
            hung.send_signal(signal.SIGSTOP)
            await until(lambda: not replica.ready)
            hung.send_signal(signal.SIGCONT)  # one that answers again goes on
            await until(lambda: replica.ready)
            assert hung.returncode is None
            hung.send_signal(signal.SIGSTOP)
            await until(lambda: replica.process is not hung and replica.ready)
            assert hung.returncode == -signal.SIGKILL
        finally:
            await replicas.stop()

    asyncio.run(run())


def test_one_that_cannot_be_started_again_at_once_is_started_later(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LONGEST_PAUSE", 0.05)
    start, refused = asyncio.create_subprocess_exec, []

    async def scarce(*command, **options):
        if len(refused) < 2:
            refused.append(command)
            raise OSError(errno.EAGAIN, "no process left")
        return await start(*command, **options)

    async def run() -> None:
        replicas = Replicas([sys.executable, "-c", IMITATION, str(tmp_path)], 1, 5.0)
        try:
            await replicas.start()
            monkeypatch.setattr(asyncio, "create_subprocess_exec", scarce)
            (replica,) = replicas.all
            ended = replica.process
            ended.kill()
            await until(lambda: replica.process is not ended and replica.ready)
            assert len(refused) == 2
        finally:
            await replicas.stop()

    asyncio.run(run())


def test_one_that_cannot_be_started_at_all_is_an_error(tmp_path):
    async def run() -> None:
        replicas = Replicas([str(tmp_path / "missing")], 1, 5.0)
        try:
            with pytest.raises(SolmError, match="replica 0 cannot be started: No such file"):
                await replicas.start()
        finally:
            await replicas.stop()

    asyncio.run(run())
