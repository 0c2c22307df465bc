"""An evaluation as a table in the terminal, as a verdict in words, and as a picture."""

from collections.abc import Callable
from itertools import groupby
from typing import TypeVar

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from solm.core.actions import AXES
from solm.core.errors import counted
from solm.evaluation.pictures import Kind, blank, picture
from solm.evaluation.result import Difference, EvaluationResult, Point, TaskPoint, TaskResult

COLOURS = {
    "policy": "#0b7285", "allocated": "#e8590c", "uniform": "#a61e4d", "random": "#868e96", "tuned": "#f08c00",
    "token-table": "#9c36b5", "oracle": "#2f9e44", "entropy": "#1971c2", "drift": "#c2255c", "constant": "#364fc7",
    "teal": "#343a40", "per-request": "#66a80f", "upper-bits": "#0ca678",
}  # fmt: skip

_MISSED = 0.02
"""Beyond this far from its budget, an arm has missed it."""
_FEW = 6
"""Texts below which an interval over texts says nothing."""


def budget_digits(budget: float) -> str:
    """A budget in two digits, or in as many as it has."""
    return f"{budget:.2f}" if round(budget, 2) == budget else f"{budget:g}"


def table(result: EvaluationResult, width: int | None = None) -> Table:
    """Arms by budget, with the policy's difference to each baseline. width: characters, for which columns are left out
    that say least; None: any."""
    points = result.points
    columns: dict[str, Callable[[Point], str]] = {
        "budget": lambda point: budget_digits(point.budget),
        "arm": lambda point: point.arm,
        "realised": lambda point: f"{result.spent(point):.3f}",
        "bytes": lambda point: f"{point.cost['bytes']:.3f}",
        "ms": lambda point: "" if point.step_ms is None else f"{point.step_ms:.2f}",
        "perplexity": lambda point: f"{point.perplexity:.2f}",
        "divergence": lambda point: "" if point.divergence is None else f"{point.divergence:.4f}",
        "nats/token": lambda point: f"{point.nats:.4f}",
        "policy − arm [95 %]": lambda point: _coloured(point.difference, better=-1),
    }
    if all(point.step_ms is None for point in points):
        del columns["ms"]
    if all(point.divergence is None for point in points):
        del columns["divergence"]
    groups = [list(some) for _, some in groupby(points, key=lambda point: point.budget)]
    shown = _fitting(columns, groups, ("bytes", "perplexity", "ms", "divergence"), width)
    shown.title, shown.caption = "Perplexity at matched budget", f"budget and realised: {result.currency}"
    return shown


def task_table(result: TaskResult, width: int | None = None) -> Table:
    """Arms by task and budget: accuracy and margin, with the policy's difference to each arm. width: as for `table`."""
    cost = "time" if all("time" in point.realised for point in result.points) else "bytes"
    columns: dict[str, Callable[[TaskPoint], str]] = {
        "task": lambda point: point.task,
        "budget": lambda point: budget_digits(point.budget),
        "arm": lambda point: point.arm,
        "net": lambda point: f"{point.realised['net']:.3f}",
        cost: lambda point: f"{point.realised[cost]:.3f}",
        "acc": lambda point: f"{point.scores['acc']:.3f}" if "acc" in point.scores else "",
        "margin": lambda point: f"{point.scores['margin']:.3f}",
        "policy − arm: acc [95 %]": lambda point: _coloured(point.differences.get("acc"), better=1),
        "margin [95 %]": lambda point: _coloured(point.differences.get("margin"), better=1),
    }
    groups = [list(some) for _, some in groupby(result.points, key=lambda point: (point.task, point.budget))]
    shown = _fitting(columns, groups, ("net", "margin [95 %]", "margin", cost), width)
    shown.title = "Tasks at matched compute"
    return shown


_Row = TypeVar("_Row")


def _fitting(
    columns: dict[str, Callable[[_Row], str]], groups: list[list[_Row]], optional: tuple[str, ...], width: int | None
) -> Table:
    """A table of a row for each of the items in `groups`, without the first ones of the `optional` columns as far as it
    has to be to fit into `width`."""
    for count in range(len(optional) + 1):
        kept = {name: cell for name, cell in columns.items() if name not in optional[:count]}
        shown = Table(title_justify="left", box=SIMPLE_HEAD)
        for name in kept:
            words = name in ("task", "arm") or name.endswith("]")
            shown.add_column(name, justify="left" if words else "right", no_wrap=True)
        for group in groups:
            for row in group:
                shown.add_row(*(cell(row) for cell in kept.values()))
            shown.add_section()
        if width is None or Console(width=1000).measure(shown).maximum <= width:
            break
    return shown


def never_acted(result: TaskResult) -> list[str]:
    """A line for every task and axis that a budget was asked for and that no step could be controlled on."""
    found = {
        (point.task, axis): None
        for point in result.points
        for axis in AXES
        if point.requested[axis] < 1 and point.realised[axis] == 1
    }
    return [
        f"{task}: the axis {axis} was never controlled, so its budget means nothing; give longer prompts (--fewshot)"
        for task, axis in found
    ]


def _coloured(difference: Difference | None, better: int) -> str:
    """An interval, green where it lies on the side `better` of zero and red on the other."""
    if difference is None:
        return ""
    value, low, high = difference.value, difference.low, difference.high
    ends = sorted((low * better, high * better))
    colour = "green" if ends[0] > 0 else "red" if ends[1] < 0 else "yellow"
    return f"[{colour}]{value:+.4f} [{low:+.4f}, {high:+.4f}][/{colour}]"


def measured(result: EvaluationResult) -> str:
    """What an evaluation measured, in words."""
    s = result.settings
    return (
        f"{counted(s['texts'], 'text')} of {counted(s['length'], 'token')} after {s['context']} dense ones, from "
        f"{s['data']}. Every arm saw the same tokens and spent, per text and axis, what the policy spent."
    )


def cost(result: EvaluationResult) -> list[str]:
    """For every budget what the policy read and what that cost in perplexity."""
    dense, lines = result.points[0], []
    for budget in result.settings["budgets"]:
        point = result.arm("policy", budget)
        if point is not None:
            lines.append(
                f"{result.currency} {budget_digits(budget)}: steps read {point.cost['bytes']:.2f} of the dense bytes; "
                f"perplexity {point.perplexity:.2f}, dense {dense.perplexity:.2f} "
                f"({point.perplexity / dense.perplexity - 1:+.1%})"
            )
    return lines


def verdict(result: EvaluationResult) -> list[str]:
    """For every budget one plain sentence: where the policy won, cannot be told apart, or lost, and whether it missed
    the budget. Won and lost are said of losses; what only divergences tell comes after."""
    lines = []
    texts = result.settings.get("texts", _FEW)
    for budget in result.settings["budgets"]:
        at = [point for point in result.points if point.budget == budget and point.difference is not None]
        against = [point for point in at if point.arm not in ("oracle", "dense")]
        if not against:
            continue
        beats, loses = _decided({point.arm: point.difference for point in against})
        open_ = [point.arm for point in against if point.arm not in beats and point.arm not in loses]
        parts = []
        policy = result.arm("policy", budget)
        if policy is not None and abs(result.spent(policy) - budget) > _MISSED:
            parts.append(f"the budget was missed: the policy, and arms matched to it, spent {result.spent(policy):.3f}")
        if texts < _FEW:
            parts.append(f"too few texts to judge ({texts}; give at least {_FEW})")
            lines.append(f"{result.currency} {budget_digits(budget)}: {'; '.join(parts)}")
            continue
        if beats:
            parts.append(f"the policy beats {', '.join(beats)}")
        if open_:
            few = f" of {counted(texts, 'text')}" if "texts" in result.settings else ""
            parts.append(f"the difference to {', '.join(open_)} is within the noise{few}")
        if loses:
            parts.append(f"the policy loses to {', '.join(loses)}")
        nearer, farther = _decided({point.arm: point.divergence_difference for point in against})
        for words, arms in (
            ("beats", [arm for arm in nearer if arm not in beats]),
            ("loses to", [arm for arm in farther if arm not in loses]),
        ):
            if arms:
                parts.append(f"by divergence it {words} {', '.join(arms)}")
        share = captured(result, budget)
        if share is not None:
            static = "allocated" if result.arm("allocated", budget) else "uniform"
            parts.append(f"it gets {share:.0%} of the oracle's gain over {static}")
        lines.append(f"{result.currency} {budget_digits(budget)}: {'; '.join(parts)}")
    return lines


def _decided(differences: dict[str, Difference | None]) -> tuple[list[str], list[str]]:
    """The arms that the policy beats, and those that it loses to, by intervals that exclude zero."""
    known = {arm: found for arm, found in differences.items() if found is not None}
    return [arm for arm in known if known[arm].high < 0], [arm for arm in known if known[arm].low > 0]


def captured(result: EvaluationResult, budget: float) -> float | None:
    """The policy's gain over allocated (or uniform) as a share of the oracle's; None where one of them is missing."""
    policy, static, oracle = result.arm("policy", budget), result.static(budget), result.arm("oracle", budget)
    if policy is None or static is None or oracle is None or static.nats <= oracle.nats:
        return None
    return (static.nats - policy.nats) / (static.nats - oracle.nats)


def plot(result: EvaluationResult, kind: Kind = "png") -> bytes:
    """Perplexity against what was spent, in the currency of the budgets. An arm's bar is where the policy's paired 95 %
    interval puts it as seen from the policy; without a policy, the interval over texts."""
    figure, axes = blank(6, 4.4)
    arms = dict.fromkeys(point.arm for point in result.points if point.arm != "dense")
    for shift, arm in enumerate(arms):
        points = sorted((p for p in result.points if p.arm == arm), key=result.spent)
        middle = np.exp([p.nats for p in points])
        low, high = np.exp([_ends(result, p) for p in points]).T
        # Side by side, since matched arms would hide one another.
        x = np.array([result.spent(p) for p in points]) + 0.002 * (shift - len(arms) / 2)
        axes.errorbar(
            x, middle, yerr=np.clip([middle - low, high - middle], 0, None), label=arm, marker="o", capsize=3, lw=1.5,
            color=COLOURS.get(arm, "#adb5bd"), ls=":" if arm.endswith("-estimated") else "-",
        )  # fmt: skip
    dense = next(point for point in result.points if point.arm == "dense")
    axes.axhline(dense.perplexity, color="#495057", ls="--", lw=1, label="dense")
    axes.set_xlabel(f"realised {result.currency} (arms side by side)")
    axes.set_ylabel("perplexity")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return picture(figure, kind)


def _ends(result: EvaluationResult, point: Point) -> tuple[float, float]:
    """The ends of a point's bar, in nats."""
    policy = result.arm("policy", point.budget)
    if policy is None:
        return point.low, point.high
    if point.difference is None or not np.isfinite(point.difference.low):
        return point.nats, point.nats
    return policy.nats - point.difference.high, policy.nats - point.difference.low
