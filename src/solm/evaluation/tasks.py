"""lm-eval tasks at matched compute: every arm answers the same questions, and differences are paired."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lm_eval.api.task
import numpy as np
from lm_eval.api.samplers import ContextSampler
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate as lm_eval_evaluate
from pydantic import BaseModel, ConfigDict, Field

from solm.core.actions import AXES, ActionSpace
from solm.core.budget import Budget, BudgetRequest
from solm.core.errors import SolmError
from solm.core.files import Parts
from solm.core.provenance import command_line, environment
from solm.data.windows import TokenStream
from solm.evaluation.arms import Arm, static_arms
from solm.evaluation.harness import ControlledLM
from solm.evaluation.pair_groups import Controlled
from solm.evaluation.result import Difference, TaskPoint, TaskResult
from solm.evaluation.resume import arm_fingerprints, resume_key
from solm.evaluation.statistics import paired_difference
from solm.policies.schedules import Dense, Random
from solm.runtime.language_model import LanguageModel

Answers = dict[str, list[float]]
"""Per metric a number per question."""
METRICS = ("acc", "acc_norm", "margin")


class TaskSettings(BaseModel):
    """What is asked: tasks, budgets, questions per task and examples before each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[str, ...] = Field(min_length=1)
    budgets: tuple[float, ...] = Field(min_length=1)
    currency: Literal["keep", "time"] = "keep"
    """What budgets are: net keeps, or shares of the dense step's milliseconds by the model's timings."""
    context: int = Field(512, ge=1)
    """Tokens that steps see, for which a share of time is meant."""
    control: Controlled = "answer"
    limit: int | None = Field(None, ge=1)
    """Questions per task (per subject of MMLU); None: all."""
    fewshot: int | None = Field(None, ge=0)
    """Examples before each question; None: as the task says."""
    batch: int = Field(16, ge=1)
    seed: int = 0


def evaluate_tasks(
    lm: LanguageModel,
    tasks: dict[str, dict[str, Task]],
    settings: TaskSettings,
    space: ActionSpace | None = None,
    rivals: Mapping[str, Arm] | None = None,
    partial: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    tuning: TokenStream | None = None,
) -> TaskResult:
    """Dense, then per budget the policy, uniform, allocated and `rivals` at what the policy realised, and for
    net keeps random ones.

    Without a policy the schedules get the budget itself, in `space`. Where the sparsity has an allocation, all arms
    but uniform follow it. partial: a file of finished runs, so that an interrupted evaluation goes on. progress:
    called with questions answered and in all, where each counts once per run. tuning: the text that `rivals` were
    fitted to. Raises `SolmError` for more examples than a task has.
    """
    check_examples(tasks, settings.fewshot)
    space = lm.space if space is None else space
    offer = lm.budgets(lm.policy("static", space))
    in_time = settings.currency == "time"
    budgets = [
        offer.budget(BudgetRequest("compute" if in_time else "keep", share), settings.context)
        for share in settings.budgets
    ]
    arms = static_arms(lm, space) | ({} if in_time else {"random": Arm(Random(space))}) | dict(rivals or {})
    asked = fingerprint(tasks)
    text = "" if tuning is None else tuning.fingerprint
    key = resume_key(lm, settings, space, asked, text, *arm_fingerprints(arms))
    parts = Parts(partial, key)
    questions = {name: sum(_questions(task, settings.limit) for task in tasks[name].values()) for name in tasks}
    total = sum(questions.values()) * (1 + len(budgets) * (len(arms) + (lm.trained is not None)))
    done = 0

    def run(task: str, name: str, arm: Arm, net: float, budget: Budget) -> dict[str, Any]:
        nonlocal done

        def ask() -> dict[str, Any]:
            progress(done, total)  # a run that is known already is not shown: the time left is that of the others
            under = model.under(
                arm.policy, budget, arm.sparsity,
                lambda some, most: progress(done + questions[task] * some // most, total),
            )  # fmt: skip
            return _ask(under, tasks[task], settings)

        found: dict[str, Any] = parts.get(f"{task}/{name}@{net:g}", ask)
        done += questions[task]
        return found

    points = []
    for task in tasks:
        # All arms share what was prefilled for the task's questions.
        model = ControlledLM(
            lm, policy=Dense(space), context=settings.context, seed=settings.seed, batch_size=settings.batch,
            control=settings.control, keep=True, bars=False,
        )  # fmt: skip
        found = run(task, "dense", Arm(Dense(space)), 1.0, Budget())
        points.append(_point(task, "dense", 1.0, found, None))
        for net, budget in zip(settings.budgets, budgets, strict=True):
            policy = None
            if lm.trained is not None:
                policy = run(task, "policy", Arm(lm.policy("policy")), net, budget)
                points.append(_point(task, "policy", net, policy, None))
                budget = Budget.of([policy["realised"][axis] for axis in AXES])
                points[-1].differences = _differences(policy["answers"], found["answers"])
            for name, arm in arms.items():
                points.append(_point(task, name, net, run(task, name, arm, net, budget), policy))
    told = settings.model_dump(mode="json") | {
        "model": lm.name, "backend": lm.backend.name, "dtype": lm.backend.dtype, "space": space.model_dump(mode="json"),
        "sparsity": lm.sparsity.model_dump(mode="json", exclude={"thresholds"}),
        "thresholds": lm.sparsity.thresholds is not None,
    }  # fmt: skip
    provenance = {} if lm.trained is None else lm.trained.config.provenance
    return TaskResult(
        command=command_line(), settings=told, environment=environment(), points=points, policy=provenance,
        data_fingerprint=asked,
    )  # fmt: skip


def check_examples(tasks: dict[str, dict[str, Task]], fewshot: int | None) -> None:
    """Raises `SolmError` where `fewshot` examples before each question are more than a task has."""
    for name, task in ((name, task) for members in tasks.values() for name, task in members.items()):
        sampler: Any = getattr(task, "sampler", None)
        if sampler is None or fewshot is None:
            continue
        # A random draw takes one more, in case the question itself is among them.
        most = max(0, len(sampler.df) - (type(sampler) is ContextSampler))
        if fewshot > most:
            raise SolmError(f"{fewshot} is out of range: the task {name} has {most} examples")


def _questions(task: Task, limit: int | None) -> int:
    """How many questions of a task are asked."""
    held = len(task.eval_docs)
    return held if limit is None else min(limit, held)


def fingerprint(tasks: dict[str, dict[str, Task]]) -> str:
    """Of every question that the tasks have."""
    digest = hashlib.sha256()
    for name in sorted(tasks):
        for part in sorted(tasks[name]):
            digest.update(f"{name}/{part}".encode())
            for document in tasks[name][part].eval_docs:
                digest.update(json.dumps(document, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def _ask(model: ControlledLM, tasks: dict[str, Task], settings: TaskSettings) -> dict[str, Any]:
    """What one arm answers: numbers per question, requested and realised shares."""
    for task in tasks.values():
        task.set_fewshot_seed(settings.seed)
        if settings.fewshot is not None:
            task.set_config(key="num_fewshot", value=settings.fewshot)
    with _without_bars_of_tasks():
        found: Any = lm_eval_evaluate(
            model, {"tasks": tasks, "groups": {}, "group_map": {}}, limit=settings.limit, bootstrap_iters=0
        )
    answers: Answers = {metric: [] for metric in METRICS}
    for name in tasks:
        for sample in sorted(found["samples"][name], key=lambda sample: sample["doc_id"]):
            for metric, value in _answer(tasks[name], sample).items():
                answers[metric].append(value)
    compute = model.compute
    return {
        "answers": {metric: values for metric, values in answers.items() if values},
        "requested": compute.requested,
        "realised": compute.realised,
    }


@contextmanager
def _without_bars_of_tasks() -> Iterator[None]:
    """lm-eval shows a bar for the prompts of every task, 57 of MMLU, which take no time to make."""
    bar = lm_eval.api.task.tqdm
    lm_eval.api.task.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = bar


def _answer(task: Task, sample: dict[str, Any]) -> dict[str, float]:
    """The metrics of one question."""
    scores = [float(response[0][0]) for response in sample["resps"]]
    values: dict[str, float] = {metric: float(sample[metric]) for metric in ("acc", "acc_norm") if metric in sample}
    if task.OUTPUT_TYPE == "multiple_choice":
        gold = _gold(task, sample)
        others = [score for index, score in enumerate(scores) if index != gold]
        values["margin"] = scores[gold] - max(others)
    elif task.OUTPUT_TYPE == "loglikelihood":
        values["margin"] = scores[0]
    else:
        raise SolmError(f"task {task.config.task} asks for {task.OUTPUT_TYPE}; only likelihood tasks can be compared")
    return values


def _gold(task: Task, sample: dict[str, Any]) -> int:
    """The place of the right choice among those of a question, as lm-eval finds it; raises `SolmError` for none."""
    choices: list[str] = task.doc_to_choice(sample["doc"])
    # Where choices differ in their beginning, the text that follows is the target, and the choice in place of the text.
    target = task.doc_to_text(sample["doc"]) if getattr(task, "multiple_input", False) else sample["target"]
    gold = target
    if isinstance(target, str):
        gold = choices.index(target) if target in choices else int(target) if target.isdigit() else None
    if not isinstance(gold, int) or not 0 <= gold < len(choices):
        raise SolmError(f"task {task.config.task} has the target {target!r}, none of its {len(choices)} choices")
    return gold


def _point(task: str, arm: str, net: float, found: dict[str, Any], policy: dict[str, Any] | None) -> TaskPoint:
    answers = found["answers"]
    return TaskPoint(
        task=task,
        arm=arm,
        budget=net,
        questions=len(answers["margin"]),
        scores={metric: math.fsum(values) / len(values) for metric, values in answers.items()},
        requested=found["requested"],
        realised=found["realised"],
        differences={} if policy is None else _differences(policy["answers"], answers),
    )


def _differences(ours: Answers, theirs: Answers) -> dict[str, Difference]:
    return {
        metric: Difference(**paired_difference(np.array(values), np.array(theirs[metric]))._asdict())
        for metric, values in ours.items()
    }
