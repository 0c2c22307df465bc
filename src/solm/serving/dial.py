"""From a request's `efficiency` to a policy and a budget."""

from dataclasses import dataclass, field

import numpy as np

from solm.backends.session import AnyPolicy
from solm.core.actions import FULL_BITS, ActionSpace
from solm.core.budget import Budget, BudgetLike, BudgetRequest
from solm.core.errors import BudgetError, SolmError
from solm.runtime.controlled import UNTRAINED
from solm.runtime.generate import asked_for
from solm.runtime.language_model import LanguageModel
from solm.serving.requests import Asked, AxisBudget, Efficiency

_LEAST = 1e-9
"""A share of bytes that nothing can meet."""


@dataclass(frozen=True)
class Order:
    """What a request asks for: the policy, the budget, and the floor below which the governor may not lower it.

    requested: the budget as answers report it, by axis with ``net`` and ``bytes``.
    """

    name: str
    policy: AnyPolicy
    budget: Budget
    floor: Budget
    requested: dict[str, float] = field(default_factory=dict)

    def target(self, dial: float) -> np.ndarray:
        """Target shares [3] float64 at `dial`: 0 is the floor, 1 the budget that was asked for."""
        low, high = self.floor.array(1)[0], self.budget.array(1)[0]
        return low + dial * (high - low)


class Dial:
    """The policies and budgets that one model offers.

    space: of the untrained policies, where no trained one is loaded. floor: what the governor never goes below, in any
    form of a budget. governed: there is a governor, so that a request without a budget may be lowered and is not dense.
    """

    def __init__(
        self,
        lm: LanguageModel,
        space: ActionSpace | None = None,
        floor: BudgetLike = None,
        governed: bool = False,
    ):
        self.lm, self.governed = lm, governed
        self.space = lm.space if lm.trained is not None else space or lm.space
        self.policies = {name: lm.policy(name, self.space) for name in UNTRAINED}
        if lm.trained is not None:
            self.policies = {"policy": lm.policy(), **self.policies}
        self.lowest = lm.offer(self.policies[self.default]).lowest_net
        self._floor = None if floor is None else BudgetRequest.parse(floor)

    @property
    def default(self) -> str:
        """The policy of a request that names a budget but no policy."""
        return next(iter(self.policies)) if self.lm.trained is not None else "static"

    def lowest_bytes(self, longest: int | None) -> dict[int, float]:
        """By context the least share of the dense step's bytes that the default policy can meet.

        It falls with the context: from where attention can be saved, at powers of two up to `longest` (or 8192).
        """
        offer, first = self.lm.offer(self.policies[self.default]), self.lm.sparsity.always_read + 1
        contexts = [first, *(1 << power for power in range(first.bit_length(), (longest or 8192).bit_length()))]
        return {context: offer.bytes(offer.budget(_LEAST, context, clamp=True), context) for context in contexts}

    def order(self, asked: Efficiency | None, context: int) -> Order:
        """The order of a request whose steps see `context` tokens on average.

        Raises `SolmError` for an unknown policy, `BudgetError` for an unreachable budget.
        """
        asked = asked or Efficiency()
        cut = self.governed or any(part is not None for part in (asked.budget, asked.deadline_ms, asked.floor))
        name = asked.policy or (self.default if cut else "dense")
        if name not in self.policies:
            raise SolmError(f"unknown policy {name!r}; choose one of {', '.join(self.policies)}")
        policy = self.policies[name]
        wanted = BudgetRequest.parse(_plain(asked.budget))
        if name == "dense":
            if wanted.value not in (1.0, Budget()):
                raise BudgetError(f"policy dense spends everything; budget {asked.budget} needs another policy")
            for limit in ("floor", "deadline_ms"):
                if getattr(asked, limit) is not None:
                    raise SolmError(f"policy dense spends everything; {limit} needs another policy")
            budget = least = Budget()
        else:
            budget = self.lm.budget(wanted, context, policy)
            floor = self.floor(asked.floor, context, policy)
            attention, mlp, bits = (min(low, high) for low, high in zip(floor.shares, budget.shares, strict=True))
            least = Budget(attention=attention, mlp=mlp, bits=bits * FULL_BITS)
        return Order(name, policy, budget, least, asked_for(self.lm, budget, context, policy))

    def floor(self, asked: Asked | None, context: int, policy: AnyPolicy) -> Budget:
        """The floor that was asked for, by default the server's; the least there is where that is not as low."""
        offer = self.lm.offer(policy)
        request = self._floor if asked is None else BudgetRequest.parse(_plain(asked))
        return offer.of_net(self.lowest) if request is None else offer.budget(request, context, clamp=True)


def _plain(asked: Asked | None) -> BudgetLike:
    """A request's budget as `BudgetRequest` reads it."""
    if isinstance(asked, AxisBudget):
        return Budget(attention=asked.attention, mlp=asked.mlp, bits=asked.bits)
    return asked
