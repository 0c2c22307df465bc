"""The main job, end to end: decode fast, train a policy for the embedded model, compare it on held-out text, use it."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from solm.backends.cpu.library import find_compiler
from solm.core.budget import Budget
from solm.core.errors import SolmError
from solm.core.files import write_bytes, write_json, write_text
from solm.core.sparsity import SparsityConfig
from solm.data.text import documents
from solm.data.windows import token_stream
from solm.evaluation.perplexity import EvaluationSettings, evaluate
from solm.evaluation.report.quickstart import render
from solm.evaluation.result import EvaluationResult
from solm.evaluation.show import plot
from solm.evaluation.speeds import Speeds, side_by_side
from solm.policies.artifact import TrainedPolicy
from solm.runtime.language_model import LanguageModel
from solm.runtime.load import load
from solm.runtime.reply import Reply
from solm.training.allocate import read_allocation
from solm.training.config import ValueTrainConfig
from solm.training.values import train_values

MODEL = "builtin:smollm2-135m"
PRETRAINED = "builtin:smollm2-135m"
HELD_OUT = "pydoc:heldout"

FAST_POLICY = "builtin:smollm2-135m-cpu"
FAST_BUDGETS = [Budget(attention=0.4, mlp=0.8), Budget(attention=0.2, mlp=0.7)]
FAST = {"context": 2000, "tokens": 120, "rounds": 3}
SIMULATED = {"context": 500, "tokens": 40, "rounds": 1}
"""The same where only the torch backend runs, whose steps take ten times as long."""
PASSAGE = "Compound statements"
QUESTION = "Explain in a few sentences what the text above says about compound statements."

BATCHES = 10
BUDGETS = (0.5, 0.6)
CONFIG = {"model": MODEL, "data": "pydoc:train", "level_cost_texts": 16}
SETTINGS = EvaluationSettings(budgets=BUDGETS, texts=24, context=512, length=128, trials=2)
PROMPT = "Explain step by step why the sky is blue, and why it turns red in the evening."

Report = Callable[..., None]
"""Called as report(stage, done, total[, training record])."""


@dataclass(frozen=True)
class Outcome:
    result: EvaluationResult
    replies: dict[float, Reply]


def decode(out: Path, report: Report) -> Speeds:
    """Decode one prompt dense and under budgets with the policy that ships with solm, and keep what was found in `out`.

    On the compiled engine; where it cannot run, the torch backend shows the texts, and the note says why.
    """
    trained = TrainedPolicy.from_pretrained(FAST_POLICY)
    report("loading the model, and building the engine at the first run", 0, 1)
    note = ""
    try:
        lm = load(MODEL, trained, backend="cpu", precision="int8", kv_cache_dtype="int8")
        how = FAST
    except SolmError as error:
        lm, how = load(MODEL, trained, backend="torch"), SIMULATED
        cure = (
            "" if find_compiler() else "; install one (apt install g++, or xcode-select --install) and run this again"
        )
        note = f"{error}{cure}. The torch backend computes what a budget leaves out, so its speeds say nothing."
    ids = _passage(lm, how["context"])
    found = side_by_side(
        lm, ids, QUESTION, FAST_BUDGETS, how["tokens"], how["rounds"],
        lambda done, total: report("decoding one prompt dense and under budgets", done, total),
    )  # fmt: skip
    lm.detach()
    speeds = replace(found, note=note)
    write_json(out / "speeds.json", speeds.as_dict())
    return speeds


def _passage(lm: LanguageModel, tokens: int) -> torch.Tensor:
    """About `tokens` tokens of Python's documentation and a question about them: ids [1, C]."""
    tokenizer = lm.tokenizer
    assert tokenizer is not None
    text = max(documents("pydoc"), key=lambda document: (document.startswith(PASSAGE), len(document)))
    beginning = tokenizer.decode(tokenizer(text).input_ids[:tokens])
    return lm.encode(f"{beginning}\n\n{QUESTION}")


def run(out: Path, speeds: Speeds, batches: int, report: Report, pretrained: bool = False) -> Outcome:
    """Train, compare and generate in the folder `out`; parts that are finished are reused.

    speeds: for the report. batches: of training. pretrained: use the policy that ships with solm instead of training.
    """
    started = time.perf_counter()
    report("loading the model", 0, 1)
    trained = TrainedPolicy.from_pretrained(PRETRAINED) if pretrained else _train(out, batches, report)
    lm = load(MODEL, trained, backend="torch")
    assert lm.tokenizer is not None
    stream = token_stream(HELD_OUT, lm.tokenizer)
    result = _reuse(out / "result.json", trained.config.provenance)
    if result is None:
        report("comparing on held-out text", 0, -(-SETTINGS.texts // SETTINGS.batch))
        result = evaluate(
            lm,
            [stream],
            SETTINGS,
            partial=out / "result.json.partial",
            progress=lambda done, total: report("comparing on held-out text", done, total),
        )
        write_text(out / "result.json", result.model_dump_json(indent=2) + "\n")
        (out / "result.json.partial").unlink(missing_ok=True)
    replies = {}
    for index, net in enumerate(BUDGETS):
        report("generating with the policy", index, len(BUDGETS))
        replies[net] = lm.generate(PROMPT, budget=Budget.from_net(net, lm.space), max_new_tokens=100)
    write_json(out / "replies.json", {str(net): reply.as_dict() for net, reply in replies.items()})
    picture = plot(result)
    write_bytes(out / "result.png", picture)
    seconds = time.perf_counter() - started
    write_text(out / "report.html", render(result, picture, PROMPT, replies, seconds, speeds))
    return Outcome(result, replies)


def _train(out: Path, batches: int, report: Report) -> TrainedPolicy:
    # An allocation is the model's, whatever the policy, and takes as long to find as a policy takes to train.
    sparsity = SparsityConfig().under(read_allocation(PRETRAINED))
    config = ValueTrainConfig.build({**CONFIG, "sparsity": sparsity, "batches": batches}, "the quickstart")
    lm = load(config.model, sparsity=config.sparsity, backend="torch")
    if not (out / "policy").exists():
        report("training a policy", 0, batches)

    def told(record: dict[str, Any]) -> None:
        report("training a policy", record["update"], batches, record)
        if record["update"] == batches:
            report("measuring what every level costs", 0, None)

    trained = train_values(lm, config, out, told)
    lm.detach()
    return trained


def _reuse(path: Path, provenance: dict[str, Any]) -> EvaluationResult | None:
    """The result at `path`; None where there is none, or where it belongs to another policy."""
    try:
        result = EvaluationResult.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    same = result.policy == json.loads(json.dumps(provenance))
    return result if same else None
