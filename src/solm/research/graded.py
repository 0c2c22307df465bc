"""Free running that is graded: replies that a model writes under a budget, policy against its baselines.

Problems of the forms of GSM8K and HumanEval are asked through the model's chat template, without examples. Replies are
greedy and are graded by the number that they arrive at, or by running their code against tests. Chat prompts are
compared with the dense model's own reply: how much of its first 64 tokens an arm says, too, and KL along the way. The
baselines get, problem by problem, the shares that the policy realised, which take equal milliseconds by its step times.

Example: solm study graded --model qwen.gguf --gsm8k gsm8k.jsonl --chat builtin --limit 40 --out graded.json
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from solm.core.budget import Budget
from solm.core.cost import ModelShapes
from solm.core.errors import SolmError
from solm.core.parts import Parts
from solm.evaluation.arms import Arm
from solm.evaluation.result import Record, record
from solm.evaluation.spent import budget_of
from solm.policies.artifact import TrainedPolicy
from solm.research import problems
from solm.research.compared import ComparedOptions, budget_at
from solm.research.graded_results import Rows, points
from solm.research.graded_results import lines as lines
from solm.research.graded_results import plot as plot
from solm.research.problems import Problem
from solm.research.replies import DenseReplies, Followed, Prompts, replies
from solm.research.sandbox import Sandbox, sandbox
from solm.research.studies import Progress
from solm.runtime.language_model import LanguageModel
from solm.runtime.prompts import encode

_QUEUE = 4
"""Batches of problems that are decoded in one queue."""
_COMPARED = 64
"""Tokens of a chat reply, and rows whose logits of these are in memory at once."""
_LOGIT_ROWS = 8
_CHARACTERS = 6
"""Of a prompt per token, at most: its shortest prompt tells which budgets are surely in reach."""


class Options(ComparedOptions):
    gsm8k: Path | None = Field(None, description="Problems in JSON lines with question and answer (#### number).")
    humaneval: Path | None = Field(None, description="Problems in JSON lines with prompt, entry_point and test.")
    chat: str | None = Field(
        None, description="Prompts: a file of lines or JSON lines; builtin: 200 that come with solm."
    )
    run_code: bool = Field(False, description="Run the code that the model writes, under limits; humaneval needs it.")
    limit: int | None = Field(None, ge=1, description="First problems of every file; by default all.")
    max_tokens: int = Field(256, ge=2, description="Longest reply.")
    batch: int = Field(16, ge=1, description="Rows that are decoded together.")

    def asked(self, grader: Sandbox | None = None) -> dict[str, list[Problem]]:
        """The problems by kind; code is graded by `grader`. Raises `SolmError` where nothing is asked."""
        found = {}
        if self.gsm8k is not None:
            found["gsm8k"] = problems.gsm8k(self.gsm8k)
        if self.humaneval is not None:
            found["humaneval"] = problems.humaneval(self.humaneval, grader)
        if self.chat is not None:
            found["chat"] = problems.chat(self.chat)
        if not found:
            raise SolmError("give problems: --gsm8k FILE, --humaneval FILE or --chat builtin")
        return {kind: asked[: self.limit] for kind, asked in found.items()}

    def least_seen(self, asked: dict[str, list[Problem]]) -> int:
        """The fewest tokens that steps of a reply see on average, surely."""
        shortest = min(sum(len(m["content"]) for m in problem.messages) for some in asked.values() for problem in some)
        return shortest // _CHARACTERS + self.max_tokens // 2

    def check(self, shapes: ModelShapes, context: int | None, trained: TrainedPolicy | None) -> None:
        if self.humaneval is not None and not self.run_code:
            raise SolmError("--humaneval: it runs code that the model writes; allow that with --run-code")
        asked = self.asked()
        if context is not None and self.max_tokens >= context:
            raise SolmError(f"--max-tokens: {self.max_tokens} exceed this model's context of {context}")
        self.values(self.offer(trained, shapes), self.least_seen(asked))
        if self.run_code:
            sandbox()


def run(options: Options, partial: Path | None, progress: Progress) -> Record:
    return measure(options.loaded(), options, partial, progress)


def measure(lm: LanguageModel, options: Options, partial: Path | None, progress: Progress) -> Record:
    """Results: `currency`, what budgets are; `confined`, what generated code could not do; and by kind of problem
    `points`, per arm and budget means of the metrics and of what was spent, by problem the metrics, and policy minus
    arm with 95 % intervals over problems."""
    assert lm.trained is not None
    grader = sandbox() if options.run_code and options.humaneval is not None else None
    asked = options.asked(grader)
    budgets = options.values(lm.budgets(), options.least_seen(asked))
    settings = options.model_dump(mode="json") | {
        "model": lm.name, "backend": lm.backend.name, "budgets": budgets,
        "data_fingerprint": {kind: problems.fingerprint(some) for kind, some in asked.items()},
    }  # fmt: skip
    frozen = None if lm.timings is None else lm.timings.model_dump(mode="json")
    parts = Parts(partial, [settings, lm.trained.config.digest, lm.sparsity.model_dump(mode="json"), frozen])
    arms = options.arms(lm)
    runs = _Runs(lm, options, parts, budgets, arms, progress, sum(map(len, asked.values())))
    results: dict[str, Any] = {
        "currency": "time" if lm.timings is not None else "keep",
        "confined": None if grader is None else {"isolated": grader.isolated, **grader.holds()},
        "kinds": {kind: {"problems": len(some), "points": points(runs.of(kind, some))} for kind, some in asked.items()},
    }  # fmt: skip
    return record("graded", settings, results)


class _Runs:
    """The runs of all arms at all budgets, kept in `parts`. total: problems of all kinds."""

    def __init__(
        self,
        lm: LanguageModel,
        options: Options,
        parts: Parts,
        budgets: Sequence[float],
        arms: dict[str, Arm],
        progress: Progress,
        total: int,
    ):
        self._lm, self._options, self._parts, self._budgets, self._arms = lm, options, parts, budgets, arms
        self._progress, self._done, self._total = progress, 0, total * (1 + len(budgets) * (1 + len(arms)))
        self._offer, self._dense, self._policy = lm.budgets(), Arm(lm.policy("dense")), Arm(lm.policy("policy"))

    def of(self, kind: str, some: Sequence[Problem]) -> Rows:
        """By arm and budget, such as ``policy@0.85``, and ``dense`` alone, what every problem gave."""
        run, count = self._graded, _QUEUE * self._options.batch
        if kind == "chat":
            run, count = self._compared, min(_LOGIT_ROWS, self._options.batch)
        rows: Rows = {}
        for first in range(0, len(some), count):
            for name, made in run(kind, some[first : first + count], first).items():
                rows.setdefault(name, []).extend(made)
        return rows

    def _graded(self, kind: str, some: Sequence[Problem], first: int) -> Rows:
        """Of some problems, which decode in one queue, all budgets of an arm together."""
        prompts = self._prompts(some)

        def reply(name: str, arm: Arm, budgets: list[Budget]) -> list[dict[str, Any]]:
            numbers = list(range(len(some))) * (len(budgets) // len(some))

            def make() -> list[dict[str, Any]]:
                told, options = self._told(f"{kind}, {name}"), self._options
                complete = [some[number].complete for number in numbers]
                made = replies(prompts, numbers, arm, budgets, options.max_tokens, complete, options.batch, told)
                return [
                    {**each, "metrics": self._grade(some[at], each["text"])}
                    for at, each in zip(numbers, made, strict=True)
                ]

            return self._part(f"{kind} {name} {first}", len(numbers), make)

        rows = {"dense": reply("dense", self._dense, [Budget()] * len(some))}
        asked = [
            self._budget(prompts, at, share, self._options.max_tokens)
            for share in self._budgets
            for at in range(len(some))
        ]
        policy = reply("policy", self._policy, asked)
        found = {"policy": policy}
        for name, arm in self._arms.items():
            found[name] = reply(name, arm, [budget_of(each["spent"]) for each in policy])
        for name, made in found.items():
            for place, share in enumerate(self._budgets):
                rows[f"{name}@{share}"] = made[place * len(some) : (place + 1) * len(some)]
        return rows

    @staticmethod
    def _grade(problem: Problem, text: str) -> dict[str, float]:
        assert problem.solved is not None
        return {"solved": float(problem.solved(text))}

    def _compared(self, kind: str, some: Sequence[Problem], first: int) -> Rows:
        """Of some prompts, whose dense replies are in memory with their logits."""

        def make() -> Rows:
            prompts, length, told = self._prompts(some), min(_COMPARED, self._options.max_tokens), self._told(kind)
            numbers = range(len(some))
            dense = DenseReplies(prompts, numbers, length)

            def follow(name: str, arm: Arm, budgets: list[Budget]) -> list[dict[str, Any]]:
                made = dense.followed(arm, np.array([budget.shares for budget in budgets]))
                for _ in made:
                    told()
                return [{**each, "metrics": _agreement(each)} for each in made]

            rows = {"dense": follow("dense", self._dense, [Budget()] * len(some))}
            for share in self._budgets:
                policy = follow("policy", self._policy, [self._budget(prompts, at, share, length) for at in numbers])
                rows[f"policy@{share}"] = policy
                for name, arm in self._arms.items():
                    rows[f"{name}@{share}"] = follow(name, arm, [budget_of(each["spent"]) for each in policy])
            return rows

        return self._part(f"{kind} {first}", len(some) * (1 + len(self._budgets) * (1 + len(self._arms))), make)

    def _prompts(self, some: Sequence[Problem]) -> Prompts:
        return Prompts(self._lm, [encode(self._lm.tokenizer, problem.prompt) for problem in some])

    def _budget(self, prompts: Prompts, number: int, share: float, length: int) -> Budget:
        """What a reply to a prompt may spend; the least there is where its prompt is too short for `share`."""
        seen = prompts.ids[number].shape[1] + length // 2
        return budget_at(self._offer, share, seen, clamp=True)

    def _part(self, name: str, count: int, make: Callable[[], Any]) -> Any:
        """A part of `count` replies."""
        known = name in self._parts
        made = self._parts.get(name, make)
        self._done += count * known
        return made

    def _told(self, what: str) -> Callable[[], None]:
        """What is called after every reply."""

        def told() -> None:
            self._done += 1
            self._progress(what, self._done, self._total)

        return told


def _agreement(found: Followed) -> dict[str, float]:
    agreed, tokens = found["agreed"], found["tokens"]
    return {"agreed": agreed / tokens, "identical": float(agreed == tokens), "kl": found["kl"]}
