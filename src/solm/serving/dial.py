"""From a request's `efficiency` to a policy and a budget."""

from dataclasses import dataclass

import torch

from solm.backends.session import AnyPolicy
from solm.core.actions import FULL_BITS, ActionSpace
from solm.core.budget import Budget
from solm.core.errors import BudgetError, SolmError
from solm.runtime.language_model import UNTRAINED, LanguageModel
from solm.serving.requests import AxisBudget, Efficiency, NetOrAxes


@dataclass(frozen=True)
class Order:
    """What a request asks for: the policy, the budget, and the floor below which the governor may not lower it."""

    name: str
    policy: AnyPolicy
    budget: Budget
    floor: Budget

    def target(self, dial: float) -> torch.Tensor:
        """Target shares [3] float64 at `dial`: 0 is the floor, 1 the budget that was asked for."""
        low, high = self.floor.tensor(1)[0], self.budget.tensor(1)[0]
        return low + dial * (high - low)


class Dial:
    """The policies and budgets that one model offers.

    space: of the untrained policies, where no trained one is loaded. floor: net keep below which the governor never
    goes. governed: there is a governor, so that a request without a budget may be lowered and is not dense.
    """

    def __init__(
        self,
        lm: LanguageModel,
        space: ActionSpace | None = None,
        floor: float | None = None,
        governed: bool = False,
    ):
        self.lm, self.governed = lm, governed
        self.space = lm.space if lm.trained is not None else space or ActionSpace.preset("grid")
        self.policies = {name: lm.policy(name, self.space) for name in UNTRAINED}
        if lm.trained is not None:
            self.policies = {"policy": lm.policy(), **self.policies}
        lows, _ = zip(*self.space.ranges, strict=True)
        self.lowest = sum(lows) / 3
        self.floor = self._budget(max(self.lowest, floor or 0.0))

    @property
    def default(self) -> str:
        """The policy of a request that names a budget but no policy."""
        return next(iter(self.policies)) if self.lm.trained is not None else "static"

    def order(self, asked: Efficiency | None) -> Order:
        """The order of a request. Raises `SolmError` for an unknown policy, `BudgetError` for an unreachable budget."""
        asked = asked or Efficiency()
        cut = self.governed or any(part is not None for part in (asked.budget, asked.deadline_ms, asked.floor))
        name = asked.policy or (self.default if cut else "dense")
        if name not in self.policies:
            raise SolmError(f"unknown policy {name!r}; choose one of {', '.join(self.policies)}")
        budget = Budget() if asked.budget is None else self._budget(asked.budget)
        if name == "dense":
            if budget.net < 1:
                raise BudgetError(f"policy dense spends everything; budget {budget.net:g} needs another policy")
            for field in ("floor", "deadline_ms"):
                if getattr(asked, field) is not None:
                    raise SolmError(f"policy dense spends everything; {field} needs another policy")
            return Order(name, self.policies[name], budget, budget)
        floor = self.floor if asked.floor is None else self._budget(asked.floor)
        attention, mlp, bits = (min(low, high) for low, high in zip(floor.shares, budget.shares, strict=True))
        least = Budget(attention=attention, mlp=mlp, bits=bits * FULL_BITS)
        return Order(name, self.policies[name], budget, least)

    def _budget(self, asked: NetOrAxes) -> Budget:
        if isinstance(asked, AxisBudget):
            return Budget(attention=asked.attention, mlp=asked.mlp, bits=asked.bits).check(self.space)
        if self.lm.trained is not None:
            return self.lm.budget(asked)
        return Budget.from_net(asked, self.space)
