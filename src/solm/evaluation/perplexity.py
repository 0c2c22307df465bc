"""Perplexity at matched budget: dense, policy, static, random and the best of N random trials on the same tokens."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from solm.actions import AXES, ActionSpace
from solm.budget import Budget
from solm.cost import relative_cost
from solm.data.windows import TokenStream
from solm.decoding.drive import Episode, teacher_forced
from solm.decoding.language_model import LanguageModel
from solm.decoding.levels import level_gains
from solm.decoding.session import Session
from solm.errors import BudgetError, DataError
from solm.evaluation.arms import Oracle, tuned_static
from solm.evaluation.result import Difference, EvaluationResult, Point, command_line, environment
from solm.evaluation.statistics import expected_best, paired_difference
from solm.files import write_json
from solm.policies.observation import Policy
from solm.policies.prices import Allocator
from solm.policies.schedules import Dense, Random, Static

Rows = dict[str, list[list[float]]]


class EvaluationSettings(BaseModel):
    """What is measured: `sequences` texts of `context` dense and `length` controlled tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budgets: tuple[float, ...] = Field(min_length=1)
    sequences: int = Field(64, ge=1)
    context: int = Field(512, ge=1)
    length: int = Field(128, ge=1)
    trials: int = Field(8, ge=1)
    """Random schedules per sequence; whole-set trials, of which the best is an arm of its own."""
    seed: int = 0
    batch: int = Field(8, ge=1)
    """Sequences that share a pass."""
    oracle: bool = False
    """Also measure the ceiling: every level on every token, then the schedule that these answers suggest."""
    best_of: int = Field(500, ge=2)
    """Whole-set random trials whose best is estimated from the spread of those that were run."""


def evaluate(
    lm: LanguageModel,
    streams: list[TokenStream],
    settings: EvaluationSettings,
    space: ActionSpace | None = None,
    partial: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    tuning: TokenStream | None = None,
    rivals: Mapping[str, Policy | Allocator] | None = None,
) -> EvaluationResult:
    """Compare all arms at every budget, on as many texts from each of `streams`.

    Static, random and the rivals get, per sequence and axis, the average that the policy *realised* (without a
    policy: the budget itself, in `space`); static-tuned gets its net keep. partial: a file that holds finished
    batches, so that an interrupted evaluation goes on. progress: called with batches done and in all. tuning: text to
    choose static-tuned on, which is left out without it. rivals: more policies over the same space.
    """
    space = lm.space if space is None else space
    budgets = [Budget.from_net(net, space) if lm.trained is None else lm.budget(net) for net in settings.budgets]
    if len(set(settings.budgets)) < len(budgets):
        raise BudgetError(f"budgets {settings.budgets} name one value twice")
    windows = held_out_windows(streams, settings)
    batches = windows.split(settings.batch)
    key = _key(lm, streams, settings, space, sorted(rivals or {}), tuning)
    arms: dict[str, Policy | Allocator] = {"static": Static(space), **(rivals or {})}
    if tuning is not None:
        arms["static-tuned"] = tuned_static(lm, tuning, space, settings.context, settings.length, settings.seed)
    finished = _read_partial(partial, key)
    for index, batch in enumerate(batches):
        if index >= len(finished):
            finished.append(_batch_rows(lm, batch, budgets, space, settings, index, arms))
            if partial is not None:
                write_json(partial, {"key": key, "batches": finished})
        progress(index + 1, len(batches))
    rows = {arm: np.concatenate([np.array(batch[arm]) for batch in finished]) for arm in finished[0]}
    result = EvaluationResult(
        command=command_line(),
        settings={
            **settings.model_dump(mode="json"),
            "model": lm.name,
            "backend": "reference" if lm.engine is None else f"native, {lm.engine.precision}",
            "dtype": str(lm.model.dtype).removeprefix("torch."),
            "data": ", ".join(stream.name for stream in streams),
            "space": space.model_dump(mode="json"),
            "semantics": lm.semantics.model_dump(mode="json"),
        },
        environment=environment(),
        data_fingerprint="-".join(stream.fingerprint for stream in streams),
        points=_points(lm, rows, settings),
        policy={} if lm.trained is None else lm.trained.config.provenance,
    )
    if partial is not None:
        partial.unlink(missing_ok=True)
    return result


def held_out_windows(streams: list[TokenStream], settings: EvaluationSettings) -> torch.Tensor:
    """`sequences` windows [sequences, context + length + 1], the same number from every stream (within one).

    Raises `DataError` where a stream has no room for its share.
    """
    length = settings.context + settings.length + 1
    parts = []
    for index, stream in enumerate(streams):
        share = (settings.sequences + len(streams) - 1 - index) // len(streams)
        windows = stream.spaced(share, length, torch.Generator().manual_seed(settings.seed))
        if len(windows) < share:
            raise DataError(
                f"{stream.name} has room for {len(windows)} sequences of {length} tokens, {share} were asked for"
            )
        parts.append(windows)
    return torch.cat(parts)


def _key(
    lm: LanguageModel,
    streams: list[TokenStream],
    settings: EvaluationSettings,
    space: ActionSpace,
    rivals: list[str],
    tuning: TokenStream | None,
) -> str:
    """What a partial result must agree in to be continued."""
    weights = (
        []
        if lm.trained is None
        else [t.detach().cpu().numpy().tobytes() for t in lm.trained.network.state_dict().values()]
    )
    parts = [settings.model_dump_json(), lm.identity.model_dump_json(), lm.semantics.model_dump_json()]
    parts += [*(stream.fingerprint for stream in streams), str(lm.model.dtype), space.model_dump_json(), *rivals]
    parts.append("" if tuning is None else tuning.fingerprint)
    return hashlib.sha256("".join(parts).encode() + b"".join(weights)).hexdigest()


def _read_partial(path: Path | None, key: str) -> list[Rows]:
    if path is None or not path.exists():
        return []
    try:
        content = json.loads(path.read_text())
        return list(content["batches"]) if content["key"] == key else []
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        return []  # half-written or foreign: measured again


def _batch_rows(
    lm: LanguageModel,
    windows: torch.Tensor,
    budgets: list[Budget],
    space: ActionSpace,
    settings: EvaluationSettings,
    index: int,
    arms: dict[str, Policy | Allocator],
) -> Rows:
    """Per arm and sequence of one batch: nats, κ, ρ, b/16, cost in bytes and flops, all means per token."""
    context, count = settings.context, len(budgets)
    session = lm.session(capacity=context)
    session.prefill(windows[:, :context])
    tokens = windows[:, context:]
    targets = torch.tensor([budget.shares for budget in budgets], dtype=torch.float64).repeat(len(windows), 1)

    def run(policy: Policy | Allocator, target: torch.Tensor, purpose: int) -> tuple[Episode, list[list[float]]]:
        forks = len(target) // len(windows)
        forked = session.fork(forks, capacity=settings.length + lm.semantics.page_size)
        generator = torch.Generator().manual_seed((settings.seed * 100_003 + index) * 1_009 + purpose)
        episode = teacher_forced(forked, policy, tokens.repeat_interleave(forks, 0), target, generator)
        return episode, _row_means(lm, session, episode, settings)

    rows: Rows = {}
    _, rows["dense"] = run(Dense(space), targets[: len(windows)], 0)
    if lm.trained is not None:
        episode, ours = run(lm.policy("policy"), targets, 1)
        _spread(rows, "policy", ours, settings)
        targets = _averages(episode)
    for arm, blind in arms.items():
        _spread(rows, arm, run(blind, targets, 2)[1], settings)
    if settings.oracle:
        measured = [gains.repeat_interleave(count, 0) for gains in level_gains(session, tokens, space)]
        oracle = Oracle(space, (measured[0], measured[1], measured[2]))
        _spread(rows, "oracle", run(oracle, targets, 2)[1], settings)
    for trial in range(settings.trials):
        _spread(rows, f"random/{trial}", run(Random(space), targets, 3 + trial)[1], settings)
    assert all(len(arm) == len(windows) for arm in rows.values()), count
    return rows


def _spread(rows: Rows, arm: str, values: list[list[float]], settings: EvaluationSettings) -> None:
    """File the rows of an arm, which alternate between budgets, under one name per budget."""
    count = len(settings.budgets)
    for position, budget in enumerate(settings.budgets):
        rows[f"{arm}@{budget}"] = values[position::count]


def _averages(episode: Episode) -> torch.Tensor:
    """Realised average per row and axis over controllable steps [N, 3]; 1 where there is none."""
    counted = episode.controllable
    sums = (episode.realised * counted[..., None]).sum(1)
    return torch.where(counted.any(1)[:, None], sums / counted.sum(1, keepdim=True).clamp(min=1), 1.0)


def _row_means(lm: LanguageModel, parent: Session, episode: Episode, settings: EvaluationSettings) -> list[list[float]]:
    nats = -episode.log_probabilities.double().mean(1).cpu()
    axes = _averages(episode)
    kv_length = settings.context + 1 + torch.arange(settings.length)
    shares = torch.where(episode.controllable[..., None], episode.realised, 1.0)
    cost = [
        relative_cost(shares, kv_length, lm.control.shapes, lm.semantics, model).mean(1) for model in ("bytes", "flops")
    ]
    return torch.cat([nats[:, None], axes, torch.stack(cost, 1)], 1).tolist()


def _points(lm: LanguageModel, rows: dict[str, np.ndarray], settings: EvaluationSettings) -> list[Point]:
    tokens = settings.sequences * settings.length
    points = [_point("dense", 1.0, rows["dense"], tokens)]
    for budget in settings.budgets:
        policy = rows.get(f"policy@{budget}")
        trials = [rows[f"random/{trial}@{budget}"] for trial in range(settings.trials)]
        names = [name.partition("@")[0] for name in rows if name.endswith(f"@{budget}")]
        others = [name for name in names if name != "policy" and "/" not in name]
        arms: dict[str, Any] = {name: rows[f"{name}@{budget}"] for name in others}
        arms["random"] = np.mean(trials, axis=0)
        arms[f"best-of-{settings.trials}-random"] = min(trials, key=lambda trial: trial[:, 0].mean())
        if len(trials) > 1:
            lucky = arms["random"].copy()
            lucky[:, 0] -= expected_best(np.stack([trial[:, 0] for trial in trials]), settings.best_of)
            arms[f"best-of-{settings.best_of}-random-estimated"] = lucky
        if policy is not None:
            points.append(_point("policy", budget, policy, tokens))
        points += [_point(arm, budget, values, tokens, policy) for arm, values in arms.items()]
    return points


def _point(arm: str, budget: float, rows: np.ndarray, tokens: int, policy: np.ndarray | None = None) -> Point:
    nats, *axes = rows[:, :4].mean(0).tolist()
    spread = paired_difference(rows[:, 0], np.zeros(len(rows)))
    difference = None
    if policy is not None:
        difference = Difference(**paired_difference(policy[:, 0], rows[:, 0])._asdict())
    nominal = sum(axes) / 3
    return Point(
        arm=arm,
        budget=budget,
        realised=nominal,
        axes=dict(zip(AXES, axes, strict=True)),
        cost={"nominal": nominal, "bytes": float(rows[:, 4].mean()), "flops": float(rows[:, 5].mean())},
        nats=nats,
        low=spread.low,
        high=spread.high,
        perplexity=float(np.exp(nats)),
        tokens=tokens,
        difference=difference,
    )
