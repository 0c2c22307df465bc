"""Perplexity at matched budget: dense, policy, uniform, allocated, random and the best of N, on the same tokens."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from solm.backends.results import Scored
from solm.backends.session import AnyPolicy
from solm.core.actions import ActionSpace
from solm.core.budget import Budget, BudgetRequest, Ledger
from solm.core.cost import CostModel, relative_cost
from solm.core.errors import BudgetError, DataError
from solm.core.files import Parts
from solm.core.provenance import command_line, environment
from solm.data.windows import TokenStream
from solm.evaluation.arms import Arm, Oracle, static_arms, tuned
from solm.evaluation.points import points, random_trials
from solm.evaluation.result import EvaluationResult
from solm.evaluation.resume import arm_fingerprints, resume_key
from solm.evaluation.sources import shares_of, text_facts
from solm.evaluation.use import Taken, action_use, examples
from solm.policies.priced import LevelCosts
from solm.policies.schedules import Dense, Random
from solm.runtime.language_model import LanguageModel
from solm.runtime.level_costs import measured_costs

Rows = dict[str, list[list[float]]]
_LOGITS, _MOST_LOGITS = 1 << 26, 1 << 28
"""Numbers of dense logits that are kept for divergences: of several texts together, and of a single text at most (256
MiB and 1 GiB in float32)."""


class _Batch(TypedDict):
    """What a partial result keeps of a batch of texts: what every arm spent and lost, and what the policy did."""

    rows: Rows
    taken: Taken | None


class EvaluationSettings(BaseModel):
    """What is measured: `texts` texts of `context` dense and `length` controlled tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budgets: tuple[float, ...] = Field(min_length=1)
    currency: Literal["keep", "time"] = "keep"
    """What budgets are: net keeps, or shares of the dense step's milliseconds by the model's timings."""
    texts: int = Field(64, ge=1)
    context: int = Field(512, ge=1)
    length: int = Field(128, ge=1)
    trials: int = Field(8, ge=0)
    """Random schedules of every text; whole-set trials, of which the best is an arm of its own."""
    seed: int = 0
    batch: int = Field(8, ge=1)
    """Texts that share a pass; fewer where their dense logits take much memory."""
    oracle: bool = False
    """Also measure the ceiling: every level on every token, then the schedule that these answers suggest."""
    best_of: int = Field(500, ge=2)
    """Whole-set random trials whose best is estimated from the spread of those that were run."""
    examples: int = Field(2, ge=0)
    """Texts whose tokens the result shows, with what the policy did at each."""


def evaluate(
    lm: LanguageModel,
    streams: list[TokenStream],
    settings: EvaluationSettings,
    space: ActionSpace | None = None,
    partial: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    tuning: TokenStream | None = None,
    rivals: Mapping[str, AnyPolicy | Arm] | None = None,
) -> EvaluationResult:
    """Compare all arms at every budget, on as many texts from each of `streams`.

    All baselines and the rivals get, per text and axis, the average that the policy *realised* (without a policy: the
    budget itself, in `space`), so that all take equal milliseconds, those under thresholds nearly so; tuned gets its
    net keep. Where the sparsity has an allocation, all arms but uniform, teal and upper-bits follow it; where it has
    thresholds, uniform, constant and upper-bits keep exact numbers of channels. partial: a file that holds finished
    batches, so that an interrupted evaluation goes on. progress: called with batches done and in all. tuning: text to
    choose tuned on, which is left out without it. rivals: more policies and baselines, by name.
    """
    space = lm.space if space is None else space
    offer = lm.budgets(lm.policy("static", space))
    middle = settings.context + settings.length // 2
    if settings.currency == "time":
        offer.time_floor(middle)  # raises where nothing was measured
    kind: Literal["compute", "keep"] = "compute" if settings.currency == "time" else "keep"
    budgets = [offer.budget(BudgetRequest(kind, share), middle) for share in settings.budgets]
    if len(set(settings.budgets)) < len(budgets):
        raise BudgetError(f"budgets {settings.budgets} name one value twice")
    if tuning is not None and tuning.fingerprint in {stream.fingerprint for stream in streams}:
        raise DataError(f"{tuning.name} is evaluated; baselines must be tuned on another text")
    windows = held_out_windows(streams, settings)
    together = _LOGITS // (settings.length * lm.shapes.vocabulary)
    batches = windows.split(max(1, min(settings.batch, together)))
    others = {name: rival if isinstance(rival, Arm) else Arm(rival) for name, rival in (rivals or {}).items()}
    key = resume_key(
        lm, settings, space, *(stream.fingerprint for stream in streams), "" if tuning is None else tuning.fingerprint,
        *arm_fingerprints(others),
    )  # fmt: skip
    arms = static_arms(lm, space) | others
    if tuning is not None:
        arms["tuned"] = Arm(tuned(lm, tuning, space, settings.context, settings.length, settings.seed))
    parts = Parts(partial, key)
    finished: list[_Batch] = []
    for index, batch in enumerate(batches):
        made = parts.get(str(index), lambda i=index, b=batch: _run_batch(lm, b, budgets, space, settings, i, arms))  # type: ignore[misc]
        finished.append(made)
        progress(index + 1, len(batches))
    rows = {arm: np.concatenate([np.array(part["rows"][arm]) for part in finished]) for arm in finished[0]["rows"]}
    taken = [part["taken"] for part in finished if part["taken"] is not None]
    tokens = windows[:, settings.context :]
    result = EvaluationResult(
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
        sources=text_facts(lm, streams, windows, rows["dense"][:, 0]),
        points=points(
            rows,
            settings.budgets,
            settings.trials,
            settings.best_of,
            windows.shape[0] * settings.length,
            settings.currency == "time",
        ),
        trials=random_trials(rows, settings.budgets, settings.trials),
        use=action_use(lm, taken, tokens, settings.budgets, settings.context),
        examples=examples(lm, taken, tokens, settings.budgets),
        policy={} if lm.trained is None else lm.trained.config.provenance,
    )
    return result


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


def _run_batch(
    lm: LanguageModel,
    windows: torch.Tensor,
    budgets: list[Budget],
    space: ActionSpace,
    settings: EvaluationSettings,
    index: int,
    arms: dict[str, Arm],
) -> _Batch:
    """Per arm and text of one batch: nats, κ, ρ, b/16, cost in bytes and flops and milliseconds, divergence, all means
    per token; and what the policy did."""
    context, count = settings.context, len(budgets)
    session = lm.session(capacity=context)
    session.prefill(windows[:, :context])
    tokens = windows[:, context:]
    targets = torch.tensor([budget.shares for budget in budgets], dtype=torch.float64).repeat(len(windows), 1)
    keep = len(windows) * settings.length * lm.shapes.vocabulary <= _MOST_LOGITS
    predicted: torch.Tensor | None = None

    def run(
        arm: Arm, target: torch.Tensor, purpose: int, keep_logits: bool = False
    ) -> tuple[Scored, list[list[float]]]:
        forks = len(target) // len(windows)
        forked = session.fork(forks, settings.length + lm.sparsity.page_size, arm.sparsity)
        seed, policy = (settings.seed * 100_003 + index) * 1_009 + purpose, arm.policy
        if isinstance(policy, Random):
            policy = Random(policy.space, seed)
        forked.control(policy, target, settings.length)
        scored = forked.score(tokens.repeat_interleave(forks, 0), reference=predicted, keep_logits=keep_logits)
        return scored, _row_means(lm, arm, scored, settings)

    rows: Rows = {}
    taken = None
    dense, rows["dense"] = run(Arm(Dense(space)), targets[: len(windows)], 0, keep)
    predicted = dense.logits
    if lm.trained is not None:
        decides = Arm(lm.policy("policy"))
        scored, ours = run(decides, targets, 1)
        _spread(rows, "policy", ours, settings)
        assert scored.actions is not None
        targets = _averages(scored)
        shown = 0 if index else min(settings.examples, len(windows)) * count
        taken = Taken(
            actions=scored.actions.tolist(),
            nats=(-scored.log_probabilities[:shown].double()).tolist(),
            cost=_costs(lm, decides, scored, settings, "bytes")[:shown].tolist(),
        )
    for name, arm in arms.items():
        _spread(rows, name, run(arm, targets, 2)[1], settings)
    if settings.oracle:
        costs = measured_costs(session, tokens, space)
        oracle = Oracle(space, LevelCosts(*(axis.repeat_interleave(count, 0) for axis in costs)))
        _spread(rows, "oracle", run(Arm(oracle), targets, 2)[1], settings)
    for trial in range(settings.trials):
        _spread(rows, f"random/{trial}", run(Arm(Random(space)), targets, 3 + trial)[1], settings)
    assert all(len(arm) == len(windows) for arm in rows.values()), count
    return _Batch(rows=rows, taken=taken)


def _spread(rows: Rows, arm: str, values: list[list[float]], settings: EvaluationSettings) -> None:
    """File the rows of an arm, which alternate between budgets, under one name per budget."""
    count = len(settings.budgets)
    for position, budget in enumerate(settings.budgets):
        rows[f"{arm}@{budget}"] = values[position::count]


def _averages(scored: Scored) -> torch.Tensor:
    """Realised average per row and axis over controllable steps [N, 3]; 1 where there is none."""
    average: torch.Tensor = Ledger((scored.realised * scored.controllable).sum(1), scored.controllable.sum(1)).average
    return average


def _shares(scored: Scored) -> torch.Tensor:
    """What every step realised [N, T, 3]; 1 where it could not be controlled."""
    return torch.where(scored.controllable, scored.realised, 1.0)


def _kv_length(settings: EvaluationSettings) -> torch.Tensor:
    """Keys that every step sees [T]."""
    return settings.context + 1 + torch.arange(settings.length)


def _costs(lm: LanguageModel, arm: Arm, scored: Scored, settings: EvaluationSettings, model: CostModel) -> torch.Tensor:
    """What every step of an arm costs as a share of the dense one [N, T]."""
    rules, overhead = arm.sparsity or lm.sparsity, lm.overhead(arm.policy)
    return relative_cost(_shares(scored), _kv_length(settings), lm.shapes, rules, model, overhead)


def _row_means(lm: LanguageModel, arm: Arm, scored: Scored, settings: EvaluationSettings) -> list[list[float]]:
    nats = -scored.log_probabilities.double().mean(1).cpu()
    cost = [_costs(lm, arm, scored, settings, model).mean(1) for model in ("bytes", "flops")]
    if lm.timings is None:
        cost.append(torch.full_like(nats, torch.nan))
    else:
        measured = lm.budgets().measured
        assert measured is not None
        taken = measured.milliseconds(_shares(scored).double().cpu().numpy(), _kv_length(settings).numpy())
        cost.append(torch.from_numpy(taken.mean(1)))
    if scored.divergences is not None:
        apart = scored.divergences.double().mean(1).cpu()
    else:  # the dense arm itself, or an arm without dense logits to compare with
        apart = torch.full_like(nats, torch.nan if scored.logits is None else 0)
    return torch.cat([nats[:, None], _averages(scored), torch.stack([*cost, apart], 1)], 1).tolist()
