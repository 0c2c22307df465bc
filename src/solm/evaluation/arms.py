"""Arms of a comparison, and those that need measurements of their own: tuned and oracle."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from solm.core.actions import FULL_BITS, ActionSpace
from solm.core.sparsity import SparsityConfig
from solm.data.windows import TokenStream
from solm.policies.priced import Gains, PricedPolicy, price_curves
from solm.policies.protocol import Observation, Policy
from solm.policies.schedules import BlindSchedule, Static
from solm.runtime.language_model import LanguageModel
from solm.runtime.level_costs import expected_gains

_TUNING_TEXTS, _TUNING_BATCH = 24, 8


@dataclass(frozen=True)
class Arm:
    """One way to spend a budget.

    sparsity: how its actions are carried out, where it is not as for the other arms. retarget: another split of the
    same net keep, from prompts [N, C] and the budget shares [N·K, 3] of their K rows each, adjacent.
    """

    policy: Policy | PricedPolicy
    sparsity: SparsityConfig | None = None
    retarget: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None


def static_arms(lm: LanguageModel, space: ActionSpace) -> dict[str, Arm]:
    """Two levels mixed to meet a budget: `uniform`, every layer alike, and, where the model has an allocation,
    `allocated`, the same by the allocation."""
    if lm.sparsity.allocation is None:
        return {"uniform": Arm(Static(space))}
    return {"allocated": Arm(Static(space)), "uniform": Arm(Static(space), lm.sparsity.under(None))}


class Oracle(PricedPolicy):
    """Allocates by gains that were measured on the very tokens it is used on: a ceiling, not a policy.

    gains: per axis [N, Q, levels] of the N rows and Q steps that it will see.
    """

    def __init__(self, space: ActionSpace, gains: Gains):
        flat = (gains[0].flatten(0, 1), gains[1].flatten(0, 1), gains[2].flatten(0, 1))
        super().__init__(space, 0, price_curves(space, flat))
        self._gains = gains

    def gains(self, hidden: torch.Tensor, before: torch.Tensor) -> Gains:
        return self._gains


class Tuned(BlindSchedule):
    """The best constant action, or mixture of two, of the same net keep: chosen on calibration text.

    nats: [A] what every action of the space costs there.
    """

    def __init__(self, space: ActionSpace, nats: torch.Tensor):
        super().__init__(space)
        shares = space.table.clone()
        shares[:, 2] /= FULL_BITS
        self.actions = lower_hull(shares.mean(1), nats)

    def act(
        self, observation: Observation, state: None, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, None]:
        levels = self.space.level_table[self.actions].unbind(1)
        net = torch.stack([axis[:, index] for axis, index in zip(observation.levels, levels, strict=True)]).mean(0)
        target = observation.target.mean(1, keepdim=True)
        below = ((net <= target + 1e-12).sum(1, keepdim=True) - 1).clamp(0, max(0, net.shape[1] - 2))
        above = (below + 1).clamp(max=net.shape[1] - 1)
        low, high = net.gather(1, below)[:, 0], net.gather(1, above)[:, 0]
        spent = observation.ledger.spent.mean(1)
        goal = target[:, 0] * (observation.ledger.steps + 1)
        take_high = (spent + high - goal).abs() < (spent + low - goal).abs()
        return self.actions[torch.where(take_high, above[:, 0], below[:, 0])], None


def tuned(
    lm: LanguageModel,
    tuning: TokenStream,
    space: ActionSpace,
    context: int = 512,
    length: int = 128,
    seed: int = 0,
) -> Tuned:
    """`Tuned` after measuring every level as a constant on a few texts of `tuning`."""
    windows = tuning.spaced(_TUNING_TEXTS, context + length + 1, torch.Generator().manual_seed(seed))
    parts = []
    for batch in windows.split(_TUNING_BATCH):
        session = lm.session(capacity=context)
        session.prefill(batch[:, :context])
        parts.append(expected_gains(session, batch[:, context:], space))
    attention, mlp, bits = (torch.cat(axis) for axis in zip(*parts, strict=True))
    return Tuned(space, tuned_nats((attention, mlp, bits)))


def tuned_nats(gains: Gains) -> torch.Tensor:
    """What every action of the space costs per token [A], the axes' costs added, from gains [N, T, levels]."""
    attention, mlp, bits = (-gain.mean((0, 1)) for gain in gains)
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
