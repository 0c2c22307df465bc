"""The main job, end to end: decode under budgets, fit a policy to the embedded model, compare it, and use it."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path

import torch

from solm.backends.session import Session
from solm.core.errors import SolmError, counted
from solm.core.files import write_json, write_text
from solm.core.provenance import commit, processor
from solm.evaluation.report import coloured, head, image, perplexity_table
from solm.evaluation.result import EvaluationResult
from solm.evaluation.show import plot, verdict
from solm.evaluation.texts import documents, token_stream
from solm.fit.run import fit
from solm.policies.artifact import TrainedPolicy
from solm.runtime.language_model import LanguageModel
from solm.runtime.load import load
from solm.runtime.reply import Reply, step_milliseconds

MODEL, SHIPPED = "builtin:smollm2-135m", "builtin:smollm2-135m-cpu"
DATA = "pydoc:train"
MINUTES = 1.75
"""Of the fit."""
CONTEXT, BUDGETS, TOKENS, ROUNDS = 4000, (0.9, 0.8), 100, 3
"""Of the decoding that is timed. Budgets are shares of the dense step's time. A short prompt would show little: a step
that reads many keys has more to leave out."""
BUDGET = "loss=0.01"
"""Of the reply to a short prompt: what nobody notices."""
PASSAGE = "Compound statements"
QUESTION = "Explain in a few sentences what the text above says about compound statements."
PROMPT = "Explain step by step why the sky is blue, and why it turns red in the evening."
STAGES = ("decoding", "fit", "reply and report")
COLUMNS = ("", "tokens/s", "ms per token", "speed", "bytes read", "KV pages", "MLP channels")

Progress = Callable[[str, int, int | None], None]
"""Called with what is done now, parts done and parts in all."""


@dataclass
class Clock:
    """Seconds of the stages in this run; a fit that was finished before takes next to none."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Within the block time is booked on the stage `name` of `STAGES`."""
        begun = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begun


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


def decode(out: Path, progress: Progress, clock: Clock) -> Speeds:
    """Decode one prompt dense and under budgets with the policy that ships with solm; kept in ``speeds.json``.

    The prompt is read once. A step's time is the median over interleaved rounds of their mean steps.
    """
    with clock.stage(STAGES[0]):
        progress("loading the model, and building the engine at the first run", 0, None)
        lm = load(MODEL, SHIPPED, backend="cpu").timed(progress)
        ids = _passage(lm)
        progress(f"reading a prompt of {ids.shape[1]:,} tokens", 0, None)
        read = lm.session(capacity=ids.shape[1])
        read.prefill(ids[:, :-1])
        floor = lm.budgets().time_floor(ids.shape[1])
        orders, done = (None, *(budget for budget in BUDGETS if budget > floor)), 0
        times: dict[float | None, list[float]] = {budget: [] for budget in orders}
        replies: dict[float | None, Reply] = {}
        for _ in range(ROUNDS):
            for budget in orders:
                progress("decoding dense and under budgets", done, ROUNDS * len(orders))
                replies[budget], milliseconds = _timed(lm, ids, budget, read.copy(ids.shape[1] - 1, _room(ids)))
                times[budget].append(milliseconds)
                done += 1
        decoded = []
        for budget, reply in replies.items():
            spent, same = reply.compute.realised, _common(reply.trace.ids, replies[None].trace.ids)
            decoded.append(
                Decoded(
                    budget, spent["attention"], spent["mlp"], spent["bytes"], statistics.median(times[budget]),
                    len(reply.trace.ids), same, reply.text,
                )
            )  # fmt: skip
        lm.detach()
        speeds = Speeds(f"{lm.backend.name}, {counted(lm.threads, 'thread')}", ids.shape[1], decoded)
        write_json(out / "speeds.json", {"commit": commit(), "processor": processor(), **asdict(speeds)})
        return speeds


def fitted(
    out: Path, minutes: float, progress: Progress, remark: Callable[[str], None], clock: Clock
) -> EvaluationResult:
    """Fit a policy in the folder ``out/fit``, where an interrupted fit goes on; the comparison on held-out text."""
    with clock.stage(STAGES[1]):
        lm = load(MODEL, backend="cpu")
        assert lm.tokenizer is not None
        return fit(
            lm, [token_stream(DATA, lm.tokenizer)], out / "fit", minutes, strict=False, remark=remark,
            report=lambda phase, done, total, left: progress(f"fit: {phase}", done, total),
        )  # fmt: skip


def report(out: Path, speeds: Speeds, result: EvaluationResult | None, progress: Progress, clock: Clock) -> Reply:
    """A reply under the policy, kept in ``reply.json``, and the page ``report.html``. result: None: the policy is the
    one that ships with solm."""
    with clock.stage(STAGES[2]):
        progress("a reply under the policy", 0, None)
        trained = TrainedPolicy.from_pretrained(SHIPPED if result is None else out / "fit" / "policy")
        lm = load(MODEL, trained, backend="cpu")
        reply: Reply = lm.generate(PROMPT, budget=BUDGET, max_new_tokens=TOKENS)
        lm.detach()
        write_json(out / "reply.json", reply.as_dict())
    write_text(out / "report.html", "\n".join(_page(speeds, result, reply, clock)) + "\n")
    write_json(out / "seconds.json", clock.seconds)
    return reply


def summary(speeds: Speeds, result: EvaluationResult | None) -> list[str]:
    """What was measured, in sentences."""
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


def _room(ids: torch.Tensor) -> int:
    return int(ids.shape[1]) + TOKENS


def _timed(lm: LanguageModel, ids: torch.Tensor, budget: float | None, session: Session) -> tuple[Reply, float]:
    """A greedy reply and the milliseconds of a step."""
    policy = "dense" if budget is None else None
    stream = lm.stream(ids, budget=budget, policy=policy, max_new_tokens=TOKENS, session=session, guess="off")
    moments = [time.perf_counter() for _ in stream]
    milliseconds = step_milliseconds(moments)
    if milliseconds is None:
        raise SolmError(f"the time of a step needs at least 3 tokens, this reply has {len(moments)}")
    return stream.reply, milliseconds


def _common(ours: list[int], theirs: list[int]) -> int:
    """How many first tokens are the same."""
    pairs = zip(ours, theirs, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(ours), len(theirs)))


def _page(speeds: Speeds, result: EvaluationResult | None, reply: Reply, clock: Clock) -> Iterator[str]:
    """The lines of the page."""
    dense = speeds.replies[0]
    took = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in clock.seconds.items())
    facts = f"{MODEL}, commit {commit()}, {processor()}. Seconds taken: {took}."
    yield head("solm quickstart")
    yield f"<h1>A compute dial for a frozen model</h1><p class=soft>{escape(facts)}</p><ul>"
    yield from (f"<li>{escape(line)}</li>" for line in summary(speeds, result))
    yield (
        f"</ul><h2>What the dial saves on this machine</h2><p>The same prompt of {speeds.prompt:,} tokens, decoded on "
        f"{escape(speeds.machine)}. A budget is a share of the dense step's time.</p><div class='scroll names'><table>"
        f"<tr>{''.join(f'<th>{column}' for column in COLUMNS)}</tr>"
    )
    yield from (f"<tr>{''.join(f'<td>{cell}' for cell in one.cells(dense))}</tr>" for one in speeds.replies)
    yield f"</table></div><p class=soft>{escape(QUESTION)}</p>"
    for one in speeds.replies:
        yield f"<p><b>{one.name}</b> <span class=soft>{one.difference(dense)}</span></p>"
        yield f"<div class=reply>{escape(one.text.strip())}</div>"
    if result is not None:
        yield "<h2>How the fitted policy compares</h2>"
        yield perplexity_table(result)
        yield (
            "<p class=soft>Differences are policy minus arm, in nats per token, with paired bootstrap 95 % intervals "
            "over texts. Negative is better. An interval that holds 0 is within the noise.</p>"
        )
        yield image(plot(result), f"perplexity against {result.currency}")
    spent = reply.compute.realised
    yield (
        f"<h2>A reply under the policy</h2><p>{escape(PROMPT)}</p><p><b>budget {BUDGET}</b> <span class=soft>"
        f"{spent['bytes']:.2f} of dense bytes, attention {spent['attention']:.2f}, MLP {spent['mlp']:.2f}. Background: "
        "bytes read by the step behind each token, from green (few) to red (dense).</span></p>"
    )
    yield coloured(
        (token.text, token.cost, f"{token.action}, {token.cost:.2f} of dense bytes") for token in reply.tokens
    )
