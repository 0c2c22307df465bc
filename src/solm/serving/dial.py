"""From a request's `efficiency` to a policy and a budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from solm.backends.session import AnyPolicy
from solm.core.actions import ActionSpace
from solm.core.budget import Budget, BudgetLike, BudgetRequest, ResolvedBudget
from solm.core.errors import BudgetError, SolmError
from solm.runtime.controlled import UNTRAINED
from solm.runtime.language_model import LanguageModel
from solm.serving.keys import ApiKey
from solm.serving.requests import Asked, AxisBudget, Efficiency
from solm.serving.settings import PRIORITIES, Priority

_NO_KEY = ApiKey("")


class FloorError(BudgetError):
    """A request's floor that cannot be met. field: of the request."""

    field = "efficiency.floor"


class RefusedError(SolmError):
    """What a request may not ask for. field: of the request."""

    def __init__(self, message: str, field: str):
        super().__init__(message)
        self.field = f"efficiency.{field}"


@dataclass(frozen=True)
class Order:
    """What a request asks for: the policy, and the budget with the floor below which the governor may not lower it."""

    name: str
    policy: AnyPolicy
    resolved: ResolvedBudget
    priority: Priority = "normal"

    @cached_property
    def rank(self) -> int:
        """Of the priority, 0 for the lowest."""
        return PRIORITIES.index(self.priority)


class Dial:
    """The policies and budgets that one model offers.

    space: of the untrained policies, where no trained one is loaded. floor: what the governor never goes below, in any
    form of a budget. governed: there is a governor, so that a request without a budget may be lowered and is not dense.
    priority_floors: floors by priority, in place of `floor`; an API key's goes before a priority's, and a request's own
    before both.
    """

    def __init__(
        self,
        lm: LanguageModel,
        space: ActionSpace | None = None,
        floor: BudgetLike = None,
        governed: bool = False,
        priority_floors: Mapping[Priority, BudgetLike] | None = None,
    ):
        self.lm, self.governed = lm, governed
        self.space = lm.space if lm.trained is not None else space or lm.space
        self.policies = {name: lm.policy(name, self.space) for name in UNTRAINED}
        if lm.trained is not None:
            self.policies = {"policy": lm.policy(), **self.policies}
        self.lowest = lm.budgets(self.policies[self.default]).lowest_net
        self._floor = None if floor is None else BudgetRequest.parse(floor)
        self._of_priority = {name: BudgetRequest.parse(floor) for name, floor in (priority_floors or {}).items()}

    @property
    def default(self) -> str:
        """The policy of a request that names a budget but no policy."""
        return next(iter(self.policies)) if self.lm.trained is not None else "static"

    def lowest_bytes(self, longest: int | None) -> dict[int, float]:
        """By context the least share of the dense step's bytes that the default policy can meet.

        It falls with the context: from where attention can be saved, at powers of two up to `longest` (or 8192).
        """
        budgets, first = self.lm.budgets(self.policies[self.default]), self.lm.sparsity.always_read + 1
        contexts = [first, *(1 << power for power in range(first.bit_length(), (longest or 8192).bit_length()))]
        return {context: budgets.terms(budgets.lowest(context), context)["bytes"] for context in contexts}

    def fastest(self, longest: int | None) -> dict[int, dict[str, float]]:
        """By context, from where attention can be saved and where step times were measured, up to `longest`, what the
        lowest budgets in time come to: ``time``, the share of the dense step's milliseconds, ``speed`` and ``ms``."""
        budgets, found = self.lm.budgets(self.policies[self.default]), {}
        first = self.lm.sparsity.always_read + 1
        for context in () if self.lm.timings is None else sorted({first, *self.lm.timings.contexts}):
            if longest is None or context <= longest:
                terms = budgets.terms(budgets.lowest(context), context)
                found[context] = {name: terms[name] for name in ("time", "speed", "ms")}
        return found

    @property
    def priorities(self) -> dict[str, str | None]:
        """By priority, from the lowest, the floor that the operator set for it; None: the least there is."""
        floors = {name: self._of_priority.get(name, self._floor) for name in PRIORITIES}
        return {name: None if floor is None else str(floor) for name, floor in floors.items()}

    def order(self, asked: Efficiency | None, context: int, key: ApiKey = _NO_KEY) -> Order:
        """The order of a request under an API key whose steps see `context` tokens on average.

        Raises `RefusedError` for an unknown policy, a priority above the key's and limits of the policy dense,
        `BudgetError` for an unreachable budget, `FloorError` for such a floor.
        """
        asked = asked or Efficiency()
        priority = asked.priority or key.priority or "normal"
        if key.priority is not None and PRIORITIES.index(priority) > PRIORITIES.index(key.priority):
            message = f"efficiency.priority: {priority} is above {key.priority}, the highest for this API key"
            raise RefusedError(message, "priority")
        cut = self.governed or any(part is not None for part in (asked.budget, asked.deadline_ms, asked.floor))
        name = asked.policy or (self.default if cut else "dense")
        if name not in self.policies:
            raise RefusedError(f"unknown policy {name!r}; choose one of {', '.join(self.policies)}", "policy")
        policy = self.policies[name]
        budgets = self.lm.budgets(policy)
        wanted = BudgetRequest.parse(_plain(asked.budget))
        if name == "dense":
            if wanted.value not in (1.0, Budget()):
                raise BudgetError(f"policy dense spends everything; budget {asked.budget} needs another policy")
            for limit in ("floor", "deadline_ms"):
                if getattr(asked, limit) is not None:
                    raise RefusedError(f"policy dense spends everything; {limit} needs another policy", limit)
            return Order(name, policy, budgets.resolve(None, context), priority)
        budget = budgets.resolve(wanted, context)
        floor = self.floor(asked.floor, context, policy, priority, key)
        return Order(name, policy, budget.above(floor), priority)

    def floor(
        self,
        asked: Asked | None,
        context: int,
        policy: AnyPolicy,
        priority: Priority = "normal",
        key: ApiKey = _NO_KEY,
    ) -> Budget:
        """The floor that was asked for, by default the operator's; the least there is where that is not as low.

        Raises `FloorError` for one that cannot be read or needs measurements that are missing.
        """
        budgets = self.lm.budgets(policy)
        if asked is not None:
            try:
                return budgets.budget(_plain(asked), context, clamp=True)
            except BudgetError as error:
                raise FloorError(f"efficiency.floor: {error}") from error
        request = self._of_priority.get(priority, self._floor) if key.floor is None else key.floor
        if request is not None:
            return budgets.budget(request, context, clamp=True)
        least = budgets.lowest(context)
        saves_by_bits = self.lm.sparsity.bits_site == "weights"
        return least if saves_by_bits else Budget(attention=least.attention, mlp=least.mlp)


def _plain(asked: Asked | None) -> BudgetLike:
    """A request's budget as `BudgetRequest` reads it."""
    if isinstance(asked, AxisBudget):
        return Budget(attention=asked.attention, mlp=asked.mlp, bits=asked.bits)
    return asked
