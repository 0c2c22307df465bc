"""The same prompt decoded dense and under budgets: how fast, and how the texts differ."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from rich.table import Table

from solm.core.cost import machine
from solm.core.errors import SolmError
from solm.runtime.generate import stream, summarise
from solm.runtime.language_model import LanguageModel
from solm.runtime.reply import Token, step_milliseconds
from solm.runtime.sampling import Sampler

_CHUNK = 256
"""Tokens of the prompt that are read between two reports of progress."""


@dataclass(frozen=True)
class Decoded:
    """One way of decoding.

    budget: share of the dense step that was asked for, see `Speeds.unit`; None for dense. attention, mlp, bytes: shares
    of KV pages and MLP channels that steps realised, and of the dense step's bytes that they read. milliseconds: of a
    step. All of these go on after the end of the reply. tokens: of the reply. same: its first tokens that are those of
    the dense one.
    """

    budget: float | None
    attention: float
    mlp: float
    bytes: float
    milliseconds: float
    tokens: int
    same: int
    text: str

    @property
    def name(self) -> str:
        """What was asked for, in words."""
        return "dense" if self.budget is None else f"budget {self.budget:.2f}"


@dataclass(frozen=True)
class Speeds:
    """Decodings of one prompt on one backend, dense first.

    prompt: its tokens. unit: of what a budget is a share, ``time`` or ``bytes``. note: what the reader must know.
    """

    backend: str
    threads: int
    question: str
    prompt: int
    found: list[Decoded]
    unit: str
    note: str = ""

    @property
    def machine(self) -> str:
        """Backend and threads, in words."""
        return machine(self.backend, self.threads)

    @property
    def budgets(self) -> str:
        """What budgets are, in a sentence."""
        by = "time, by measured step times" if self.unit == "time" else "bytes"
        return f"A budget is the share of the dense step's {by}."

    def factor(self, decoded: Decoded) -> float:
        """How many times as fast as dense steps, in the same precision."""
        return self.found[0].milliseconds / decoded.milliseconds

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Of the JSON form. Raises `TypeError` or `KeyError` for anything else."""
        return cls(**{**content, "found": [Decoded(**one) for one in content["found"]]})


def side_by_side(
    lm: LanguageModel,
    ids: torch.Tensor,
    question: str,
    budgets: list[float],
    tokens: int,
    rounds: int,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Speeds:
    """Decode `tokens` tokens greedily after ids [1, C], dense and at every budget, in interleaved rounds.

    tokens: at least 3, else `SolmError`; those after a token that ends a reply are timed and not shown. budgets: shares
    of the dense step's time where step times are known, else of its bytes. The prompt is read once. A step's time is
    the median over rounds of their mean steps; the first step, which hands the prompt over, does not count. progress:
    called with the stage, parts done and parts in all.
    """
    orders: list[float | None] = [None, *budgets]
    read = lm.session(capacity=ids.shape[1])
    parts = ids[:, :-1].split(_CHUNK, 1)
    for index, part in enumerate(parts):
        progress("reading the prompt", index, len(parts))
        read.prefill(part)
    total = rounds * len(orders)
    progress("decoding dense and under budgets", 0, total)
    times: list[list[float]] = [[] for _ in orders]
    replies: list[list[Token]] = [[] for _ in orders]
    for turn in range(rounds):
        for index, budget in enumerate(orders):
            session = read.copy(ids.shape[1] - 1, ids.shape[1] + tokens)
            policy = "dense" if budget is None else None
            said, moments = [], []
            for token in stream(
                lm, ids, budget=budget, policy=policy, max_new_tokens=tokens, session=session, eos_token_id=None
            ):
                said.append(token)
                moments.append(time.perf_counter())
            milliseconds = step_milliseconds(moments)
            if milliseconds is None:
                raise SolmError(f"the time of a step needs at least 3 tokens, this reply has {len(said)}")
            times[index].append(milliseconds)
            replies[index] = said
            progress("decoding dense and under budgets", 1 + turn * len(orders) + index, total)
    ends = Sampler.of(lm, ids, 0, {}).stops
    found = [
        _decoded(lm, ids.shape[1], budget, said, statistics.median(taken), replies[0], ends)
        for budget, said, taken in zip(orders, replies, times, strict=True)
    ]
    return Speeds(lm.backend.name, lm.threads, question, ids.shape[1], found, "bytes" if lm.timings is None else "time")


def _until_end(said: list[Token], ends: frozenset[int]) -> list[Token]:
    """The tokens up to the first that ends a reply."""
    return said[: next((place for place, token in enumerate(said, 1) if token.id in ends), len(said))]


def _decoded(
    lm: LanguageModel,
    prompt: int,
    budget: float | None,
    said: list[Token],
    milliseconds: float,
    dense: list[Token],
    ends: frozenset[int],
) -> Decoded:
    shares, written = summarise(lm, said, {}, prompt).compute.realised, _until_end(said, ends)
    return Decoded(
        budget, shares["attention"], shares["mlp"], shares["bytes"], milliseconds, len(written),
        common(_until_end(dense, ends), written), summarise(lm, written, {}, prompt).text,
    )  # fmt: skip


def common(ours: list[Token], theirs: list[Token]) -> int:
    """How many first tokens are the same."""
    count = 0
    for one, other in zip(ours, theirs, strict=False):
        if one.id != other.id:
            break
        count += 1
    return count


COLUMNS = ("", "tokens/s", "ms per token", "speed", "bytes read", "KV pages", "MLP channels")


def cells(speeds: Speeds, decoded: Decoded) -> list[str]:
    """A row of the table of decodings, by `COLUMNS`."""
    return [
        decoded.name, f"{1000 / decoded.milliseconds:.0f}", f"{decoded.milliseconds:.2f}",
        f"{speeds.factor(decoded):.2f}×", f"{decoded.bytes:.2f}", f"{decoded.attention:.2f}", f"{decoded.mlp:.2f}",
    ]  # fmt: skip


def table(speeds: Speeds) -> Table:
    """The decodings as a table in the terminal."""
    told = f"After {speeds.prompt:,} tokens, on {speeds.machine}. {speeds.budgets}"
    shown = Table(title=told, title_justify="left")
    for column in COLUMNS:
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    for one in speeds.found:
        shown.add_row(*cells(speeds, one))
    return shown


def difference(speeds: Speeds, decoded: Decoded) -> str:
    """How the text of one decoding differs from the dense one."""
    if decoded.same == decoded.tokens == speeds.found[0].tokens:
        return "the same text as dense"
    return f"the first {decoded.same} of {decoded.tokens} tokens as dense, then other words"
