"""The attention axis in long contexts: quality against the share of the KV cache that is read, policy against constant.

Text: the tokens after 1k, 2k, 4k and 8k tokens of the same text, whose one prefill serves all four. Retrieval: the
answers of two sets of about 4,300 tokens a question, from files in `--tasks`. Arms: every step at a constant keep
rate, by the policy's allocation and uniform, and the policy beside a constant rate of the share that it realised on
those very tokens. What steps read is counted in bytes, weights included. With --timed, first tokens are also decoded
one by one, as greedy generation decodes them, one arm after the other within a text.

Example: solm study long-context --data books.jsonl --tasks DATA/eval --texts 6 --questions 8 --out long-context.json
"""

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator

from solm.backends.logits import log_probabilities
from solm.backends.session import Session
from solm.core.actions import FULL_BITS
from solm.core.cost import kv_budget, relative_cost
from solm.core.errors import SolmError
from solm.core.parts import Parts
from solm.core.sparsity import SparsityConfig
from solm.data.windows import fingerprint
from solm.evaluation.pictures import Kind, blank, picture
from solm.evaluation.result import Record, record
from solm.evaluation.statistics import paired_difference
from solm.research.studies import Numbers, Progress, StudyOptions
from solm.research.texts import windows_of
from solm.runtime.language_model import LanguageModel

_BLOCK = 32
"""Tokens of a text that are resampled together."""
_KEEPS, _UNIFORM, _TARGETS = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05), (0.3, 0.2, 0.1), (0.2, 0.3)
SETS = ("longeval_lines", "niah_multikey")
DENSE = "constant 1"
SIZES = (
    "contexts", "length", "texts", "seed", "data_fingerprint", "model", "revision", "dtype", "policy", "backend",
    "timed",
)  # fmt: skip
"""The settings in which, beside the policy's digest, a partial result must agree; with more questions it goes on."""
Found = dict[str, dict[str, Any]]


class Options(StudyOptions):
    policy: str = Field("builtin:smollm2-135m-attention-fine", description="Folder or hub id of a trained policy.")
    contexts: Numbers = Field((1024, 2048, 4096, 8064), description="Tokens seen before those that are scored.")
    length: int = Field(128, ge=_BLOCK, multiple_of=_BLOCK, description="Tokens that are scored.")
    texts: int = Field(24, ge=1, description="Number of texts.")
    questions: int = Field(24, ge=0, description="Questions of every retrieval set.")
    backend: str = Field("torch", description="torch, or cpu, whose precision is that of the model's file.")
    timed: int = Field(0, ge=0, description="Tokens that are also decoded one by one and timed, of every text.")
    tasks: Path | None = Field(None, description="Folder with the retrieval sets' files; without it only text.")

    @model_validator(mode="after")
    def _check(self) -> "Options":
        if list(self.contexts) != sorted(set(map(int, self.contexts))) or self.contexts[0] < 1:
            raise ValueError(
                f"--contexts {','.join(f'{one:g}' for one in self.contexts)}: must be rising whole numbers"
            )
        if self.timed > self.length:
            raise ValueError(f"--timed {self.timed}: at most the {self.length} tokens of --length")
        return self


def run(options: Options, partial: Path | None, progress: Progress) -> Record:
    return measure(options.load(options.policy, backend=options.backend), options, partial, progress)


def measure(lm: LanguageModel, options: Options, partial: Path | None, progress: Progress) -> Record:
    """Results: `text` by context and `retrieval` by set, of every arm the share and bytes that were read, nats per
    token (or per answer), and differences with 95 % intervals; of timed text the milliseconds of a step, the median of
    texts. Raises `SolmError` without a policy."""
    if lm.trained is None:
        raise SolmError("this study needs a policy; give one with --policy")
    contexts = [int(context) for context in options.contexts]
    streams = options.streams(lm)
    windows = windows_of(streams, options.texts, contexts[-1], options.length, options.seed)
    settings = options.model_dump(mode="json") | {"data_fingerprint": [stream.fingerprint for stream in streams]}
    sizes = {name: settings[name] for name in SIZES}
    parts = Parts(partial, [sizes, lm.trained.config.digest])
    asked_of = {
        name: _questions(lm, Path(str(options.tasks)), name, options.questions)
        for name in (SETS if options.tasks is not None else ())
    }
    found: dict[str, dict[str, list[Found]]] = {"text": {str(context): [] for context in contexts}, "retrieval": {}}
    for index, window in enumerate(windows.split(1)):
        progress("texts", index, len(windows))
        told = parts.get(f"text {index}", lambda window=window: _text(lm, window, contexts, options))  # type: ignore[misc]
        for context in contexts:
            found["text"][str(context)].append(told[str(context)])
    for name, answers in asked_of.items():
        found["retrieval"][name] = []
        for index, (ids, begun) in enumerate(answers):
            progress(name, index, len(answers))
            asked = f"{name} {fingerprint(ids)} {begun}"
            told = parts.get(asked, lambda ids=ids, begun=begun: _answer(lm, ids, begun))  # type: ignore[misc]
            found["retrieval"][name].append(told)
    results = {
        "text": {context: summary(texts, _BLOCK) for context, texts in found["text"].items()},
        "retrieval": {name: summary(answers, None) for name, answers in found["retrieval"].items() if answers},
    }
    return record("long-context", settings, results)


def _text(lm: LanguageModel, window: torch.Tensor, contexts: list[int], options: Options) -> dict[str, Found]:
    """What every arm makes of one text [1, longest + length + 1] after every context."""
    session = lm.session(capacity=window.shape[1])
    found = {}
    for before, context in zip((0, *contexts), contexts, strict=False):
        session.prefill(window[:, before:context])
        found[str(context)] = arms(lm, session, window[:, context : context + options.length + 1], options.timed)
    return found


def _questions(lm: LanguageModel, folder: Path, name: str, count: int) -> list[tuple[torch.Tensor, int]]:
    """Question and answer as tokens [1, T], and where the answer's prediction begins."""
    try:
        from solm.evaluation.local_tasks import load_tasks
    except ImportError:
        raise SolmError("--tasks: retrieval needs: pip install '.[eval]' in a checkout of solm") from None
    (task,) = load_tasks([name], folder)[name].values()
    assert lm.tokenizer is not None
    found = []
    for document in list(task.eval_docs)[:count]:
        context, answer = task.doc_to_text(document), task.doc_to_target(document)
        ids = torch.tensor([lm.tokenizer(context + answer).input_ids])
        found.append((ids, len(lm.tokenizer(context).input_ids) - 1))
    return found


def _answer(lm: LanguageModel, ids: torch.Tensor, begun: int) -> Found:
    session = lm.session(capacity=ids.shape[1])
    session.prefill(ids[:, :begun])
    return arms(lm, session, ids[:, begun:])


def constant(sparsity: SparsityConfig, share: float, kv_length: torch.Tensor) -> torch.Tensor:
    """Keep numbers [1, T, 3] of steps that read `share` of kv_length [T] keys. Pages are whole, and their numbers are
    chosen so that the sum comes as near as it can."""
    nothing, _ = kv_budget(torch.full(kv_length.shape, 0.0)[None], kv_length[None], sparsity)
    sinks = -(-sparsity.sinks // sparsity.page_size) * sparsity.page_size
    always = sinks + kv_length - nothing.window_start[0]
    owed = ((share * kv_length.double() - always) / sparsity.page_size).cumsum(0).round()
    pages = owed.diff(prepend=torch.zeros(1, dtype=owed.dtype)).clamp(min=0)
    keep = ((always + pages * sparsity.page_size) / kv_length).clamp(max=1)
    return torch.stack([keep, torch.ones_like(keep), torch.full_like(keep, FULL_BITS)], -1)[None]


def arms(lm: LanguageModel, session: Session, tokens: torch.Tensor, timed: int = 0) -> Found:
    """What every arm makes of tokens [1, T + 1] after what `session` has read; timed: first tokens that are decoded one
    by one, too."""
    steps = tokens.shape[1] - 1
    kv_length = session.lengths[0] + 1 + torch.arange(steps)
    found: Found = {}

    def tell(name: str, scores: torch.Tensor, greedy: torch.Tensor | None, realised: torch.Tensor, extra: int) -> float:
        cost = relative_cost(realised, kv_length, lm.shapes, lm.sparsity, "bytes", extra)
        share = float(realised[:, 0].mean())
        found[name] = {
            "nats": (-scores.double()).tolist(), "share": share, "bytes": float(cost.mean()),
            "greedy": None if greedy is None else bool(greedy.all()),
        }  # fmt: skip
        return share

    def clock(name: str, step: Callable[[int], object]) -> None:
        taken = []
        for place in range(timed):
            begun = time.perf_counter()
            step(place)
            taken.append(1e3 * (time.perf_counter() - begun))
        if taken:
            found[name]["milliseconds"] = statistics.fmean(taken)

    def run(name: str, keep: torch.Tensor, sparsity: SparsityConfig) -> None:
        rows = session.fork(1, steps + sparsity.page_size, sparsity)
        passed = rows.extend(tokens[:, :-1], keep)
        hit = passed.logits.argmax(-1).cpu() == tokens[:, 1:]
        tell(name, log_probabilities(passed.logits, tokens[:, 1:])[0], hit, passed.realised[0], 0)
        again = session.fork(1, timed + sparsity.page_size, sparsity)
        clock(name, lambda place: again.step(tokens[:, place], keep[:, place], exact_largest=1))

    for keep in _KEEPS:
        every = torch.tensor([keep, 1, FULL_BITS], dtype=torch.float64).expand(1, steps, 3)
        run(f"constant {keep:g}", every, lm.sparsity)
        if keep in _UNIFORM:
            run(f"uniform {keep:g}", every, lm.sparsity.under(None))
    policy = lm.policy("policy")
    for target in _TARGETS:
        rows = session.fork(1, capacity=steps + lm.sparsity.page_size)
        rows.control(policy, lm.budget(f"attention={target}").tensor(1), steps, torch.Generator().manual_seed(0))
        scored = rows.score(tokens)
        share = tell(f"policy {target:g}", scored.log_probabilities[0], None, scored.realised[0], lm.overhead(policy))
        again = session.fork(1, capacity=timed + lm.sparsity.page_size)
        again.control(policy, lm.budget(f"attention={target}").tensor(1), steps, torch.Generator().manual_seed(0))
        clock(
            f"policy {target:g}",
            lambda place, rows=again: rows.step(tokens[:, place], exact_largest=1),  # type: ignore[misc]
        )
        run(f"constant as policy {target:g}", constant(lm.sparsity, share, kv_length), lm.sparsity)
    return found


def summary(found: list[Found], block: int | None) -> dict[str, dict[str, Any]]:
    """Per arm means and differences; units of resampling are blocks of `block` tokens, or whole answers."""

    def units(arm: str) -> np.ndarray:
        if block is None:
            return np.array([np.sum(part[arm]["nats"]) for part in found])
        return np.concatenate([np.reshape(part[arm]["nats"], (-1, block)).mean(1) for part in found])

    told: dict[str, dict[str, Any]] = {}
    for arm in found[0]:
        nats = units(arm)
        told[arm] = {
            "share": float(np.mean([part[arm]["share"] for part in found])),
            "bytes": float(np.mean([part[arm]["bytes"] for part in found])),
            "nats": float(nats.mean()),
            "minus_dense": paired_difference(nats, units(DENSE))._asdict(),
        }
        if "milliseconds" in found[0][arm]:
            told[arm]["milliseconds"] = statistics.median(part[arm]["milliseconds"] for part in found)
        if block is not None:
            told[arm]["perplexity"] = math.exp(nats.mean())
        elif found[0][arm]["greedy"] is not None:
            told[arm]["accuracy"] = float(np.mean([part[arm]["greedy"] for part in found]))
        if arm.startswith("policy"):
            told[arm]["minus_constant"] = paired_difference(nats, units(f"constant as {arm}"))._asdict()
        if arm.startswith("uniform"):
            gain = paired_difference(units(arm.replace("uniform", "constant")), nats)
            told[arm]["constant_minus_uniform"] = gain._asdict()
    return told


def lines(found: Record) -> list[str]:
    return [
        f"{where:>16} {arm:22} reads {told['share']:.3f} of keys and {told['bytes']:.3f} of bytes, "
        f"{told['minus_dense']['value']:+.4f} nats above dense"
        + (f", {told['milliseconds']:.1f} ms" if "milliseconds" in told else "")
        for part in ("text", "retrieval")
        for where, by_arm in found.results[part].items()
        for arm, told in by_arm.items()
    ]


def plot(found: Record, kind: Kind) -> bytes:
    """Nats above dense by share of the cache that was read, for every context."""
    figure, axes = blank()
    for context, by_arm in found.results["text"].items():
        for group, marker in (("constant", "o-"), ("policy", "*")):
            points = sorted(
                (told["share"], told["minus_dense"]["value"])
                for arm, told in by_arm.items()
                if arm.startswith(group) and " as " not in arm
            )
            axes.plot(*zip(*points, strict=True), marker, label=f"{context}, {group}")
    axes.set_xlabel("share of the KV cache that is read")
    axes.set_ylabel("nats per token above dense")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return picture(figure, kind)
