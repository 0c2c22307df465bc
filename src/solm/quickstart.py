"""The main job, end to end: train a policy for the embedded model, compare it on held-out text, generate with it."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solm.core.files import write_bytes, write_json, write_text
from solm.core.sparsity import SparsityConfig
from solm.data.windows import token_stream
from solm.evaluation.perplexity import EvaluationSettings, evaluate
from solm.evaluation.report.quickstart import render
from solm.evaluation.result import EvaluationResult
from solm.evaluation.show import plot
from solm.policies.artifact import TrainedPolicy
from solm.runtime.generate import Reply
from solm.runtime.load import load
from solm.training.allocate import read_allocation
from solm.training.config import ValueTrainConfig
from solm.training.values import train_values

PROMPT = "Explain step by step why the sky is blue, and why it turns red in the evening."
HELD_OUT = "pydoc:heldout"
BUDGETS = (0.45, 0.5, 0.6)
PRETRAINED = "builtin:smollm2-135m"

CONFIG = {"model": "builtin:smollm2-135m", "data": "pydoc:train", "level_cost_texts": 32}
SETTINGS = EvaluationSettings(budgets=BUDGETS, texts=48, context=512, length=128, trials=4)


@dataclass(frozen=True)
class Outcome:
    result: EvaluationResult
    replies: dict[float, Reply]


def run(out: Path, batches: int, report: Callable[..., None], pretrained: bool = False) -> Outcome:
    """Train, compare and generate in the folder `out`; parts that are finished are reused.

    batches: of training. report: called as report(stage, done, total[, training record]). pretrained: use the policy
    that ships with solm instead of training one.
    """
    started = time.perf_counter()
    report("loading the model", 0, 1)
    if pretrained:
        trained = TrainedPolicy.from_pretrained(PRETRAINED)
    else:
        trained = _train(out, batches, report)
    lm = load(str(CONFIG["model"]), trained, backend="torch")
    assert lm.tokenizer is not None
    stream = token_stream(HELD_OUT, lm.tokenizer)
    result = _reuse(out / "result.json", trained.config.provenance)
    if result is None:
        result = evaluate(
            lm,
            [stream],
            SETTINGS,
            partial=out / "result.json.partial",
            progress=lambda done, total: report("comparing on held-out text", done, total),
        )
        write_text(out / "result.json", result.model_dump_json(indent=2) + "\n")
    replies = {}
    for index, budget in enumerate(BUDGETS):
        report("generating", index, len(BUDGETS))
        replies[budget] = lm.generate(PROMPT, budget=budget, max_new_tokens=120)
    write_json(out / "replies.json", {str(budget): reply.as_dict() for budget, reply in replies.items()})
    picture = plot(result)
    write_bytes(out / "result.png", picture)
    write_text(out / "report.html", render(result, picture, PROMPT, replies, time.perf_counter() - started))
    return Outcome(result, replies)


def _train(out: Path, batches: int, report: Callable[..., None]) -> TrainedPolicy:
    # An allocation is the model's, whatever the policy, and takes as long to find as a policy takes to train.
    sparsity = SparsityConfig().under(read_allocation(PRETRAINED))
    config = ValueTrainConfig.build({**CONFIG, "sparsity": sparsity, "batches": batches}, "the quickstart")
    lm = load(config.model, sparsity=config.sparsity, backend="torch")
    trained = train_values(lm, config, out, lambda record: report("training", record["update"], batches, record))
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
