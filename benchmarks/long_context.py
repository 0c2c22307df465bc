"""The attention axis in long contexts: quality against the share of the KV cache that is read, policy against constant.

SmolLM2-135M. Books: 128 tokens scored after 1k, 2k, 4k and 8k tokens of the same text, whose one prefill serves all
four; every text is a window of one book, the books in turn. Retrieval: the answers of two sets of about 4,300 tokens
a question. Arms: every step at a constant keep rate, dealt out to layers and heads by the policy's allocation or evenly,
and the policy on attention-fine beside a constant rate (by the allocation) of the share that it realised on those very
tokens. What steps read is counted in bytes, weights included.

    python benchmarks/long_context.py --data DATA/eval --texts 6 --questions 8
    python benchmarks/long_context.py --data DATA/eval --texts 6 --questions 8 --json

What was measured already is in --out.partial and is not measured again.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from solm.backends.passes import log_probabilities
from solm.backends.torch.session import Session
from solm.core.cost import relative_cost
from solm.core.files import write_json, write_text
from solm.core.shares import kv_budget
from solm.core.sparsity import SparsityConfig
from solm.data.text import documents
from solm.data.windows import stream_of
from solm.evaluation.local_tasks import load_tasks
from solm.evaluation.result import command_line, environment
from solm.evaluation.statistics import paired_difference
from solm.runtime.drive import teacher_forced
from solm.runtime.language_model import LanguageModel
from solm.runtime.load import load

CONTEXTS, SCORED, BLOCK = (1024, 2048, 4096, 8064), 128, 32
KEEPS, EVENLY, TARGETS = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05), (0.3, 0.2, 0.1), (0.2, 0.3)
SETS = ("longeval_lines", "niah_multikey")
DENSE = "constant 1"
Found = dict[str, dict[str, Any]]


def constant(lm: LanguageModel, share: float, kv_length: torch.Tensor) -> torch.Tensor:
    """Keep numbers [1, T, 3] of steps that read `share` of kv_length [T] keys, whole pages being dealt out so that
    the sum comes as near as it can."""
    sparsity = lm.sparsity
    nothing, _ = kv_budget(torch.full(kv_length.shape, 0.0)[None], kv_length[None], sparsity)
    sinks = -(-sparsity.sinks // sparsity.page_size) * sparsity.page_size
    always = sinks + kv_length - nothing.window_start[0]
    owed = ((share * kv_length.double() - always) / sparsity.page_size).cumsum(0).round()
    pages = owed.diff(prepend=torch.zeros(1, dtype=owed.dtype)).clamp(min=0)
    keep = ((always + pages * sparsity.page_size) / kv_length).clamp(max=1)
    return torch.stack([keep, torch.ones_like(keep), torch.full_like(keep, 16)], -1)[None]


def arms(lm: LanguageModel, session: Session, tokens: torch.Tensor) -> Found:
    """What every arm makes of tokens [1, T + 1] after what `session` has read."""
    steps = tokens.shape[1] - 1
    kv_length = session.kv_length[0] + torch.arange(steps)
    found: Found = {}

    def book(name: str, scores: torch.Tensor, greedy: torch.Tensor | None, realised: torch.Tensor, extra: int) -> float:
        cost = relative_cost(realised, kv_length, lm.control.shapes, lm.sparsity, "bytes", extra)
        found[name] = {
            "nats": (-scores.double()).tolist(),
            "share": float(realised[:, 0].mean()),
            "bytes": float(cost.mean()),
            "greedy": None if greedy is None else bool(greedy.all()),
        }
        return found[name]["share"]

    def run(name: str, keep: torch.Tensor, sparsity: SparsityConfig = lm.sparsity) -> None:
        rows = session.fork(1, capacity=steps + sparsity.page_size)
        rows.sparsity = sparsity
        passed = rows.extend(tokens[:, :-1], keep)
        hit = passed.logits.argmax(-1).cpu() == tokens[:, 1:]
        book(name, log_probabilities(passed.logits, tokens[:, 1:])[0], hit, passed.realised[0], 0)

    for keep in KEEPS:
        every = torch.tensor([keep, 1, 16], dtype=torch.float64).expand(1, steps, 3)
        run(f"constant {keep:g}", every)
        if keep in EVENLY:
            run(f"evenly {keep:g}", every, lm.sparsity.under(None))
    policy = lm.policy("policy")
    for target in TARGETS:
        forked = session.fork(1, capacity=steps + lm.sparsity.page_size)
        goal = lm.budget(f"attention={target}").tensor(1)
        episode = teacher_forced(forked, policy, tokens, goal)
        share = book(f"policy {target:g}", episode.log_probabilities[0], None, episode.realised[0], lm.overhead(policy))
        run(f"constant as policy {target:g}", constant(lm, share, kv_length))
    return found


def books(lm: LanguageModel, data: Path, texts: int, done: dict[str, Found]) -> Iterator[tuple[str, Found]]:
    """Per text that is not `done`, and per context, what every arm makes of it."""
    length = CONTEXTS[-1] + SCORED + 1
    streams = [stream_of([text], lm.tokenizer, "books_long") for text in documents(str(data / "books_long.jsonl"))]
    each = -(-texts // len(streams))
    windows = [stream.spaced(each, length, torch.Generator().manual_seed(0)) for stream in streams]
    for index in range(texts):
        if f"{CONTEXTS[-1]}/{index}" in done:
            continue
        window = windows[index % len(windows)][index // len(windows)][None]
        session = lm.session(capacity=length)
        for before, context in zip((0, *CONTEXTS), CONTEXTS, strict=False):
            session.prefill(window[:, before:context])
            yield f"{context}/{index}", arms(lm, session, window[:, context : context + SCORED + 1])


def retrieval(
    lm: LanguageModel, data: Path, name: str, questions: int, done: dict[str, Found]
) -> Iterator[tuple[str, Found]]:
    """Per question that is not `done` what every arm makes of its answer."""
    (task,) = load_tasks([name], data)[name].values()
    for index, document in enumerate(list(task.eval_docs)[:questions]):
        if f"{name}/{index}" in done:
            continue
        context, answer = task.doc_to_text(document), task.doc_to_target(document)
        ids = lm.tokenizer(context).input_ids
        whole = torch.tensor([lm.tokenizer(context + answer).input_ids])
        session = lm.session(capacity=whole.shape[1])
        session.prefill(whole[:, : len(ids) - 1])
        yield f"{name}/{index}", arms(lm, session, whole[:, len(ids) - 1 :])


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
        if block is not None:
            told[arm]["perplexity"] = math.exp(nats.mean())
        elif found[0][arm]["greedy"] is not None:
            told[arm]["accuracy"] = float(np.mean([part[arm]["greedy"] for part in found]))
        if arm.startswith("policy"):
            told[arm]["minus_constant"] = paired_difference(nats, units(f"constant as {arm}"))._asdict()
        if arm.startswith("evenly"):
            minus = paired_difference(units(arm.replace("evenly", "constant")), nats)
            told[arm]["constant_minus_evenly"] = minus._asdict()
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--policy", default="builtin:smollm2-135m-attention-fine")
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("docs/results/long-context.json"))
    parser.add_argument("--json", action="store_true", help="print the result too")
    options = parser.parse_args()
    lm = load("builtin:smollm2-135m", options.policy)
    partial = options.out.with_name(options.out.name + ".partial")
    done: dict[str, Found] = json.loads(partial.read_text()) if partial.exists() else {}

    sources = [books(lm, options.data, options.texts, done)]
    sources += [retrieval(lm, options.data, name, options.questions, done) for name in SETS]
    for name, found in chain.from_iterable(sources):
        done[name] = found
        write_json(partial, done)
        print(name, file=sys.stderr, flush=True)
    result = {
        "command": command_line(),
        "environment": environment(),
        "model": lm.name,
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "scored": SCORED,
        "block": BLOCK,
        "texts": options.texts,
        "questions": options.questions,
        "books": {
            str(context): summary([done[f"{context}/{index}"] for index in range(options.texts)], BLOCK)
            for context in CONTEXTS
        },
        "retrieval": {
            name: summary([done[f"{name}/{index}"] for index in range(options.questions)], None) for name in SETS
        },
    }
    write_text(options.out, json.dumps(result, indent=2) + "\n")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
