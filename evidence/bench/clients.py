"""Clients that ask a server for streamed replies, and what they see of it."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import torch

from solm.backends.tokenizer import model_tokenizer
from solm.evaluation.texts import token_stream

DENSE = {"efficiency": {"policy": "dense"}}
WHOLE = {"ignore_eos": True, "stream_options": {"include_usage": True}}
"""Replies are as long as asked for, and counted."""
LIMITS = httpx.Limits(max_connections=256, max_keepalive_connections=0)
"""A connection for every request: some servers close those that are kept while the next request is on its way."""


@dataclass(frozen=True)
class Reply:
    """One streamed reply to `prompt`. Times are in seconds: until the first token, between chunks of text, and per
    token after the first. net: realised net keep, of servers that report it. begun: when it was asked for, after the
    load began."""

    prompt: str
    text: str
    tokens: int
    first: float
    gaps: list[float]
    per_token: float
    net: float | None
    begun: float


@dataclass(frozen=True)
class Answers:
    """What `asked` tokens for every reply gave within `seconds`. busy: seconds after which the first client had nothing
    more to ask."""

    replies: list[Reply]
    seconds: float
    asked: int
    busy: float

    def busy_rate(self) -> float:
        """Tokens per second while all clients asked. Towards the end fewer of them do: the more the further their
        replies are apart in time."""
        tokens = 0.0
        for reply in self.replies:
            times = reply.begun + reply.first + np.cumsum([0.0, *reply.gaps])
            tokens += reply.tokens * float(np.mean(times <= self.busy))
        return tokens / self.busy

    def numbers(self) -> dict[str, float]:
        """Tokens per second, percentiles in milliseconds (tpot: time per token after the first), mean net keep."""
        gaps = 1000 * np.array([gap for reply in self.replies for gap in reply.gaps])
        # Of a reply that ends early, a chunk of another's prompt is most of the time.
        long = [reply for reply in self.replies if reply.tokens >= self.asked / 4] or self.replies
        per_token = 1000 * np.array([reply.per_token for reply in long])
        first = 1000 * np.array([reply.first for reply in self.replies])
        nets = [reply.net for reply in self.replies if reply.net is not None]
        return {
            "tokens_per_second": sum(reply.tokens for reply in self.replies) / self.seconds,
            "first_p50_ms": float(np.percentile(first, 50)), "first_p95_ms": float(np.percentile(first, 95)),
            "tpot_p50_ms": float(np.percentile(per_token, 50)), "tpot_p95_ms": float(np.percentile(per_token, 95)),
            "gap_p50_ms": float(np.percentile(gaps, 50)), "gap_p95_ms": float(np.percentile(gaps, 95)),
            "net_keep": float(np.mean(nets)) if nets else 1.0,
        }  # fmt: skip


def line(name: str, run: dict[str, float]) -> str:
    """Numbers of answers, for a terminal."""
    return (
        f"{name:34} {run['tokens_per_second']:7.1f}/s, first {run['first_p50_ms']:.0f} / {run['first_p95_ms']:.0f}, "
        f"per token {run['tpot_p50_ms']:.1f} / {run['tpot_p95_ms']:.1f} ms, net keep {run['net_keep']:.2f}"
    )


@dataclass(frozen=True)
class Load:
    """Requests to one server for replies of `tokens`. model: what they call it. more: fields of each beside the usual
    ones."""

    address: str
    model: str
    more: dict[str, Any]
    tokens: int

    async def one(self, client: httpx.AsyncClient, text: str, started: float) -> Reply:
        """One streamed reply. started: when the load began, in seconds."""
        body: dict[str, Any] = {
            "model": self.model, "messages": [{"role": "user", "content": text}], "stream": True,
            "max_tokens": self.tokens, "temperature": 0, **self.more,
        }  # fmt: skip
        begun, times, usage, said = time.perf_counter(), [], {}, []
        async with client.stream("POST", f"{self.address}/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                usage = event.get("usage") or usage
                if event["choices"] and (content := event["choices"][0]["delta"].get("content")):
                    times.append(time.perf_counter())
                    said.append(content)
        count = usage.get("completion_tokens", len(times))
        gaps = np.diff(times).tolist()
        per_token = (times[-1] - times[0]) / max(1, count - 1)
        compute = usage.get("compute", {}).get("realised", {}).get("net")
        return Reply(text, "".join(said), count, times[0] - begun, gaps, per_token, compute, begun - started)

    async def run(self, clients: int, each: int, texts: list[str]) -> Answers:
        """`clients` at once, each asking `each` times."""
        waiting = list(texts[: clients * each])
        async with httpx.AsyncClient(timeout=600, limits=LIMITS) as client:
            begun, ended = time.perf_counter(), []

            async def ask_in_turn() -> list[Reply]:
                replies = [await self.one(client, waiting.pop(), begun) for _ in range(each)]
                ended.append(time.perf_counter() - begun)
                return replies

            answered = await asyncio.gather(*(ask_in_turn() for _ in range(clients)))
        replies = [reply for replies in answered for reply in replies]
        return Answers(replies, max(ended), self.tokens, min(ended))


def some_texts(model: str, count: int, length: int, run: int = 0, shared: int = 0) -> list[str]:
    """Texts of `length` tokens of a model behind `shared` ones that all of them begin with. What follows begins like no
    other text, nor like one of another `run`: servers keep prompts."""
    tokenizer, seed = model_tokenizer(model), torch.Generator().manual_seed(run)
    stream = token_stream("pydoc:train", tokenizer)
    [common] = stream.random(1, shared, torch.Generator().manual_seed(-1)) if shared else [[]]
    windows = stream.random(count, length, seed)
    return [f"{tokenizer.decode(common)}{run}-{index}: {tokenizer.decode(row)}" for index, row in enumerate(windows)]
