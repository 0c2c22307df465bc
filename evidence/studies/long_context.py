"""The attention axis in long contexts: quality against the share of the KV cache that is read, policy against constant.

Text: the tokens after 1k, 2k, 4k and 8k tokens of the same text, whose one prefill serves all four. Needles: answers to
questions about one place of a long context, from files of JSON lines with `input` and `outputs` (RULER) or `prompt`,
`random_idx` and `expected_number` (LongEval). Arms: every step at a constant share, by the policy's allocation and
uniform, and the policy beside a constant share equal to what it realised on those very tokens. What steps read is
counted in bytes, weights included.

    python evidence/studies/long_context.py --data books.jsonl --policy auto --needles niah.jsonl --out long.json
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from evidence.record import Record, record
from evidence.studies.common import Names, Numbers, TextOptions, kept, main, progress
from solm.backends.session import Session
from solm.core.actions import FULL_BITS
from solm.core.cost import kv_budget, relative_bytes
from solm.core.errors import SolmError
from solm.core.sparsity import SparsityConfig
from solm.evaluation.result import paired_difference
from solm.runtime.language_model import LanguageModel

_BLOCK = 32
"""Tokens of a text that are resampled together."""
_KEEPS, _UNIFORM, _TARGETS = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05), (0.3, 0.2, 0.1), (0.2, 0.3)
DENSE = "constant 1"
Found = dict[str, dict[str, Any]]
"""By arm what it makes of one text or question."""


class Options(TextOptions):
    policy: str = Field("auto", description="Folder or hub id of a trained policy; auto: the one that ships.")
    contexts: Numbers = Field((1024, 2048, 4096, 8064), description="Rising numbers of tokens before those scored.")
    length: int = Field(128, ge=_BLOCK, multiple_of=_BLOCK, description="Tokens that are scored.")
    texts: int = Field(24, ge=1, description="Number of texts.")
    needles: Names | None = Field(None, description="Files of questions about one place of a long context.")
    questions: int = Field(24, ge=1, description="Questions of every such file.")


def measure(lm: LanguageModel, options: Options, partial: Path | None) -> Record:
    """Results: `text` by context and `needles` by file, of every arm the share and bytes that were read, nats per token
    (or per answer), and differences with 95 % intervals. Raises `SolmError` without a policy."""
    if lm.trained is None:
        raise SolmError("--policy: this study needs one")
    contexts = [int(context) for context in options.contexts]
    windows, fingerprints = options.windows(lm, contexts[-1])
    settings = options.model_dump(mode="json") | {"data_fingerprint": fingerprints}
    parts = kept(partial, lm, settings)
    text: dict[str, list[Found]] = {str(context): [] for context in contexts}
    for index, window in enumerate(windows.split(1)):
        progress("texts", index, len(windows))
        told = parts.get(f"text {index}", lambda window=window: _text(lm, window, contexts, options.length))  # type: ignore[misc]
        for context, found in told.items():
            text[context].append(found)
    needles: dict[str, list[Found]] = {}
    for path in map(Path, options.needles or ()):
        asked = _questions(lm, path, options.questions)
        for index, (ids, begun) in enumerate(asked):
            progress(path.stem, index, len(asked))
            told = parts.get(f"{path.stem} {index}", lambda ids=ids, begun=begun: _answer(lm, ids, begun))  # type: ignore[misc]
            needles.setdefault(path.stem, []).append(told)
    results = {
        "text": {context: summary(texts, _BLOCK) for context, texts in text.items()},
        "needles": {name: summary(answers, None) for name, answers in needles.items()},
    }
    return record("long-context", settings, results)


def _text(lm: LanguageModel, window: torch.Tensor, contexts: list[int], length: int) -> dict[str, Found]:
    """What every arm makes of one text [1, longest + length + 1] after every context."""
    session = lm.session(capacity=window.shape[1])
    found = {}
    for before, context in zip((0, *contexts), contexts, strict=False):
        session.prefill(window[:, before:context])
        found[str(context)] = arms(lm, session, window[:, context : context + length + 1])
    return found


def _questions(lm: LanguageModel, path: Path, count: int) -> list[tuple[torch.Tensor, int]]:
    """Question and answer as tokens [1, T], and where the answer's prediction begins."""
    assert lm.tokenizer is not None
    found = []
    for line in path.read_text().splitlines()[:count]:
        one = json.loads(line)
        if "input" in one:
            question, answer = one["input"], f" {one['outputs'][0]}"
        else:
            question = f"{one['prompt'].rstrip()}\nline {one['random_idx'][0]}: REGISTER_CONTENT is"
            answer = f" <{one['expected_number']}>"
        ids = lm.tokenizer.encode(question + answer)
        found.append((torch.tensor([ids]), len(lm.tokenizer.encode(question)) - 1))
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


def arms(lm: LanguageModel, session: Session, tokens: torch.Tensor) -> Found:
    """What every arm makes of tokens [1, T + 1] after what `session` has read."""
    steps, policy = tokens.shape[1] - 1, lm.policy("policy")
    kv_length = session.lengths[0] + 1 + torch.arange(steps)
    found: Found = {}

    def run(name: str, keep: torch.Tensor | None, sparsity: SparsityConfig, target: float = 1.0) -> float:
        """Score the tokens under keep [1, T, 3], or decided by the policy; the share of keys that was read."""
        rows = session.fork(1, steps + sparsity.page_size, sparsity)
        if keep is None:
            rows.control(policy, np.array([lm.budget(f"attention={target}").shares]), steps)
        scored = rows.score(tokens, keep, keep_logits=True)
        assert scored.logits is not None
        overhead = lm.overhead(policy) if keep is None else 0
        cost = relative_bytes(scored.realised[0], kv_length, lm.shapes, lm.sparsity, overhead)
        share = float(scored.realised[0, :, 0].mean())
        found[name] = {
            "nats": (-scored.log_probabilities[0].double()).tolist(), "share": share, "bytes": float(cost.mean()),
            "greedy": bool((scored.logits.argmax(-1).cpu() == tokens[:, 1:]).all()),
        }  # fmt: skip
        return share

    for keep in _KEEPS:
        every = torch.tensor([keep, 1, FULL_BITS], dtype=torch.float64).expand(1, steps, 3)
        run(f"constant {keep:g}", every, lm.sparsity)
        if keep in _UNIFORM:
            run(f"uniform {keep:g}", every, lm.sparsity.under(None))
    for target in _TARGETS:
        share = run(f"policy {target:g}", None, lm.sparsity, target)
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
            **{what: float(np.mean([part[arm][what] for part in found])) for what in ("share", "bytes")},
            "nats": float(nats.mean()), "minus_dense": paired_difference(nats, units(DENSE)).model_dump(),
        }  # fmt: skip
        if block is None:
            told[arm]["accuracy"] = float(np.mean([part[arm]["greedy"] for part in found]))
        if arm.startswith("policy"):
            told[arm]["minus_constant"] = paired_difference(nats, units(f"constant as {arm}")).model_dump()
        if arm.startswith("uniform"):
            gain = paired_difference(units(arm.replace("uniform", "constant")), nats)
            told[arm]["constant_minus_uniform"] = gain.model_dump()
    return told


def lines(found: Record) -> list[str]:
    return [
        f"{where:>16} {arm:22} reads {told['share']:.3f} of keys and {told['bytes']:.3f} of bytes, "
        f"{told['minus_dense']['value']:+.4f} nats above dense"
        for part in found.results.values()
        for where, by_arm in part.items()
        for arm, told in by_arm.items()
    ]


if __name__ == "__main__":
    main(Options, lambda options, partial: measure(options.load(), options, partial), lines, __doc__)
