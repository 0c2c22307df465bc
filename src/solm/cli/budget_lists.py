"""Lists of budgets, as --budgets takes them."""

from typing import TYPE_CHECKING, NamedTuple

from solm.cli.checks import option
from solm.core.errors import BudgetError

if TYPE_CHECKING:
    from solm.core.actions import ActionSpace


class BudgetList(NamedTuple):
    """What --budgets asks for: values, none for ``auto``; kind: ``keep`` for net keeps, ``compute`` for shares of
    compute, which without timings are net keeps too."""

    kind: str
    values: tuple[float, ...]


def budget_list(text: str) -> BudgetList:
    """The budgets of ``auto`` or of a list such as 0.7,0.8 or keep=0.6,keep=0.7; all must be of one kind."""
    if text.strip() == "auto":
        return BudgetList("compute", ())
    kinds, found = set(), []
    for part in text.split(","):
        name, equals, number = part.strip().rpartition("=")
        try:
            found.append(float(number))
        except ValueError:
            raise BudgetError(f"--budgets: {text!r} is not a list of numbers such as 0.55,0.65, or auto") from None
        if equals and name != "keep":
            raise BudgetError(f"--budgets: {part.strip()!r} is not a number or keep=0.6")
        kinds.add("keep" if equals else "compute")
        if not 0 < found[-1] <= 1:
            raise BudgetError(f"--budgets: {found[-1]:g} is out of range: a share must be above 0 and at most 1")
        if found.count(found[-1]) > 1:
            raise BudgetError(f"--budgets: {found[-1]:g} is given twice")
    if len(kinds) > 1:
        raise BudgetError(f"--budgets: {text!r} mixes net keeps and other shares")
    return BudgetList(kinds.pop(), tuple(found))


def check_net_keeps(values: tuple[float, ...], space: "ActionSpace") -> None:
    """Refuse net keeps that `space` cannot spend."""
    from solm.core.budget import Budget

    for value in values:
        with option("--budgets"):
            Budget.from_net(value, space)


def net_keep_list(text: str, space: "ActionSpace") -> tuple[float, ...]:
    """The net keeps of a list such as 0.55,0.65, each of which `space` can spend."""
    values = budget_list(text).values
    if not values:
        raise BudgetError("--budgets: auto goes with solm eval; give a list of numbers such as 0.55,0.65")
    check_net_keeps(values, space)
    return values
