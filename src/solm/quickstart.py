"""The main job, end to end: decode fast, train a policy for the embedded model, compare it on held-out text, use it."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from solm.backends.cpu.build import find_compiler
from solm.core.errors import SolmError
from solm.core.files import resumable, write_bytes, write_json, write_text
from solm.core.provenance import commit, processor, versions
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
from solm.training.values import SAMPLES, train_values

MODEL = "builtin:smollm2-135m"
PRETRAINED = "builtin:smollm2-135m"
HELD_OUT = "pydoc:heldout"

FAST_POLICY = "builtin:smollm2-135m-cpu"
FAST: dict[str, Any] = {"context": 4000, "budgets": [0.85, 0.7], "tokens": 100, "rounds": 3}
"""Budgets are shares of the dense step's time, by the policy's step times. A short prompt would show little: a step
that reads many keys has more to leave out."""
SIMULATED: dict[str, Any] = {"context": 500, "budgets": [0.95, 0.85], "tokens": 40, "rounds": 1}
"""The same where only the torch backend runs, whose steps take ten times as long."""
PASSAGE = "Compound statements"
QUESTION = "Explain in a few sentences what the text above says about compound statements."

CONFIG = {"model": MODEL, "data": "pydoc:train", "level_cost_texts": 8}
SETTINGS = EvaluationSettings(budgets=(0.5,), texts=16, context=512, length=128, trials=2, batch=4)
PROMPT = "Explain step by step why the sky is blue, and why it turns red in the evening."
TOKENS = 100
"""Of the reply to `PROMPT`, at most."""

STAGES = ("speeds", "training", "comparison", "replies and report")

Report = Callable[..., None]
"""Called as report(what is done now, parts done, parts in all[, training record])."""


@dataclass
class Clock:
    """Seconds of the stages in this run; a stage that had been finished before takes next to none."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Within the block time is booked on the stage `name` of `STAGES`."""
        begun = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begun


@dataclass(frozen=True)
class Outcome:
    """replies: by net keep. seconds: by stage."""

    result: EvaluationResult
    replies: dict[float, Reply]
    seconds: dict[str, float]


def decode(out: Path, report: Report, clock: Clock) -> Speeds:
    """Decode one prompt dense and under budgets with the policy that ships with solm, and keep what was found in `out`.

    On the compiled engine; where it cannot run, the torch backend shows the texts, and the note says why. What the same
    code has found before is not measured again.
    """
    with clock.stage(STAGES[0]):
        made: dict[str, Any] = {
            "commit": commit(), "versions": versions(), "compiler": find_compiler(),
            "threads": torch.get_num_threads(), "processor": processor(), "settings": FAST,
        }  # fmt: skip
        path = out / "speeds.json"
        found = None if made["commit"].endswith("+changes") else _speeds_before(path, made)
        if found is None:
            found = _speeds(report)
            write_json(path, {"made": made, **found.as_dict()})
        return found


def _speeds(report: Report) -> Speeds:
    trained = TrainedPolicy.from_pretrained(FAST_POLICY)
    report("loading the model, and building the engine at the first run", 0, None)
    note = ""
    try:
        lm, how = load(MODEL, trained, backend="cpu"), FAST
    except SolmError as error:
        lm, how = load(MODEL, trained, backend="torch"), SIMULATED
        cure = (
            "" if find_compiler() else "; install one (apt install g++, or xcode-select --install) and run this again"
        )
        note = f"{error}{cure}. The torch backend computes what a budget leaves out, so its speeds say nothing."
    ids = _passage(lm, how["context"])
    found = side_by_side(lm, ids, QUESTION, how["budgets"], how["tokens"], how["rounds"], report)
    lm.detach()
    return replace(found, note=note)


def _speeds_before(path: Path, made: dict[str, Any]) -> Speeds | None:
    """What the same code has found in the same setting; None where there is nothing, or it is of something else."""
    try:
        content = json.loads(path.read_text())
        return Speeds.from_dict(content) if content.pop("made") == made else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _passage(lm: LanguageModel, tokens: int) -> torch.Tensor:
    """About `tokens` tokens of Python's documentation and a question about them: ids [1, C]."""
    tokenizer = lm.tokenizer
    assert tokenizer is not None
    text = max(documents("pydoc"), key=lambda document: (document.startswith(PASSAGE), len(document)))
    beginning = tokenizer.decode(tokenizer(text).input_ids[:tokens])
    return lm.encode(f"{beginning}\n\n{QUESTION}")


def run(out: Path, speeds: Speeds, batches: int, report: Report, clock: Clock, pretrained: bool = False) -> Outcome:
    """Train, compare and generate in the folder `out`; parts that are finished are reused.

    speeds: for the report. batches: of training. pretrained: use the policy that ships with solm instead of training.
    """
    with clock.stage(STAGES[1]):
        trained = TrainedPolicy.from_pretrained(PRETRAINED) if pretrained else _train(out, batches, report)
    with clock.stage(STAGES[2]):
        report("loading the model with the policy", 0, None)
        lm = load(MODEL, trained, backend="torch")
        result = _compare(out, lm, report)
    with clock.stage(STAGES[3]):
        replies = {}
        for index, net in enumerate(SETTINGS.budgets):
            report("generating with the policy", index, len(SETTINGS.budgets))
            replies[net] = lm.generate(PROMPT, budget=f"keep={net}", max_new_tokens=TOKENS)
        lm.detach()
        write_json(out / "replies.json", {str(net): reply.as_dict() for net, reply in replies.items()})
        picture = plot(result)
        write_bytes(out / "result.png", picture)
        write_text(out / "report.html", render(result, picture, PROMPT, replies, clock.seconds, speeds))
    write_json(out / "seconds.json", clock.seconds)
    return Outcome(result, replies, clock.seconds)


def _train(out: Path, batches: int, report: Report) -> TrainedPolicy:
    # An allocation is the model's, whatever the policy, and takes as long to find as a policy takes to train.
    sparsity = SparsityConfig().under(read_allocation(PRETRAINED))
    config = ValueTrainConfig.build({**CONFIG, "sparsity": sparsity, "batches": batches}, "the quickstart")
    lm = load(config.model, sparsity=config.sparsity, backend="torch")
    if not (out / "policy").exists():
        report("training a policy", min(batches, len(list((out / SAMPLES).glob("*")))), batches)

    trained = train_values(
        lm, config, out,
        lambda record: report("training a policy", record["update"], batches, record),
        level_costs=lambda done, total: report("measuring what every level costs, and fitting the policy", done, total),
    )  # fmt: skip
    lm.detach()
    return trained


def _compare(out: Path, lm: LanguageModel, report: Report) -> EvaluationResult:
    """The comparison on held-out text, from `out` where it is there and of this policy."""
    assert lm.tokenizer is not None
    assert lm.trained is not None
    found = _reuse(out / "result.json", lm.trained.config.provenance)
    if found is not None:
        return found
    report("comparing on held-out text", 0, -(-SETTINGS.texts // SETTINGS.batch))
    with resumable(out / "result.json") as partial:
        result = evaluate(
            lm,
            [token_stream(HELD_OUT, lm.tokenizer)],
            SETTINGS,
            partial=partial,
            progress=lambda done, total: report("comparing on held-out text", done, total),
        )
        write_text(out / "result.json", result.model_dump_json(indent=2) + "\n")
    return result


def _reuse(path: Path, provenance: dict[str, Any]) -> EvaluationResult | None:
    """The result at `path`; None where there is none, or where it belongs to another policy or other settings."""
    try:
        result = EvaluationResult.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    asked = SETTINGS.model_dump(mode="json")
    same = result.policy == json.loads(json.dumps(provenance)) and asked.items() <= result.settings.items()
    return result if same else None
