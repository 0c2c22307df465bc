"""Servers under load: tokens per second, time to the first token and per token, for 1, 4 and 16 clients.

Every server runs as a process of its own, all at the same time; clients take turns at them, so that one number of
clients is measured on all servers within minutes. Requests stream greedy chat replies to texts that no other request
shares. All models have one dtype, by default bfloat16 where the processor has it and float32 elsewhere.

    python benchmarks/serve.py                       # transformers serve; torch, cpu in bfloat16 and in int8
    python benchmarks/serve.py --governor --json     # twice the clients that a dense server holds its objective for
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from common import MODEL, finish, parser
from solm.backends.torch.load import load_base
from solm.data.windows import token_stream

PROMPT = 96
STARTED = 180
SERVERS = {
    "torch": ["--backend", "torch"],
    "cpu bfloat16": ["--backend", "cpu", "--precision", "bfloat16"],
    "cpu int8": ["--backend", "cpu", "--precision", "int8"],
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def server(command: list[str], port: int, log: Path) -> Iterator[str]:
    """A server process, ready to answer."""
    with log.open("w") as out:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=out, stderr=out)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + STARTED
    try:
        while True:
            try:
                if httpx.get(f"{address}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{' '.join(command)} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def ours(*options: str) -> list[str]:
    return [sys.executable, "-m", "solm.cli", "serve", "--policy", MODEL, "--name", "served", *options]


class Load:
    """Requests to one server. efficiency: what each asks for, None: the field is left out (not ours)."""

    def __init__(self, address: str, model: str, efficiency: dict[str, Any] | None, tokens: int):
        self.address, self.model, self.efficiency, self.tokens = address, model, efficiency, tokens

    async def one(self, client: httpx.AsyncClient, text: str) -> dict[str, Any]:
        """Times of one streamed reply."""
        body: dict[str, Any] = {
            "model": self.model, "messages": [{"role": "user", "content": text}], "stream": True,
            "max_tokens": self.tokens, "temperature": 0,
        }  # fmt: skip
        if self.efficiency is not None:
            body |= {"efficiency": self.efficiency, "stream_options": {"include_usage": True}}
        begun, times, usage = time.perf_counter(), [], {}
        async with client.stream("POST", f"{self.address}/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                usage = event.get("usage") or usage
                if event["choices"] and event["choices"][0]["delta"].get("content"):
                    times.append(time.perf_counter())
        count = usage["completion_tokens"]
        gaps = np.diff(times).tolist()
        per_token = (times[-1] - times[0]) / max(1, count - 1)
        compute = usage.get("compute", {}).get("realised", {}).get("net")
        return {"first": times[0] - begun, "gaps": gaps, "per_token": per_token, "tokens": count, "net": compute}

    async def run(self, clients: int, each: int, texts: list[str]) -> dict[str, float]:
        """`clients` at once, each asking `each` times."""
        waiting = list(texts[: clients * each])
        async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=256)) as client:

            async def ask_in_turn() -> list[dict[str, Any]]:
                return [await self.one(client, waiting.pop()) for _ in range(each)]

            begun = time.perf_counter()
            answered = await asyncio.gather(*(ask_in_turn() for _ in range(clients)))
            seconds = time.perf_counter() - begun
        found = [reply for replies in answered for reply in replies]
        gaps = 1000 * np.array([gap for reply in found for gap in reply["gaps"]])
        per_token = 1000 * np.array([reply["per_token"] for reply in found])
        first = 1000 * np.array([reply["first"] for reply in found])
        nets = [reply["net"] for reply in found if reply["net"] is not None]
        return {
            "tokens_per_second": sum(reply["tokens"] for reply in found) / seconds,
            "first_p50_ms": float(np.percentile(first, 50)), "first_p95_ms": float(np.percentile(first, 95)),
            "tpot_p50_ms": float(np.percentile(per_token, 50)), "tpot_p95_ms": float(np.percentile(per_token, 95)),
            "gap_p50_ms": float(np.percentile(gaps, 50)), "gap_p95_ms": float(np.percentile(gaps, 95)),
            "net_keep": float(np.mean(nets)) if nets else 1.0,
        }  # fmt: skip


def some_texts(count: int, length: int) -> list[str]:
    """Texts of `length` tokens, none of which begins like another."""
    _, tokenizer = load_base(MODEL, "auto", None, False)
    windows = token_stream("pydoc:train", tokenizer).spaced(count, length, torch.Generator().manual_seed(0))
    return [f"{index}: {tokenizer.decode(row)}" for index, row in enumerate(windows)]


def throughput(options: Any) -> dict[str, Any]:
    """Every server in turn, for every number of clients."""
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        base = Path(folder) / "base"
        model, tokenizer = load_base(MODEL, options.dtype)
        model.save_pretrained(base)
        tokenizer.save_pretrained(base)
        transformers = [str(Path(sys.executable).with_name("transformers")), "serve", str(base), "--device", "cpu"]
        loads = {}
        for name in [*(["transformers"] if options.peer else []), *SERVERS]:
            command = transformers if name == "transformers" else ours(*SERVERS[name], "--dtype", options.dtype)
            address = stack.enter_context(server(command, free_port(), Path(folder) / f"{name}.log"))
            plain = name == "transformers"
            loads[name] = Load(
                address, str(base) if plain else "served", None if plain else {"policy": "dense"}, options.tokens
            )
        loads["cpu int8 at 0.6"] = Load(loads["cpu int8"].address, "served", {"budget": "keep=0.6"}, options.tokens)
        for clients in options.clients:
            each = max(1, options.replies // clients)
            texts = some_texts(clients * each * (options.rounds + 1) * len(loads), PROMPT)
            for turn in range(options.rounds + 1):
                for name, load in loads.items():
                    taken, texts = texts[: clients * each], texts[clients * each :]
                    found = asyncio.run(load.run(clients, each, taken))
                    if turn:
                        results.setdefault(name, {}).setdefault(str(clients), []).append(found)
    return {
        name: {clients: middle(runs) for clients, runs in by_clients.items()} for name, by_clients in results.items()
    }


def middle(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of every number over rounds."""
    return {key: statistics.median([run[key] for run in runs]) for key in runs[0]}


def governed(options: Any) -> dict[str, Any]:
    """The objective is what a dense server's 95th percentile of the time per output token (a reply's time after its
    first token over the number of tokens after it) is at `--hold` clients; then twice as many come."""
    tokens, rows = options.tokens * 4, options.hold
    texts = some_texts(rows * 2 * 2 * 4 + rows * 4, options.context)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        cpu = ["--backend", "cpu", "--precision", options.precision]
        with server(ours(*cpu), free_port(), Path(folder) / "dense.log") as address:
            load = Load(address, "served", {"policy": "dense"}, tokens)
            asyncio.run(load.run(rows, 1, texts[-rows * 2 : -rows]))
            calm = asyncio.run(load.run(rows, 2, texts[: rows * 2]))
            texts = texts[rows * 2 :]
            results["dense, no overload"] = calm
            results["dense, overload"] = asyncio.run(load.run(rows * 2, 2, texts[: rows * 4]))
        objective = calm["tpot_p95_ms"]
        slo = ["--slo-tpot-ms", f"{objective:.3f}"]
        kinds = {
            "governor, budgets": ["--slo-floor", f"keep={options.floor}", "--no-slo-rows"],
            "governor, budgets and rows": ["--slo-floor", f"keep={options.floor}"],
            "governor, rows": ["--slo-floor", "1"],
        }
        for name, more in kinds.items():
            with server(ours(*cpu, *slo, *more), free_port(), Path(folder) / "governed.log") as address:
                load = Load(address, "served", {"budget": 1.0, "policy": "policy"}, tokens)
                asyncio.run(load.run(rows * 2, 1, texts[-rows * 2 :]))
                results[name] = asyncio.run(load.run(rows * 2, 2, texts[: rows * 4]))
    return {"objective_ms": objective, "clients": {"calm": rows, "overload": rows * 2}, "servers": results}


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    options = parser(__doc__)
    options.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    options.add_argument("--replies", type=int, default=8, help="replies per round")
    options.add_argument("--tokens", type=int, default=64, help="tokens of a reply")
    options.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True, help="also transformers serve")
    options.add_argument("--governor", action="store_true")
    options.add_argument("--hold", type=int, default=4, help="clients without overload")
    options.add_argument("--context", type=int, default=256, help="tokens of prompt, --governor")
    options.add_argument("--floor", type=float, default=0.5, help="net keep, --governor")
    options.add_argument("--precision", default="int8", help="of --governor's server")
    asked = options.parse_args()
    if asked.governor:
        results = governed(asked)
        rows = list(results["servers"].items())
    else:
        results = {"servers": throughput(asked)}
        rows = [(f"{name}, {n} clients", run) for name, runs in results["servers"].items() for n, run in runs.items()]
    lines = [
        f"{name:34} {run['tokens_per_second']:7.1f}/s, first {run['first_p50_ms']:.0f} / {run['first_p95_ms']:.0f}, "
        f"per token {run['tpot_p50_ms']:.1f} / {run['tpot_p95_ms']:.1f} ms, net keep {run['net_keep']:.2f}"
        for name, run in rows
    ]
    finish("governor" if asked.governor else "serve", asked, results, lines)


if __name__ == "__main__":
    main()
