"""The main job, end to end: decode under budgets, fit a policy to the embedded model, compare it, and use it."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import torch

from solm.backends.session import Session
from solm.core.errors import SolmError, counted
from solm.evaluation.result import EvaluationResult
from solm.evaluation.show import verdict
from solm.evaluation.texts import documents, token_stream
from solm.fit.run import fit
from solm.runtime.language_model import LanguageModel
from solm.runtime.load import load
from solm.runtime.reply import Reply, step_milliseconds

MODEL, SHIPPED = "builtin:smollm2-135m", "builtin:smollm2-135m-cpu"
DATA = "pydoc:train"
CONTEXT, BUDGETS, TOKENS, ROUNDS = 4000, (0.9, 0.8), 100, 3
"""Of the decoding that is timed. Budgets are shares of the dense step's time. A short prompt would show little: a step
that reads many keys has more to leave out."""
BUDGET = "loss=0.01"
"""Of the reply to a short prompt: what nobody notices."""
PASSAGE = "Compound statements"
QUESTION = "Explain in a few sentences what the text above says about compound statements."
PROMPT = "Explain step by step why the sky is blue, and why it turns red in the evening."
COLUMNS = ("", "tokens/s", "ms per token", "speed", "bytes read", "KV pages", "MLP channels")

Progress = Callable[[str, int, int | None], None]
"""Called with what is done now, parts done and parts in all."""


@dataclass(frozen=True)
class Decoded:
    """A reply to the question after the passage. budget: share of the dense step's time, None for dense. attention,
    mlp, bytes: shares realised. milliseconds: of a step. same: how many of its first tokens are those of the dense
    one."""

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
        return "dense" if self.budget is None else f"budget {self.budget:.2f}"

    def cells(self, dense: "Decoded") -> list[str]:
        """A row of a table, by `COLUMNS`."""
        return [
            self.name, f"{1000 / self.milliseconds:.0f}", f"{self.milliseconds:.2f}",
            f"{dense.milliseconds / self.milliseconds:.2f}×", f"{self.bytes:.2f}", f"{self.attention:.2f}",
            f"{self.mlp:.2f}",
        ]  # fmt: skip

    def difference(self, dense: "Decoded") -> str:
        """How its text differs from the dense one; empty for the dense one."""
        if self.budget is None:
            return ""
        if self.same == self.tokens == dense.tokens:
            return "the same text as dense"
        return f"the first {self.same} of {self.tokens} tokens as dense, then other words"


@dataclass(frozen=True)
class Speeds:
    """Replies to one prompt of `prompt` tokens, dense first; machine: backend and threads, in words."""

    machine: str
    prompt: int
    replies: list[Decoded]


def decode(progress: Progress) -> Speeds:
    """Decode one prompt dense and under budgets with the policy that ships with solm.

    The prompt is read once. A step's time is the median over interleaved rounds of their mean steps.
    """
    progress("loading the model, and building the engine at the first run", 0, None)
    lm = load(MODEL, SHIPPED, backend="cpu").timed(progress)
    ids = _passage(lm)
    length = ids.shape[1]
    progress(f"reading a prompt of {length:,} tokens", 0, None)
    read = lm.session(capacity=length)
    read.prefill(ids[:, :-1])
    floor = lm.budgets().time_floor(length)
    orders = (None, *(budget for budget in BUDGETS if budget > floor))
    times: dict[float | None, list[float]] = {budget: [] for budget in orders}
    replies: dict[float | None, Reply] = {}
    for done, budget in enumerate(orders * ROUNDS):
        progress("decoding dense and under budgets", done, ROUNDS * len(orders))
        replies[budget], milliseconds = _timed(lm, ids, budget, read.copy(length - 1, length + TOKENS))
        times[budget].append(milliseconds)
    decoded, dense = [], replies[None].trace.ids
    for budget, reply in replies.items():
        spent, written = reply.compute.realised, reply.trace.ids
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(written, dense, strict=False)))
        shares, median = (spent["attention"], spent["mlp"], spent["bytes"]), statistics.median(times[budget])
        decoded.append(Decoded(budget, *shares, median, len(written), same, reply.text))
    lm.detach()
    return Speeds(f"{lm.backend.name}, {counted(lm.threads, 'thread')}", length, decoded)


def fitted(out: Path, minutes: float, progress: Progress, remark: Callable[[str], None]) -> EvaluationResult:
    """Fit a policy in the folder `out`, where an interrupted fit goes on; the comparison on held-out text."""
    lm = load(MODEL, backend="cpu")
    assert lm.tokenizer is not None
    return fit(
        lm, [token_stream(DATA, lm.tokenizer)], out, minutes, strict=False, remark=remark,
        report=lambda phase, done, total, left: progress(f"fit: {phase}", done, total),
    )  # fmt: skip


def answered(policy: str, progress: Progress) -> Reply:
    """A reply to a short prompt under a policy."""
    progress("a reply under the policy", 0, None)
    lm = load(MODEL, policy, backend="cpu")
    reply: Reply = lm.generate(PROMPT, budget=BUDGET, max_new_tokens=TOKENS)
    lm.detach()
    return reply


def summary(speeds: Speeds, result: EvaluationResult | None) -> list[str]:
    """What was measured, in sentences. result: None where no policy was fitted."""
    dense, *others = speeds.replies
    faster = (
        " and ".join(
            f"{one.milliseconds:.1f} ms under budget {one.budget:.2f} "
            f"({dense.milliseconds / one.milliseconds:.2f} times as fast)"
            for one in others
        )
        or "and no budget saves any"
    )
    lines = [
        f"Speed: after {speeds.prompt:,} tokens a dense step took {dense.milliseconds:.1f} ms here, {faster}. A short "
        "context saves less, and a larger model more: this one is small."
    ]
    if result is None:
        return lines
    s = result.settings
    sample = f"{counted(s['texts'], 'text')} of {s['length']} tokens, {result.points[0].tokens:,} in all."
    return [*lines, *(f"Fitted policy: {line}." for line in verdict(result)), f"Sample: {sample}"]


def _passage(lm: LanguageModel) -> torch.Tensor:
    """About `CONTEXT` tokens of Python's documentation and a question about them: ids [1, C]."""
    assert lm.tokenizer is not None
    text = max(documents("pydoc"), key=lambda document: (document.startswith(PASSAGE), len(document)))
    beginning = lm.tokenizer.decode(lm.tokenizer(text).input_ids[:CONTEXT])
    return lm.encode(f"{beginning}\n\n{QUESTION}")


def _timed(lm: LanguageModel, ids: torch.Tensor, budget: float | None, session: Session) -> tuple[Reply, float]:
    """A greedy reply and the milliseconds of a step."""
    policy = "dense" if budget is None else None
    stream = lm.stream(ids, budget=budget, policy=policy, max_new_tokens=TOKENS, session=session, guess="off")
    moments = [time.perf_counter() for _ in stream]
    milliseconds = step_milliseconds(moments)
    if milliseconds is None:
        raise SolmError(f"the time of a step needs at least 3 tokens, this reply has {len(moments)}")
    return stream.reply, milliseconds
