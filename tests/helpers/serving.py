"""A server of the tiny model on a real port, for the tests of the API and of the page."""

import copy
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import torch
import uvicorn

import solm
from helpers.commands import free_port
from helpers.models import tiny_model
from helpers.policies import network
from helpers.timings import made_curve
from solm.backends.torch.session import TorchSession
from solm.core.sparsity import SparsityConfig
from solm.policies.artifact import PolicyConfig, TrainedPolicy
from solm.serving.app import create_app
from solm.serving.keys import ApiKey
from solm.serving.service import Service
from solm.serving.settings import ServeSettings

LONG = "The quick brown fox jumps over the lazy dog, again and again, until the evening comes. "
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": LONG}]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
TOOL_TEMPLATE = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool.function.name }} {% endfor %}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for call in m.tool_calls or [] %}<tool_call>"
    "{{ call.function.name }}{{ call.function.arguments | tojson }}</tool_call>{% endfor %}"
    "{{ '\n' }}{% endfor %}<assistant>"
)
"""Calls as Qwen 2.5's template writes them, in short."""


def with_template(tokenizer, template=TEMPLATE):
    """A copy, since the tokenizer is shared by all tests, that has a chat template."""
    copied = copy.deepcopy(tokenizer)
    copied.chat_template = template
    return copied


def tiny_service(byte_tokenizer, policy=True, curve=False, template=TEMPLATE, **settings) -> Service:
    """The tiny llama under a value policy that was not trained but tells tokens apart; curve: a made-up one."""
    lm = solm.attach(tiny_model("llama", torch.float32), tokenizer=with_template(byte_tokenizer, template))
    if policy:
        values = network(layer=1)
        config = PolicyConfig(
            base=lm.identity, space=values.config.grid, sparsity=SparsityConfig(window=32, page_size=8),
            network=values.config,
        )  # fmt: skip
        known = made_curve() if curve else None
        lm = lm.with_policy(TrainedPolicy(config, values, known))
    return Service(lm, ServeSettings(**settings), "tiny")


@contextmanager
def running(service: Service, keys=(), hosts=("127.0.0.1", "localhost")):
    """The address of a server that answers for `service`. keys: API keys, or as `ApiKey.parse` reads them."""
    service.keys = [key if isinstance(key, ApiKey) else ApiKey.parse(key) for key in keys]
    app = create_app(service, hosts)
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_keep_alive=75)
    )
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        until(lambda: service.ready)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        service.lm.detach()


def slow_steps(monkeypatch, seconds: float) -> None:
    """From now on every step of a session takes `seconds` longer."""
    step = TorchSession.step
    monkeypatch.setattr(TorchSession, "step", lambda *a, **k: (time.sleep(seconds), step(*a, **k))[1])


def steps_by_budget(monkeypatch, seconds: float) -> None:
    """From now on every step of a session takes `seconds` longer where its rows may spend all, and far less where they
    may not: the fourth power of their mean share."""
    step = TorchSession.step

    def slower(self, *args, **options):
        time.sleep(seconds * float(self._budgets["target"].mean()) ** 4)
        return step(self, *args, **options)

    monkeypatch.setattr(TorchSession, "step", slower)


def until(true, seconds: float = 60.0) -> None:
    """Wait for a condition that another thread brings about."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def ask(client, budget="keep=0.6", **options):
    efficiency = {"budget": budget, **options.pop("efficiency", {})}
    extra = {"efficiency": efficiency} if any(efficiency.values()) else {}
    return client.chat.completions.create(
        **{"model": "tiny", "messages": CHAT, "max_tokens": 40, "seed": 3, "extra_body": extra, **options}
    )


def gauges(service) -> tuple[float, float, int]:
    registry = service.metrics.registry
    return (
        registry.get_sample_value("solm_rows_running"), registry.get_sample_value("solm_rows_waiting"),
        service.scheduler.busy,
    )  # fmt: skip


def start(*options, keys="", log=None):
    """A server process and its address. log: the file that its log goes to, None: a pipe, of which little is read."""
    port = free_port()
    out = subprocess.PIPE if log is None else log.open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "solm.cli", "serve", "--port", str(port), *map(str, options)],
        stderr=out, text=True, env={**os.environ, "SOLM_API_KEYS": keys},
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"

    def ready():
        assert process.poll() is None, process.stderr.read() if log is None else log.read_text()
        try:
            return httpx.get(f"{address}/health").status_code == 200
        except httpx.TransportError:
            return False

    until(ready, 120)
    return process, address
