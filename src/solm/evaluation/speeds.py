"""The same prompt decoded dense and under budgets: how fast, and how the texts differ."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from solm.core.budget import Budget
from solm.runtime.generate import asked_for, chosen_policy, stream, summarise
from solm.runtime.language_model import LanguageModel
from solm.runtime.reply import Reply, Token


@dataclass(frozen=True)
class Decoded:
    """One way of decoding. budget: None for dense. milliseconds: of a step. same: tokens of the reply that are those of
    the dense one, up to the first that is not."""

    budget: Budget | None
    reply: Reply
    milliseconds: float
    same: int

    @property
    def name(self) -> str:
        """What was kept, in words."""
        if self.budget is None:
            return "dense"
        return f"{self.budget.attention:.0%} of KV pages, {self.budget.mlp:.0%} of MLP channels"


@dataclass(frozen=True)
class Speeds:
    """Decodings of one prompt on one backend, dense first. prompt: its tokens. note: what the reader must know."""

    backend: str
    threads: int
    question: str
    prompt: int
    found: list[Decoded]
    note: str = ""

    def factor(self, decoded: Decoded) -> float:
        """How many times as fast as dense steps, in the same precision."""
        return self.found[0].milliseconds / decoded.milliseconds

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        rows = [
            {
                "budget": None if one.budget is None else one.budget.model_dump(),
                "milliseconds": one.milliseconds,
                "tokens_per_second": 1000 / one.milliseconds,
                "factor": self.factor(one),
                "bytes": one.reply.compute.bytes,
                "tokens_as_dense": one.same,
                "tokens": len(one.reply.tokens),
                "text": one.reply.text,
            }
            for one in self.found
        ]
        head = {"backend": self.backend, "threads": self.threads, "prompt_tokens": self.prompt, "note": self.note}
        return {**head, "question": self.question, "decoded": rows}


def side_by_side(
    lm: LanguageModel,
    ids: torch.Tensor,
    question: str,
    budgets: list[Budget],
    tokens: int,
    rounds: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Speeds:
    """Decode up to `tokens` tokens greedily after ids [1, C], dense and at every budget, in interleaved rounds.

    The prompt is read once. A step's time is the median over rounds of their mean steps; the first step, which hands
    the prompt over, does not count.
    """
    orders: list[Budget | None] = [None, *budgets]
    total = 1 + rounds * len(orders)
    progress(0, total)
    read = lm.session(capacity=ids.shape[1])
    read.prefill(ids[:, :-1])
    progress(1, total)
    times: list[list[float]] = [[] for _ in orders]
    replies: list[list[Token]] = [[] for _ in orders]
    for turn in range(rounds):
        for index, budget in enumerate(orders):
            session = read.copy(ids.shape[1] - 1, ids.shape[1] + tokens)
            policy = "dense" if budget is None else None
            said, moments = [], []
            for token in stream(lm, ids, budget=budget, policy=policy, max_new_tokens=tokens, session=session):
                said.append(token)
                moments.append(time.perf_counter())
            times[index].append(step_milliseconds(moments) or 0.0)
            replies[index] = said
            progress(2 + turn * len(orders) + index, total)
    found = [
        Decoded(budget, _reply(lm, ids, budget, said), statistics.median(taken), common(replies[0], said))
        for budget, said, taken in zip(orders, replies, times, strict=True)
    ]
    return Speeds(lm.backend.name, torch.get_num_threads(), question, ids.shape[1], found)


def _reply(lm: LanguageModel, ids: torch.Tensor, budget: Budget | None, said: list[Token]) -> Reply:
    policy = chosen_policy(lm, "dense" if budget is None else None, budget)
    return summarise(lm, said, asked_for(lm, budget or Budget(), ids.shape[1] + len(said) // 2, policy))


def step_milliseconds(moments: list[float]) -> float | None:
    """The mean step between `moments`, seconds at which tokens were chosen; None for fewer than three.

    The first step is left out: it also takes over the prompt.
    """
    return None if len(moments) < 3 else 1000 * (moments[-1] - moments[1]) / (len(moments) - 2)


def common(ours: list[Token], theirs: list[Token]) -> int:
    """How many first tokens are the same."""
    count = 0
    for one, other in zip(ours, theirs, strict=False):
        if one.id != other.id:
            break
        count += 1
    return count


def table(speeds: Speeds) -> Table:
    """The decodings as a table in the terminal."""
    told = f"After {speeds.prompt:,} tokens, on {speeds.backend}, {speeds.threads} threads"
    shown = Table(title=told, title_justify="left")
    for column in ("kept on average", "tokens/s", "ms per token", "speed", "bytes read"):
        shown.add_column(column, justify="left" if column.startswith("kept") else "right", no_wrap=True)
    for one in speeds.found:
        shown.add_row(
            one.name, f"{1000 / one.milliseconds:.0f}", f"{one.milliseconds:.2f}", f"{speeds.factor(one):.2f}×",
            f"{one.reply.compute.bytes:.2f}",
        )  # fmt: skip
    return shown


def difference(speeds: Speeds, decoded: Decoded) -> str:
    """How the text of one decoding differs from the dense one."""
    dense, count = speeds.found[0], len(decoded.reply.tokens)
    if decoded.same == count == len(dense.reply.tokens):
        return "the same text as dense"
    return f"the first {decoded.same} of {count} tokens as dense, then other words"
