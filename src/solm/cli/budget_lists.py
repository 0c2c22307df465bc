"""Lists of budgets, as --budgets takes them."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from solm.cli.checks import option, step_times
from solm.core.errors import BudgetError

if TYPE_CHECKING:
    from solm.core.budget import Budgets, Kind
    from solm.core.cost import StepTimings
    from solm.policies.artifact import TrainedPolicy

_PARTS = 10_000
"""Of a share, to which speeds, milliseconds and losses are rounded up."""


class BudgetList(NamedTuple):
    """What --budgets asks for: values, none for ``auto``; kind: of `BudgetRequest`. in_time: they come to shares of the
    dense step's milliseconds; else they are net keeps."""

    kind: "Kind"
    values: tuple[float, ...]
    in_time: bool = False


def asked_budgets(
    text: str | None, net_keeps: str, timings: Path | None, trained: "TrainedPolicy | None", model: str, backend: str
) -> "tuple[BudgetList, StepTimings | None]":
    """The budgets of --budgets and the step times of --timings, which must be those of `model` on `backend`, else the
    policy's own.

    Without --budgets they are ``auto`` with step times, and `net_keeps` without.
    """
    curve = None if trained is None else trained.curve
    known = step_times(timings, model, backend) or (None if curve is None else curve.timings)
    asked = budget_list(text or (net_keeps if known is None else "auto"))
    in_time = asked.kind in ("speed", "ms", "loss") or (asked.kind == "compute" and known is not None)
    return asked._replace(in_time=in_time), known


def budget_list(text: str) -> BudgetList:
    """The budgets of ``auto`` or of a list such as 0.7,0.8, keep=0.6,keep=0.7 or speed=1.2,speed=1.4; all must be of
    one kind."""
    from solm.core.budget import BudgetRequest

    if text.strip() == "auto":
        return BudgetList("compute", ())
    kinds, found = set(), []
    for part in text.split(","):
        name, _, number = part.strip().rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise BudgetError(f"--budgets: {text!r} is not a list of numbers such as 0.55,0.65, or auto") from None
        if name not in ("", "keep", "speed", "ms", "loss"):
            raise BudgetError(f"--budgets: {part.strip()!r} is not a number, keep=0.6, speed=1.3, ms=8 or loss=0.05")
        with option("--budgets"):
            kinds.add(BudgetRequest.parse(part.strip()).kind)
        if value in found:
            raise BudgetError(f"--budgets: {value:g} is given twice")
        found.append(value)
    if len(kinds) > 1:
        raise BudgetError(f"--budgets: {text!r} mixes net keeps and other shares; give all in one form")
    return BudgetList(kinds.pop(), tuple(found))


def reachable(asked: BudgetList, offer: "Budgets", context: int) -> tuple[float, ...]:
    """The budgets as shares of the dense step's milliseconds, where steps see `context` tokens, or as net keeps; for
    ``auto`` five between the lowest and 1. Raises `BudgetError` for one that cannot be met."""
    return _time_shares(asked, offer, context) if asked.in_time else _net_keeps(asked, offer)


def _net_keeps(asked: BudgetList, offer: "Budgets") -> tuple[float, ...]:
    from solm.core.curve import spaced_budgets

    with option("--budgets"):
        for value in asked.values:
            offer.of_net(value)
    return asked.values or spaced_budgets(offer.lowest_net)


def _time_shares(asked: BudgetList, offer: "Budgets", context: int) -> tuple[float, ...]:
    from solm.core.budget import BudgetRequest
    from solm.core.curve import spaced_budgets

    found: list[float] = []
    with option("--budgets"):
        floor = offer.time_floor(context)
        for value in asked.values:
            request = BudgetRequest(asked.kind, value)
            offer.budget(request, context)
            share = value
            if asked.kind != "compute":
                share = math.ceil(_PARTS * max(floor, offer.time_share(request, context))) / _PARTS
            if share in found:
                raise BudgetError(f"budget {request} comes down to {share:g} of the dense step's time, as another does")
            found.append(share)
    return tuple(found) or spaced_budgets(floor)
