"""Whether a budget can be met, as far as it is known before a model is loaded."""

from itertools import product
from typing import TYPE_CHECKING

from solm.cli import checks
from solm.core.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from solm.core.actions import ActionSpace
    from solm.core.budget import BudgetRequest, Budgets
    from solm.core.cost import StepTimings
    from solm.policies.artifact import TrainedPolicy
    from solm.runtime.facts import ModelFacts


def checked_budget(
    text: str | float | None,
    config: "ModelFacts",
    trained: "TrainedPolicy | None",
    space: "ActionSpace | None",
    timings: "StepTimings | None" = None,
    typed: str = "--budget",
    context: int | None = None,
    clamp: bool = False,
) -> "BudgetRequest":
    """The budget of --budget; refuses one that the model cannot meet where steps see `context` tokens, by default after
    any context that it can hold.

    timings: for budgets in time; by default the policy's own. clamp: what is below the least there is stands for it.
    """
    from solm.core.budget import BudgetRequest, Budgets
    from solm.runtime.load import engine_sparsity

    with checks.option(typed):
        request = BudgetRequest.parse(text)
        curve = None if trained is None else trained.curve
        known = timings or (None if curve is None else curve.timings)
        if request.kind in ("ms", "speed") and known is None:
            made = checks.own_policy(config) or "a policy of solm fit"
            raise BudgetError(f"{text} needs --timings (a file of solm bench --out), or {made}")
        if request.kind == "loss" and curve is None:
            made = f"such as {own}" if (own := checks.own_policy(config)) else "which solm fit makes"
            raise BudgetError(f"{text} needs a policy with a measured curve, {made}")
        # Without a policy and a space they depend on the backend, and these are the widest: the exact check is that
        # of the loaded model.
        grid = trained.config.space if trained else space or _widest()
        # Nor are the bits of weights known yet: they are as many as those of the KV cache, or down to a quarter.
        offers = [
            Budgets(grid, engine_sparsity(trained), shapes, trained, timings=known)
            for shapes in (config.shapes, config.shapes.model_copy(update={"weight_bits": 4, "head_bits": 4}))
        ]
        longest = config.context or 1 << 20
        timed = () if known is None else tuple(seen for seen in known.contexts if seen < longest)
        _check_reach(offers, request, (*timed, longest) if context is None else (context,), clamp)
    return request


def _check_reach(offers: "Sequence[Budgets]", request: "BudgetRequest", contexts: tuple[int, ...], clamp: bool) -> None:
    """Raises `BudgetError` where a budget is in none of `offers` after any of `contexts`, of which the longest saves
    most."""
    refused = None
    for seen, offer in product(reversed(contexts), offers):
        try:
            offer.budget(request, seen, clamp)
            return
        except BudgetError as error:
            # Of milliseconds the shortest context tells the range, of all else the longest.
            refused = error if refused is None or request.kind == "ms" else refused
    assert refused is not None
    raise refused


def _widest() -> "ActionSpace":
    """All that either backend offers where there is no policy."""
    from solm.core.actions import ActionSpace

    return ActionSpace.preset("fine").model_copy(update={"mlp": ActionSpace.preset("cpu-wide").mlp})
