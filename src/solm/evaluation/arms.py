"""Arms of a comparison, and those that need measurements of their own: tuned and oracle."""

from dataclasses import dataclass

import numpy as np
import torch

from solm.backends.session import AnyPolicy
from solm.core.actions import FULL_BITS, ActionSpace
from solm.core.cost import equal_mlp
from solm.core.sparsity import SparsityConfig
from solm.data.windows import TokenStream
from solm.policies.priced import LevelCosts, PricedPolicy, price_curves
from solm.policies.schedules import BlindSchedule, Observation, Static, static, take, two_levels
from solm.runtime.language_model import LanguageModel
from solm.runtime.level_costs import expected_costs

_TUNING_TEXTS, _TUNING_BATCH = 24, 8
TUNING_LENGTH = 128
"""Tokens of a text that `tuned` measures, unless told otherwise."""


@dataclass(frozen=True)
class Arm:
    """One way to spend a budget.

    sparsity: how its actions are carried out, where it is not as for the other arms.
    """

    policy: AnyPolicy
    sparsity: SparsityConfig | None = None


def static_arms(lm: LanguageModel, space: ActionSpace) -> dict[str, Arm]:
    """Two levels mixed to meet a budget: `uniform`, every layer alike with exact numbers of channels, and, where the
    model has an allocation, `allocated`, by the allocation and the thresholds that the model has."""
    if lm.sparsity.allocation is None:
        return {"uniform": Arm(Static(space), lm.sparsity.exact)}
    plain, same = lm.sparsity.exact.under(None), space
    if lm.sparsity.allocation.hidden is not None:  # without its curves, levels of one name realise other shares
        alike = sorted({equal_mlp(level, lm.sparsity, plain, lm.shapes) for level in space.mlp})
        same = space.model_copy(update={"mlp": tuple(alike)})
    return {"allocated": Arm(static(space, lm.sparsity)), "uniform": Arm(Static(same), plain)}


class Oracle(PricedPolicy):
    """Buys by level costs that were measured on the very tokens it decides about: a ceiling, not a policy.

    costs: per axis [N, Q, levels] of the N rows and Q steps that it will see, from the first step on, some at a time.
    """

    def __init__(self, space: ActionSpace, costs: LevelCosts):
        self._costs, self._seen = costs, 0
        super().__init__(space, 0, price_curves(space, self.training_costs))

    @property
    def training_costs(self) -> LevelCosts:
        return LevelCosts(*(axis.flatten(0, 1) for axis in self._costs))

    def costs(self, hidden: torch.Tensor, before: torch.Tensor) -> LevelCosts:
        first, self._seen = self._seen, self._seen + hidden.shape[1]
        return LevelCosts(*(axis[:, first : self._seen] for axis in self._costs))


class Tuned(BlindSchedule):
    """The best constant action, or mixture of two, of the same net keep, chosen on other texts.

    nats: [A] what every action of the space costs there.
    """

    def __init__(self, space: ActionSpace, nats: torch.Tensor):
        super().__init__(space)
        shares = space.table.clone()
        shares[:, 2] /= FULL_BITS
        self.actions = lower_hull(shares.mean(1), nats).numpy()

    def act(self, observation: Observation) -> np.ndarray:
        levels = self.space.levels[self.actions].T
        ledger, on = observation.ledger, observation.controllable
        shares = np.stack([axis[:, index] for axis, index in zip(observation.levels, levels, strict=True)], -1)
        lower, upper = two_levels(shares.mean(-1), observation.target.mean(1))
        counted = (shares * on[:, None]).mean(-1)
        owed = (observation.target * (ledger.steps + on) - ledger.spent).mean(1)
        take_upper = abs(take(counted, upper) - owed) < abs(take(counted, lower) - owed)
        return self.actions[np.where(take_upper, upper, lower)]


def tuned(
    lm: LanguageModel,
    tuning: TokenStream,
    space: ActionSpace,
    context: int = 512,
    length: int = TUNING_LENGTH,
    seed: int = 0,
) -> Tuned:
    """`Tuned` after measuring every level as a constant on a few texts of `tuning`."""
    windows = tuning.spaced(_TUNING_TEXTS, context + length + 1, torch.Generator().manual_seed(seed))
    parts = []
    for batch in windows.split(_TUNING_BATCH):
        session = lm.session(capacity=context)
        session.prefill(batch[:, :context])
        parts.append(expected_costs(session, batch[:, context:], space))
    return Tuned(space, tuned_nats(LevelCosts(*(torch.cat(axis) for axis in zip(*parts, strict=True)))))


def tuned_nats(costs: LevelCosts) -> torch.Tensor:
    """What every action of the space costs per token [A], the axes' costs added, from level costs [N, T, levels]."""
    attention, mlp, bits = (axis.mean((0, 1)) for axis in costs)
    return (attention[:, None, None] + mlp[:, None] + bits).flatten()


def lower_hull(cost: torch.Tensor, nats: torch.Tensor) -> torch.Tensor:
    """Indices of the points on the lower convex hull of nats over cost, by rising cost; it falls all the way."""
    kept: list[int] = []
    for index in torch.argsort(cost, stable=True).tolist():
        while kept and float(nats[index]) <= float(nats[kept[-1]]) and float(cost[index]) <= float(cost[kept[-1]]):
            kept.pop()
        while len(kept) > 1 and _slope(cost, nats, kept[-2], kept[-1]) >= _slope(cost, nats, kept[-2], index):
            kept.pop()
        kept.append(index)
    while len(kept) > 1 and float(nats[kept[-1]]) >= float(nats[kept[-2]]):
        kept.pop()
    return torch.tensor(kept)


def _slope(cost: torch.Tensor, nats: torch.Tensor, first: int, second: int) -> float:
    return float((nats[second] - nats[first]) / (cost[second] - cost[first]).clamp(min=1e-12))
