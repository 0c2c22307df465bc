"""A server process under load: requests of mixed priorities, hang-ups and slow readers; nothing is left of them."""

import asyncio
import json
import random
import re
import shutil
import signal
import socket
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
import torch

from helpers.models import tiny_model
from helpers.serving import LONG, start, until, with_template

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
SIZES = [(40, 60, 4, 2.0), pytest.param((500, 2000, 40, 60.0), marks=pytest.mark.slow)]
GONE = 499


@pytest.fixture(scope="module")
def server(byte_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model = tiny_model("llama", torch.float32)
    model.config.eos_token_id = model.generation_config.eos_token_id = None  # replies are as long as asked
    model.save_pretrained(folder)
    with_template(byte_tokenizer).save_pretrained(folder)
    process, address = start(
        "--model", folder, "--name", "tiny", "--backend", "cpu", "--set", "prefix_mb=0", "--set", "max_waiting=64",
        "--slo-tpot-ms", 20, log=folder / "log",
    )  # fmt: skip
    yield process.pid, address
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (0, -signal.SIGTERM)
    assert "Traceback" not in (folder / "log").read_text()


def resident(pid):
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def gauges(address):
    """What must be 0 while nobody asks for anything."""
    text = httpx.get(f"{address}/metrics").text
    names = r"^(solm_(?:rows_running|rows_waiting|class_rows|pages|page_bytes)\b.*) (\S+)$"
    found = {name: float(value) for name, value in re.findall(names, text, re.M)}
    assert len(found) == 10
    return {name: value for name, value in found.items() if value}


def body(rng, longest, stream):
    budget, priority = rng.choice(["keep=0.7", "keep=0.9", "keep=0.6"]), rng.choice(["low", "normal", "high"])
    return {
        "model": "tiny", "messages": [{"role": "user", "content": LONG[: rng.randint(1, 80)]}], "stream": stream,
        "max_tokens": rng.randint(1, longest), "efficiency": {"budget": budget, "priority": priority},
    }  # fmt: skip


async def ask(http, address, asked):
    """The status of a reply that is read to its end."""
    async with http.stream("POST", f"{address}/v1/chat/completions", json=asked) as answer:
        text = "".join([part async for part in answer.aiter_text()])
    if answer.status_code == 200:
        assert '"error"' not in text
        assert text.endswith("[DONE]\n\n") == asked["stream"]
    return answer.status_code


async def hang_up(http, address, rng):
    """Leave in mid reply: a stream after some events, the others at any moment."""
    asked = body(rng, 24, rng.random() < 0.5) | {"max_tokens": 300}
    patience, lines = rng.uniform(0.01, 0.5), rng.randint(1, 12)
    try:
        async with asyncio.timeout(60 if asked["stream"] else patience):
            async with http.stream("POST", f"{address}/v1/chat/completions", json=asked) as answer:
                async for _ in answer.aiter_lines():
                    lines -= 1
                    if answer.status_code == 200 and not lines:
                        return GONE
                return answer.status_code
    except TimeoutError:
        return GONE


async def load(address, hung, requests, seconds, rng):
    """Statuses of requests that arrive over `seconds`, whatever becomes of earlier ones, and of those that hang up."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
    async with httpx.AsyncClient(timeout=300, limits=limits) as http:

        async def at(moment, work):
            await asyncio.sleep(moment)
            return await work

        asking = [
            at(rng.uniform(0, seconds), ask(http, address, body(rng, 24, rng.random() < 0.5))) for _ in range(requests)
        ]
        leaving = [at(rng.uniform(0, seconds), hang_up(http, address, rng)) for _ in range(hung)]
        return await asyncio.gather(asyncio.gather(*asking), asyncio.gather(*leaving))


def slow_reader(address):
    """A client that asks for a long stream and has read a single byte of it."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    reader.connect(("127.0.0.1", int(address.rpartition(":")[2])))
    text = json.dumps({"model": "tiny", "prompt": "go on", "max_tokens": 400, "stream": True})
    head = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    reader.sendall("\r\n".join([*head, f"Content-Length: {len(text)}", "", text]).encode())
    assert reader.recv(1) == b"H"
    return reader


def trickle(readers, over):
    """Read a byte per second from each, until `over`."""
    while not over.wait(1):
        for reader in readers:
            reader.settimeout(1)
            with suppress(TimeoutError):
                assert len(reader.recv(1)) == 1


@pytest.mark.parametrize("size", SIZES, ids=["small", "whole"])
def test_nothing_is_left_of_a_load(server, size):
    pid, address = server
    hung, requests, readers, seconds = size
    rng = random.Random(0)
    asyncio.run(load(address, hung // 4, requests // 4, seconds / 4, rng))  # what is allocated once is
    until(lambda: not gauges(address), 120)
    before, begun, slow = resident(pid), time.monotonic(), []
    with ExitStack() as stack:
        for _ in range(readers):
            slow.append(stack.enter_context(slow_reader(address)))
        over = threading.Event()
        reading = threading.Thread(target=trickle, args=(slow, over))
        reading.start()
        stack.callback(reading.join)
        stack.callback(over.set)
        answered, left = asyncio.run(load(address, hung, requests, seconds, rng))
    until(lambda: not gauges(address), 120)
    assert set(answered) <= {200, 429}
    assert answered.count(200) > requests / 4
    assert set(left) <= {GONE, 429, 200}  # a loaded machine may have completed a reply before its reader leaves
    assert left.count(GONE) > hung / 4
    assert httpx.get(f"{address}/health/live").status_code == 200
    grown = resident(pid) / before - 1
    print(f"{requests} requests, {hung} hang-ups, {time.monotonic() - begun:.0f} s, {answered.count(429)} refused")
    print(f"{before / 1e6:.0f} MB before, {grown:+.1%} after")
    assert grown < 0.05
