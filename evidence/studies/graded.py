"""Free running that is graded: replies that a model writes under a budget, policy against its baselines.

Problems of the forms of GSM8K and HumanEval are asked through the model's chat template, without examples. Replies are
greedy and are graded by the number that they arrive at, or by running their code against tests. Chat prompts are
compared with the dense model's own reply: how much of its first 64 tokens an arm says, too, and KL along the way. The
baselines get, problem by problem, the shares that the policy realised, which take equal milliseconds by its step times.

    python evidence/studies/graded.py --model qwen.gguf --gsm8k gsm8k.jsonl --chat builtin --limit 40 --out graded.json
"""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from evidence.record import Record, record
from evidence.studies import problems
from evidence.studies.common import ComparedOptions, budget_at, kept, main, progress
from evidence.studies.problems import Problem
from evidence.studies.replies import Made, Prompts, follow, reply, spent_by
from evidence.studies.sandbox import Sandbox, sandbox
from solm.core.budget import Budget
from solm.core.errors import SolmError
from solm.core.files import Parts
from solm.evaluation.arms import Arm
from solm.evaluation.result import paired_difference
from solm.runtime.language_model import LanguageModel
from solm.runtime.prompts import encode

_COMPARED = 64
"""Tokens of a chat reply."""
_TOGETHER, _LOGITS_TOGETHER = 64, 8
"""Problems that are one part of the work, and chat prompts, whose dense logits are in memory together."""
_CHARACTERS = 6
"""Of a prompt per token, at most: its shortest prompt tells which budgets are surely in reach."""
Rows = dict[str, list[Made]]
"""By arm and budget, such as ``policy@0.85``, and ``dense`` alone, what every problem gave."""


class Options(ComparedOptions):
    gsm8k: Path | None = Field(None, description="Problems in JSON lines with question and answer (#### number).")
    humaneval: Path | None = Field(None, description="Problems in JSON lines with prompt, entry_point and test.")
    chat: str | None = Field(None, description="Prompts: a file of lines or JSON lines; builtin: 200 of many kinds.")
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


def run(options: Options, partial: Path | None) -> Record:
    """What can go wrong is checked before the model is loaded."""
    if options.humaneval is not None and not options.run_code:
        raise SolmError("--humaneval: it runs code that the model writes; allow that with --run-code")
    options.asked()
    grader = sandbox() if options.humaneval is not None else None
    return measure(options.load(), options, partial, grader)


def measure(lm: LanguageModel, options: Options, partial: Path | None, grader: Sandbox | None = None) -> Record:
    """Results: `currency`, what budgets are; `confined`, what generated code could not do; and by kind of problem
    `points`, per arm and budget means of the metrics and of what was spent, by problem the metrics, and policy minus
    arm with 95 % intervals over problems."""
    asked = options.asked(grader)
    budgets = options.values(lm.budgets(), options.least_seen(asked))
    settings = options.model_dump(mode="json") | {
        "model": lm.name, "backend": lm.backend.name, "budgets": budgets,
        "data_fingerprint": {kind: problems.fingerprint(some) for kind, some in asked.items()},
    }  # fmt: skip
    parts = kept(partial, lm, settings)
    results: dict[str, Any] = {
        "currency": "time" if lm.timings is not None else "keep",
        "confined": None if grader is None else grader.holds(),
        "kinds": {
            kind: {"problems": len(some), "points": points(_rows(lm, options, parts, budgets, kind, some))}
            for kind, some in asked.items()
        },
    }
    return record("graded", settings, results)


def _rows(
    lm: LanguageModel, options: Options, parts: Parts, budgets: tuple[float, ...], kind: str, some: list[Problem]
) -> Rows:
    """What every arm made of all problems of a kind."""
    longest = min(_COMPARED, options.max_tokens) if kind == "chat" else options.max_tokens
    together = _LOGITS_TOGETHER if kind == "chat" else _TOGETHER
    offer, arms, rows = lm.budgets(), options.arms(lm), Rows()
    for first in range(0, len(some), together):
        few = some[first : first + together]
        prompts = Prompts(lm, [encode(lm.tokenizer, problem.prompt) for problem in few])

        def made(name: str, arm: Arm, given: list[Budget]) -> list[Made]:
            def make() -> list[Made]:
                if kind == "chat":
                    return follow(prompts, arm, given, longest)  # noqa: B023
                return reply(prompts, few, arm, given, longest, options.batch)  # noqa: B023

            found: list[Made] = parts.get(f"{kind} {name} {first}", make)  # noqa: B023
            rows.setdefault(name, []).extend(found)
            progress(f"{kind}, {name}", first + len(few), len(some))  # noqa: B023
            return found

        made("dense", Arm(lm.policy("dense")), [Budget()] * len(few))
        for share in budgets:
            seen = [ids.shape[1] + longest // 2 for ids in prompts.ids]
            requested = [budget_at(offer, share, tokens, clamp=True) for tokens in seen]
            policy = made(f"policy@{share}", Arm(lm.policy("policy")), requested)
            for name, arm in arms.items():
                made(f"{name}@{share}", arm, [spent_by(each) for each in policy])
    return rows


def points(rows: Rows) -> list[dict[str, Any]]:
    """Dense, then per budget the policy and its baselines.

    Each has the mean of every metric, `spent` per step, the mean length of a reply in `tokens`, the metrics of every
    problem, and `policy_minus`: by metric policy minus this arm with its 95 % interval over problems, of which there
    must be two. That of dense stands at the policy's points.
    """
    dense, found = rows["dense"], []
    for name, made in rows.items():
        arm, _, budget = name.partition("@")
        ours = rows.get(f"policy@{budget}")
        steps = np.array([each["steps"] for each in made]) + 1e-9
        terms = max((each["spent"] for each in made), key=len)
        values = {metric: _values(made, metric) for metric in made[0]["metrics"]}
        point: dict[str, Any] = {
            "arm": arm, "budget": float(budget or 1),
            **{metric: float(scores.mean()) for metric, scores in values.items()},
            "spent": {
                term: float(np.average([each["spent"].get(term, 0.0) for each in made], weights=steps))
                for term in terms
            },
            "tokens": float(np.mean([each["tokens"] for each in made])),
            "ended": float(np.mean([each["ended"] for each in made])),
            "by_problem": {metric: scores.tolist() for metric, scores in values.items()},
        }  # fmt: skip
        if ours is not None and len(made) > 1:
            key, theirs = ("policy_minus_dense", dense) if arm == "policy" else ("policy_minus", made)
            point[key] = {
                metric: paired_difference(_values(ours, metric), _values(theirs, metric)).model_dump()
                for metric in values
            }
        found.append(point)
    return sorted(found, key=lambda point: -point["budget"])


def _values(made: list[Made], metric: str) -> np.ndarray:
    return np.array([each["metrics"][metric] for each in made])


def lines(found: Record) -> list[str]:
    told = []
    for kind, asked in found.results["kinds"].items():
        for point in asked["points"]:
            spent = point["spent"]
            ms = f", {spent['ms']:.2f} ms per token" if "ms" in spent else f", net keep {spent['net']:.3f}"
            scores = ", ".join(f"{metric} {point[metric]:.3f}" for metric in point["by_problem"])
            minus = point.get("policy_minus", {}).items()
            gain = "".join(f"; policy {d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}] in {m}" for m, d in minus)
            at = "" if point["arm"] == "dense" else f" at {point['budget']:g}"
            told.append(f"{kind} ({asked['problems']}), {point['arm']}{at}: {scores}{ms}{gain}")
    confined = found.results["confined"]
    if confined is not None:
        open_to = [name for name, refused in confined.items() if not refused]
        told.append("code ran inside of bubblewrap" + (f"; not refused: {', '.join(open_to)}" if open_to else ""))
    return told


if __name__ == "__main__":
    main(Options, run, lines, __doc__)
