"""Perplexity at matched budget: dense, policy, uniform, allocated, random and others, on the same tokens."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field

from solm.backends.results import Scored
from solm.backends.session import AnyPolicy
from solm.core.actions import AXES, ActionSpace
from solm.core.budget import Budget, BudgetRequest, Ledger
from solm.core.cost import relative_bytes
from solm.core.errors import BudgetError, DataError
from solm.core.files import Parts
from solm.core.provenance import command_line, environment
from solm.evaluation.arms import Arm, static_arms
from solm.evaluation.result import (
    SCHEMA_VERSION,
    Difference,
    EvaluationResult,
    Point,
    paired_difference,
    shares_of,
)
from solm.evaluation.texts import TokenStream
from solm.policies.schedules import Dense
from solm.runtime.language_model import LanguageModel

Means = dict[str, list[float]]
"""Of an arm, by name the means per token of every text: ``nats``, the shares by axis, ``bytes``, and where they were
measured ``ms`` and ``divergence``."""
Measured = dict[str, Means]
"""By arm and budget, such as ``policy@0.8``, and ``dense`` alone."""
_LOGITS, _MOST_LOGITS = 1 << 26, 1 << 28
"""Numbers of dense logits that are kept for divergences: of several texts together, and of a single text at most (256
MiB and 1 GiB in float32)."""
_FORM = "5"
"""Of partial results: another number for every change of what they hold."""


class EvaluationSettings(BaseModel, frozen=True, extra="forbid"):
    """What is measured: `texts` texts of `context` dense and `length` controlled tokens."""

    budgets: tuple[float, ...] = Field(min_length=1)
    currency: Literal["keep", "time"] = "keep"
    """What budgets are: net keeps, or shares of the dense step's milliseconds by the model's timings."""
    texts: int = Field(64, ge=1)
    context: int = Field(512, ge=1)
    length: int = Field(128, ge=1)
    seed: int = 0
    batch: int = Field(8, ge=1)
    """Texts that share a pass; fewer where their dense logits take much memory."""


def evaluate(
    lm: LanguageModel,
    streams: list[TokenStream],
    settings: EvaluationSettings,
    space: ActionSpace | None = None,
    partial: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    rivals: Mapping[str, AnyPolicy | Arm] | None = None,
) -> EvaluationResult:
    """Compare all arms at every budget, on as many texts from each of `streams`.

    All baselines and the rivals get, per text and axis, the average that the policy *realised* (without a policy: the
    budget itself, in `space`), so that all take equal milliseconds, those under thresholds nearly so. Where the
    sparsity has an allocation, all arms but uniform, teal and upper-bits follow it; where it has thresholds, uniform,
    constant and upper-bits keep exact numbers of channels. partial: a file that holds finished batches, so that an
    interrupted evaluation goes on. progress: called with batches done and in all. rivals: more policies and baselines,
    by name.
    """
    space = lm.space if space is None else space
    budgets = _budgets(lm, space, settings)
    windows = held_out_windows(streams, settings)
    together = _LOGITS // (settings.length * lm.shapes.vocabulary)
    batches = windows.split(max(1, min(settings.batch, together)))
    arms = static_arms(lm, space) | {
        name: rival if isinstance(rival, Arm) else Arm(rival) for name, rival in (rivals or {}).items()
    }
    parts = Parts(partial, resume_key(lm, settings, space, streams, arms))
    finished: list[Measured] = []
    for index, batch in enumerate(batches):
        made = parts.get(str(index), lambda b=batch: _run_batch(lm, b, budgets, space, settings, arms))  # type: ignore[misc]
        finished.append(made)
        progress(index + 1, len(batches))
    means = {
        arm: {name: np.concatenate([part[arm][name] for part in finished]) for name in of_arm}
        for arm, of_arm in finished[0].items()
    }
    return EvaluationResult(
        command=command_line(),
        settings={
            **settings.model_dump(mode="json"),
            "model": lm.name,
            "backend": lm.backend.name,
            "dtype": lm.backend.dtype,
            "data": ", ".join(stream.name for stream in streams),
            "space": space.model_dump(mode="json"),
            "sparsity": lm.sparsity.model_dump(mode="json", exclude={"thresholds"}),
            "thresholds": lm.sparsity.thresholds is not None,
        },
        environment=environment(),
        data_fingerprint="-".join(stream.fingerprint for stream in streams),
        points=_points(means, settings),
        policy={} if lm.trained is None else lm.trained.config.provenance,
    )


def _budgets(lm: LanguageModel, space: ActionSpace, settings: EvaluationSettings) -> list[Budget]:
    """The budgets of the settings per axis. Raises `BudgetError` for one that cannot be met or is given twice."""
    offered, middle = lm.budgets(lm.policy("static", space)), settings.context + settings.length // 2
    if settings.currency == "time":
        offered.time_floor(middle)  # raises where nothing was measured
    if len(set(settings.budgets)) < len(settings.budgets):
        raise BudgetError(f"budgets {settings.budgets} name one value twice")
    kind: Literal["compute", "keep"] = "compute" if settings.currency == "time" else "keep"
    return [offered.budget(BudgetRequest(kind, share), middle) for share in settings.budgets]


def held_out_windows(streams: list[TokenStream], settings: EvaluationSettings) -> torch.Tensor:
    """`texts` windows [texts, context + length + 1], the same number from every stream (within one).

    Raises `DataError` where a stream has no room for its share.
    """
    length = settings.context + settings.length + 1
    parts = []
    for stream, share in zip(streams, shares_of(settings.texts, len(streams)), strict=True):
        windows = stream.spaced(share, length, torch.Generator().manual_seed(settings.seed))
        if len(windows) < share:
            raise DataError(
                f"{stream.name} has room for {len(windows)} texts of {length} tokens, {share} were asked for"
            )
        parts.append(windows)
    return torch.cat(parts)


def resume_key(
    lm: LanguageModel, settings: BaseModel, space: ActionSpace, streams: list[TokenStream], arms: Mapping[str, Arm]
) -> str:
    """The sha256 of all that a result of `lm` depends on: model, policy, timings, settings, texts and arms."""
    known: list[BaseModel | None] = [settings, space, lm.space, lm.identity, lm.sparsity, lm.timings]
    texts = [str(SCHEMA_VERSION), _FORM, lm.backend.name, lm.backend.dtype, _network(lm.trained)]
    texts += ["" if one is None else one.model_dump_json() for one in known]
    texts += [stream.fingerprint for stream in streams]
    for name, arm in sorted(arms.items()):
        rules = [None if one is None else one.model_dump_json() for one in (arm.policy.space, arm.sparsity)]
        texts += [name, type(arm.policy).__name__, *map(str, rules), str(arm.order), _network(arm.policy)]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _network(policy: Any) -> str:
    """The sha256 of a policy's network, its sizes and its weights; nothing for what has none."""
    network = getattr(policy, "network", None)
    if network is None:
        return ""
    digest = hashlib.sha256(network.config.model_dump_json().encode())
    for tensor in network.state_dict().values():
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _run_batch(
    lm: LanguageModel,
    windows: torch.Tensor,
    budgets: list[Budget],
    space: ActionSpace,
    settings: EvaluationSettings,
    arms: dict[str, Arm],
) -> Measured:
    """What every arm loses and spends on one batch."""
    context, count = settings.context, len(budgets)
    session = lm.session(capacity=context)
    session.prefill(windows[:, :context])
    tokens = windows[:, context:]
    targets = torch.tensor([budget.shares for budget in budgets], dtype=torch.float64).repeat(len(windows), 1)
    keep = len(windows) * settings.length * lm.shapes.vocabulary <= _MOST_LOGITS
    predicted: torch.Tensor | None = None

    def run(arm: Arm, target: torch.Tensor, keep_logits: bool = False) -> Scored:
        forks = len(target) // len(windows)
        forked = session.fork(forks, settings.length + lm.sparsity.page_size, arm.sparsity)
        forked.control(arm.policy, target, settings.length)
        repeated, schedule = tokens.repeat_interleave(forks, 0), None
        if arm.order is not None:
            decided = run(replace(arm, order=None), target).actions
            draw = torch.Generator().manual_seed(arm.order + int(tokens.sum()))
            shuffled = decided.gather(1, torch.rand(decided.shape, generator=draw).argsort(1))
            schedule = arm.policy.space.numbers[shuffled.numpy()]
        return forked.score(repeated, schedule, reference=predicted, keep_logits=keep_logits)

    def file(name: str, arm: Arm, scored: Scored) -> None:
        """Under one name per budget, between which the rows of an arm alternate."""
        means = _means(lm, arm, scored, settings)
        for position, budget in enumerate(settings.budgets):
            measured[f"{name}@{budget}"] = {what: values[position::count] for what, values in means.items()}

    measured: Measured = {}
    dense = Arm(Dense(space))
    scored = run(dense, targets[: len(windows)], keep)
    measured["dense"] = _means(lm, dense, scored, settings)
    predicted = scored.logits
    if lm.trained is not None:
        decides = Arm(lm.policy("policy"))
        scored = run(decides, targets)
        file("policy", decides, scored)
        targets = _averages(scored)
    for name, arm in arms.items():
        file(name, arm, run(arm, targets))
    return measured


def _averages(scored: Scored) -> torch.Tensor:
    """Realised average per row and axis over controllable steps [N, axes]; 1 where there is none."""
    average: torch.Tensor = Ledger((scored.realised * scored.controllable).sum(1), scored.controllable.sum(1)).average
    return average


def _means(lm: LanguageModel, arm: Arm, scored: Scored, settings: EvaluationSettings) -> Means:
    """What the steps of an arm lost and took; of bytes the policy's weights are a part."""
    shares = torch.where(scored.controllable, scored.realised, 1.0).double().cpu().numpy()
    seen, sparsity = settings.context + 1 + np.arange(settings.length), arm.sparsity or lm.sparsity
    found = {"nats": -scored.log_probabilities.double().mean(1).cpu()}
    found |= dict(zip(AXES, _averages(scored).unbind(1), strict=True))
    found["bytes"] = relative_bytes(shares, seen, lm.shapes, sparsity, lm.overhead(arm.policy)).mean(1)
    if lm.timings is not None:
        found["ms"] = lm.timings.milliseconds(shares, seen).mean(1)
    if scored.divergences is not None:
        found["divergence"] = scored.divergences.double().mean(1).cpu()
    elif scored.logits is not None:  # the dense arm itself
        found["divergence"] = torch.zeros(len(shares))
    return {name: values.tolist() for name, values in found.items()}


def _points(means: dict[str, dict[str, np.ndarray]], settings: EvaluationSettings) -> list[Point]:
    """The points of all arms, at every budget in turn. For budgets in time the dense arm is repeated at each, with the
    policy's difference to it; at a budget of 1 a policy takes dense steps, so that the difference is 0."""
    tokens, dense = len(means["dense"]["nats"]) * settings.length, means["dense"]
    repeated = settings.currency == "time" and any(name.startswith("policy@") for name in means)
    found = [_point("dense", 1.0, dense, tokens, dense if repeated else None)]
    for budget in settings.budgets:
        arms = {name.rpartition("@")[0]: of_arm for name, of_arm in means.items() if name.endswith(f"@{budget}")}
        policy = arms.pop("policy", None)
        if policy is not None:
            found.append(_point("policy", budget, policy, tokens))
            arms = {"dense": dense, **arms} if repeated else arms
        found += [_point(arm, budget, of_arm, tokens, policy) for arm, of_arm in arms.items()]
    return found


def _point(
    arm: str, budget: float, means: dict[str, np.ndarray], tokens: int, policy: dict[str, np.ndarray] | None = None
) -> Point:
    averages = {name: float(values.mean()) for name, values in means.items()}
    axes = {axis: averages[axis] for axis in AXES}
    nominal = sum(axes.values()) / len(AXES)
    spread = paired_difference(means["nats"], np.zeros(len(means["nats"])))

    def difference(name: str) -> Difference | None:
        return paired_difference(policy[name], means[name]) if policy is not None and name in means else None

    return Point(
        arm=arm, budget=budget, realised=nominal, axes=axes, cost={"nominal": nominal, "bytes": averages["bytes"]},
        step_ms=averages.get("ms"), nats=averages["nats"], low=spread.low, high=spread.high,
        perplexity=float(np.exp(averages["nats"])), tokens=tokens, difference=difference("nats"),
        divergence=averages.get("divergence"), divergence_difference=difference("divergence"),
    )  # fmt: skip
