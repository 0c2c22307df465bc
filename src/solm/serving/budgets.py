"""From a request's `efficiency` to a policy and a budget with a floor."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from solm.backends.session import AnyPolicy
from solm.core.actions import AXES
from solm.core.budget import Budget, BudgetLike, BudgetRequest, ResolvedBudget
from solm.core.errors import BudgetError, argument
from solm.runtime.controlled import UNTRAINED
from solm.runtime.language_model import LanguageModel
from solm.serving.errors import ApiError
from solm.serving.keys import ApiKey
from solm.serving.schema import AxisBudget, BudgetField, Efficiency
from solm.serving.settings import PRIORITIES, Priority, ServeSettings


@dataclass(frozen=True)
class RequestBudget:
    """The policy of a request, its budget with the floor below which the governor may not lower it, and its priority.

    name: of the policy, as requests name it. thinking: another budget for the thinking before the answer; None: the
    same.
    """

    name: str
    policy: AnyPolicy
    resolved: ResolvedBudget
    priority: Priority = "normal"
    thinking: ResolvedBudget | None = None

    @property
    def reasoning(self) -> ResolvedBudget:
        """The budget of the thinking."""
        return self.thinking or self.resolved

    @cached_property
    def rank(self) -> int:
        """Of the priority, 0 for the lowest."""
        return PRIORITIES.index(self.priority)


class RequestBudgets:
    """The policies and budgets that requests may choose."""

    def __init__(self, lm: LanguageModel, settings: ServeSettings):
        self._lm, self._settings = lm, settings
        self._governed = settings.slo_tpot_ms is not None
        self.policies = {name: lm.policy(name) for name in UNTRAINED}
        if lm.trained is not None:
            self.policies = {"policy": lm.policy(), **self.policies}
        self.default = "static" if lm.trained is None else "policy"
        """The policy of a request that names a budget but no policy."""
        floor = None if settings.slo_floor is None else BudgetRequest.parse(settings.slo_floor)
        of_priority = {name: BudgetRequest.parse(each) for name, each in settings.priority_floors.items()}
        self._floors: Mapping[Priority, BudgetRequest | None] = {
            name: of_priority.get(name, floor) for name in PRIORITIES
        }
        """By priority, from the lowest, the floor that the operator set; None: the least there is."""

    def describe(self, longest: int) -> dict[str, Any]:
        """What `/v1/models` says of budgets for contexts of up to `longest` tokens."""
        lm, settings = self._lm, self._settings
        budgets, first = lm.budgets(self.policies[self.default]), lm.sparsity.always_read + 1
        # The least share falls with the context: from where attention can be saved, at powers of two.
        contexts = [first, *(1 << power for power in range(first.bit_length(), longest.bit_length()))]
        described: dict[str, Any] = {
            "policies": list(self.policies), "default_policy": self.default,
            "axes": {axis: getattr(lm.space, axis) for axis in AXES}, "lowest_net": budgets.lowest_net,
            "lowest_bytes": {each: budgets.terms(budgets.lowest(each), each)["bytes"] for each in contexts},
            "always_read": lm.sparsity.always_read, "floor": settings.slo_floor,
            "priorities": {name: None if floor is None else str(floor) for name, floor in self._floors.items()},
            "shapes": lm.shapes.model_dump(), "slo_tpot_ms": settings.slo_tpot_ms,
        }  # fmt: skip
        if lm.timings is not None:
            described["fastest"] = {}
            for context in sorted({first, *lm.timings.contexts}):
                if context <= longest:
                    terms = budgets.terms(budgets.lowest(context), context)
                    described["fastest"][context] = {name: terms[name] for name in ("time", "speed", "ms")}
        curve = budgets.curve
        # Where nothing is known of what budgets lose, the page opens dense.
        described["opening"] = 1.0 if curve is None else curve.opening()
        return described | ({} if curve is None else curve.as_dict())

    def resolve(self, wanted: Efficiency, context: int, key: ApiKey, thinks: bool = False) -> RequestBudget:
        """The budget of a request under an API key whose steps see `context` tokens on average. thinks: whether its
        replies may think before they answer.

        Raises `ApiError` for an unknown policy, a priority above the key's and limits of the policy dense, and
        `BudgetError` for what cannot be met, whose `argument` is the field where it is another than budget.
        """
        if wanted.reasoning_budget is not None and not thinks:
            message = "efficiency.reasoning_budget needs a chat with a model whose chat template knows thinking"
            raise _refused(message, "reasoning_budget")
        priority = wanted.priority or key.priority or "normal"
        if key.priority is not None and PRIORITIES.index(priority) > PRIORITIES.index(key.priority):
            message = f"efficiency.priority: {priority} is above {key.priority}, the highest for this API key"
            raise _refused(message, "priority")
        limits = (wanted.budget, wanted.reasoning_budget, wanted.deadline_ms, wanted.floor)
        limited = any(part is not None for part in limits)
        name = wanted.policy or (self.default if limited or self._governed else "dense")
        if name not in self.policies:
            raise _refused(f"unknown policy {name!r}; choose one of {', '.join(self.policies)}", "policy")
        policy = self.policies[name]
        budgets, request = self._lm.budgets(policy), BudgetRequest.parse(_plain(wanted.budget))
        if (verified := budgets.resolve(request, context) if request.kind == "loss" else None) and verified.loss:
            name, policy = "dense", self.policies["dense"]  # whose steps verify guesses
        if name == "dense":
            if verified is None and request.value not in (1.0, Budget()):
                raise BudgetError(f"policy dense spends everything; budget {wanted.budget} needs another policy")
            for limit in ("reasoning_budget", "floor", "deadline_ms"):
                if getattr(wanted, limit) is not None:
                    raise _refused(f"policy dense spends everything; {limit} needs another policy", limit)
            return RequestBudget(name, policy, verified or budgets.resolve(None, context), priority)
        resolved, thinking = budgets.resolve(request, context), None
        if wanted.reasoning_budget is not None:
            with argument("reasoning_budget"):
                thinking = budgets.resolve(_plain(wanted.reasoning_budget), context)
                if thinking.loss is not None:
                    raise BudgetError("a loss that is verified holds for the whole reply; give it as the budget")
        if wanted.floor is None:
            floor = self.floor(policy, context, self._floors[priority] if key.floor is None else key.floor)
        else:
            with argument("floor"):
                floor = self.floor(policy, context, _plain(wanted.floor))
        thinking = None if thinking is None else thinking.above(floor)
        return RequestBudget(name, policy, resolved.above(floor), priority, thinking)

    def floor(self, policy: AnyPolicy, context: int, floor: BudgetLike = None) -> Budget:
        """A floor; the least there is where that is not as low, or where none is given."""
        budgets = self._lm.budgets(policy)
        if floor is not None:
            return budgets.budget(floor, context, clamp=True)
        least = budgets.lowest(context)
        saves_by_bits = self._lm.sparsity.bits_site == "weights"
        return least if saves_by_bits else Budget(attention=least.attention, mlp=least.mlp)


def _refused(message: str, field: str) -> ApiError:
    return ApiError(400, message, f"efficiency.{field}", "invalid_value")


def _plain(given: BudgetField | None) -> BudgetLike:
    """A request's budget as `BudgetRequest` reads it."""
    return Budget(**given.model_dump()) if isinstance(given, AxisBudget) else given
