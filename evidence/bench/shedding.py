"""A server that gets 1, 2 and 4 times the requests that it can answer, with and without the governor.

Capacity is measured first: replies per second where as many clients as rows ask in turn. Then requests arrive at random
moments at multiples of that rate, whatever becomes of earlier ones. Every phase lasts `--seconds`: what is complete by
then counts, what is not is cut off. A reply is good where its first token came within `--first` seconds and its time
per token met the objective, which is `--slack` times the 95th percentile at capacity. One server without the governor
gets all rates, then one with it, each the same arrivals.

    python evidence/bench/shedding.py --model FILE.gguf --policy builtin:qwen2.5-coder-0.5b-instruct --out FILE

With `--out` every phase is kept; the same command goes on where it was interrupted.
"""

import asyncio
import os
import re
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from evidence.bench.common import TEXT, Kept, finish, parser
from evidence.bench.server_process import free_port, server
from solm.backends.tokenizer import model_tokenizer
from solm.evaluation.texts import token_stream

ARMS = {"no governor": [], "governor": ["--slo-tpot-ms", "{objective:.3f}", "--slo-floor", "{floor}"]}
_IDLE = 30.0
"""Seconds that a server gets until it is idle after what was cut off."""


@dataclass
class Reply:
    """What became of a request: times since it was sent, in seconds, as far as they are known."""

    status: int = 0
    first: float | None = None
    last: float = 0.0
    tokens: int = 0
    net: float | None = None
    complete: bool = False

    @property
    def per_token(self) -> float:
        """Seconds per token after the first."""
        return (self.last - (self.first or 0.0)) / max(1, self.tokens - 1)


@dataclass
class Client:
    """Requests to one server, each told of in `replies` from its beginning on."""

    address: str
    tokens: int
    efficiency: dict[str, Any]
    texts: list[str]
    replies: list[Reply] = field(default_factory=list)

    async def ask(self, http: httpx.AsyncClient) -> None:
        """One streamed reply; what goes wrong is a reply that is not complete."""
        reply, number = Reply(), len(self.replies)
        self.replies.append(reply)
        body = {
            "model": "served", "messages": [{"role": "user", "content": f"{number}: {self._text(number)}"}],
            "stream": True, "max_tokens": self.tokens, "temperature": 0, "efficiency": self.efficiency,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        sent = time.perf_counter()
        try:
            async with http.stream("POST", f"{self.address}/v1/chat/completions", json=body) as answer:
                reply.status = answer.status_code
                async for line in answer.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    reply.last = time.perf_counter() - sent
                    reply.first = reply.last if reply.first is None else reply.first
                    usage = USAGE.search(line)
                    if usage is not None:
                        reply.tokens = int(usage[1])
                        net = NET.search(line)
                        reply.net = None if net is None else float(net[1])
                    reply.complete = usage is not None
        except httpx.HTTPError:
            reply.complete = False

    def _text(self, number: int) -> str:
        return self.texts[number % len(self.texts)]


# Parsing whole events of thousands of replies would take processor time from the server that is measured.
USAGE = re.compile(r'"completion_tokens":(\d+)')
NET = re.compile(r'"realised":\{[^}]*"net":([0-9.]+)')


async def for_seconds(seconds: float, work: Callable[[httpx.AsyncClient], list[Awaitable[None]]]) -> None:
    """Do some work at once, and cut off what is not done after `seconds`."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
    async with httpx.AsyncClient(timeout=seconds, limits=limits) as http:
        tasks = [asyncio.ensure_future(each) for each in work(http)]
        begun = time.perf_counter()
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        await asyncio.sleep(max(0.0, begun + seconds - time.perf_counter()))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def in_turn(client: Client, clients: int, seconds: float) -> None:
    """`clients` that ask again as soon as they have an answer."""

    async def again(http: httpx.AsyncClient) -> None:
        while True:
            await client.ask(http)

    asyncio.run(for_seconds(seconds, lambda http: [again(http) for _ in range(clients)]))


def arriving(client: Client, rate: float, seconds: float, seed: int) -> None:
    """Requests at `rate` per second, at random moments."""
    rng = np.random.default_rng(seed)
    moments = np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds)))

    async def at(http: httpx.AsyncClient, moment: float) -> None:
        await asyncio.sleep(moment)
        await client.ask(http)

    asyncio.run(for_seconds(seconds, lambda http: [at(http, moment) for moment in moments]))


def idle(address: str) -> None:
    """Wait until the server has nothing to do."""
    end = time.monotonic() + _IDLE
    while time.monotonic() < end:
        told = httpx.get(f"{address}/metrics", timeout=_IDLE).text
        if all(float(each) == 0 for each in re.findall(r"^solm_rows_(?:running|waiting) (\S+)$", told, re.MULTILINE)):
            return
        time.sleep(0.1)


def summary(replies: list[Reply], seconds: float, objective: float, first: float) -> dict[str, float | None]:
    """Rates over the `seconds` of a phase; None where no reply was complete."""
    served = [reply for reply in replies if reply.complete and reply.first is not None]
    per_token = 1000 * np.array([reply.per_token for reply in served])
    until_first = np.array([reply.first for reply in served])
    good = (per_token <= objective) & (until_first <= first)
    nets = [reply.net for reply in served if reply.net is not None]

    def at(values: np.ndarray, percent: float) -> float | None:
        return float(np.percentile(values, percent)) if len(values) else None

    refused = sum(reply.status == 429 for reply in replies)
    return {
        "offered": len(replies), "served": len(served), "refused": refused,
        "cut_off": len(replies) - len(served) - refused, "served_per_second": len(served) / seconds,
        "goodput_per_second": float(good.sum()) / seconds,
        "tokens_per_second": sum(reply.tokens for reply in served) / seconds,
        "first_p50_s": at(until_first, 50), "first_p95_s": at(until_first, 95),
        "tpot_p50_ms": at(per_token, 50), "tpot_p95_ms": at(per_token, 95),
        "net_keep": float(np.mean(nets)) if nets else None,
    }  # fmt: skip


def command(options: Any, *more: str) -> list[str]:
    fixed = ["--model", options.model, "--policy", options.policy, "--backend", "cpu", "--name", "served"]
    queue = ["--max-rows", str(options.rows), "--set", f"max_waiting={options.waiting}", "--set", "prefix_mb=0"]
    return [sys.executable, "-m", "solm.cli", "serve", *fixed, *queue, *more]


def measured(options: Any) -> dict[str, Any]:
    """Capacity, and by arm and multiple of it what became of the requests."""
    tokenizer = model_tokenizer(options.model)
    windows = token_stream(TEXT, tokenizer).random(options.rows * 8, options.context, torch.Generator().manual_seed(0))
    texts = [tokenizer.decode(row) for row in windows]
    found: dict[str, Any] = {"arms": {}}
    kept = Kept(options)

    @contextmanager
    def serving(*more: str) -> Iterator[Callable[[dict[str, Any], Callable[[Client], None]], list[Reply]]]:
        """A server that has answered once, and what runs a phase on it."""
        with tempfile.TemporaryDirectory() as folder, server(
            command(options, *more), free_port(), Path(folder) / "log"
        ) as running:  # fmt: skip
            address = running.address
            warm = {"model": "served", "prompt": texts[0], "max_tokens": 4}
            httpx.post(f"{address}/v1/completions", json=warm, timeout=120).raise_for_status()

            def run(efficiency: dict[str, Any], work: Callable[[Client], None]) -> list[Reply]:
                client = Client(address, options.tokens, efficiency, texts)
                work(client)
                idle(address)
                return client.replies

            yield run

    def rates(arm: str, run: Callable[..., list[Reply]]) -> None:
        for factor in options.factors:
            rate, seed = factor * found["capacity_per_second"], round(10 * factor)

            def phase(rate: float = rate, seed: int = seed) -> dict[str, Any]:
                efficiency = {"budget": 1.0, "policy": "policy"}
                replies = run(efficiency, lambda client: arriving(client, rate, options.seconds, seed))
                return summary(replies, options.seconds, found["objective_ms"], options.first)

            found["arms"].setdefault(arm, {})[f"{factor:g}"] = kept.get(f"{arm}, {factor:g} times capacity", phase)

    def capacity() -> dict[str, Any]:
        replies = run({"policy": "dense"}, lambda client: in_turn(client, options.rows, options.seconds))
        return summary(replies, options.seconds, float("inf"), float("inf"))

    with serving() as run:
        full = kept.get("capacity", capacity)
        if not full["served"]:
            raise SystemExit(f"no reply of {options.tokens} tokens was complete in {options.seconds:g} s; allow more")
        found |= {"full": full, "capacity_per_second": full["served_per_second"]}
        found["objective_ms"] = float(full["tpot_p95_ms"] or 0) * options.slack
        rates("no governor", run)
    more = [part.format(objective=found["objective_ms"], floor=options.floor) for part in ARMS["governor"]]
    with serving(*more) as run:
        rates("governor", run)
    return found


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    options = parser(__doc__)
    options.add_argument("--policy", default="builtin:smollm2-135m-cpu")
    options.add_argument("--factors", type=float, nargs="+", default=[1, 2, 4], help="multiples of the capacity")
    options.add_argument("--seconds", type=float, default=40, help="of every phase")
    options.add_argument("--rows", type=int, default=8, help="replies that decode together")
    options.add_argument("--waiting", type=int, default=16, help="replies that may wait")
    options.add_argument("--tokens", type=int, default=64, help="tokens of a reply")
    options.add_argument("--context", type=int, default=128, help="tokens of a prompt")
    options.add_argument("--first", type=float, default=10.0, help="seconds until the first token of a good reply")
    options.add_argument("--slack", type=float, default=1.0, help="objective over the time per token at capacity")
    options.add_argument("--floor", default="keep=0.5", help="budget below which the governor does not go")
    asked = options.parse_args()
    results = measured(asked)
    finish("shedding", asked, results, lines(results))


def lines(results: dict[str, Any]) -> list[str]:
    """What was found, for a terminal."""

    def number(value: float | None, digits: int) -> str:
        return "none" if value is None else f"{value:.{digits}f}"

    head = f"capacity {results['capacity_per_second']:.2f} replies/s, objective {results['objective_ms']:.1f} ms"
    return [f"{head} per token"] + [
        f"{name:12} {factor}x: {run['goodput_per_second']:.2f} good of {run['served_per_second']:.2f} replies/s, "
        f"{run['refused']} of {run['offered']} refused, first {number(run['first_p95_s'], 1)} s, per token "
        f"{number(run['tpot_p95_ms'], 1)} ms (95 %), net keep {number(run['net_keep'], 2)}"
        for name, runs in results["arms"].items()
        for factor, run in runs.items()
    ]


if __name__ == "__main__":
    main()
