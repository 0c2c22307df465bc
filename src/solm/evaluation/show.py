"""An evaluation as a table in the terminal, as a verdict in words, and as a page of both."""

import io
from collections.abc import Callable
from html import escape
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from solm.core.actions import AXES
from solm.core.errors import counted
from solm.evaluation.result import Difference, EvaluationResult, Point

_MISSED = 0.02
"""Beyond this far from its budget, an arm has missed it."""
_FEW = 6
"""Texts below which an interval over texts says nothing."""


def budget_digits(budget: float) -> str:
    """A budget in two digits, or in as many as it has."""
    return f"{budget:.2f}" if round(budget, 2) == budget else f"{budget:g}"


_COLUMNS: dict[str, Callable[[Point], str]] = {
    "budget": lambda point: budget_digits(point.budget),
    "arm": lambda point: point.arm,
    "bytes": lambda point: f"{point.cost['bytes']:.3f}",
    "ms": lambda point: "" if point.step_ms is None else f"{point.step_ms:.2f}",
    "perplexity": lambda point: f"{point.perplexity:.2f}",
    "divergence": lambda point: "" if point.divergence is None else f"{point.divergence:.4f}",
    "divergence: policy − arm [95 %]": lambda point: _interval(point.divergence_difference),
    "nats/token": lambda point: f"{point.nats:.4f}",
    "policy − arm [95 %]": lambda point: _interval(point.difference),
}
"""Cells of an arm by name of the column, beside what it realised."""


def table(result: EvaluationResult, width: int | None = None) -> Table:
    """Arms by budget, with the policy's difference to each baseline. width: characters, for which columns are left out
    that say least; None: any."""
    *named, policy = _COLUMNS.items()
    every = [(name, cell) for name, cell in named if any(map(cell, result.points))] + [policy]
    every.insert(2, ("realised", lambda point: f"{result.spent(point):.3f}"))
    optional = ("divergence: policy − arm [95 %]", "bytes", "perplexity", "ms", "divergence")
    for left_out in range(len(optional) + 1):
        kept = {name: cell for name, cell in every if name not in optional[:left_out]}
        shown = Table(title="Perplexity at matched budget", title_justify="left", box=SIMPLE_HEAD)
        shown.caption = f"budget and realised: {result.currency}"
        for name in kept:
            shown.add_column(name, justify="left" if name == "arm" or name.endswith("]") else "right", no_wrap=True)
        for _, group in groupby(result.points, key=lambda point: point.budget):
            for point in group:
                shown.add_row(*(cell(point) for cell in kept.values()))
            shown.add_section()
        if width is None or Console(width=1000).measure(shown).maximum <= width:
            break
    return shown


def _interval(found: Difference | None) -> str:
    """A difference and its interval in nats per token, green where the policy is better and red where it is worse."""
    if found is None:
        return ""
    colour = "green" if found.high < 0 else "red" if found.low > 0 else "yellow"
    return f"[{colour}]{found.value:+.4f} \\[{found.low:+.4f}, {found.high:+.4f}][/{colour}]"


def verdict(result: EvaluationResult) -> list[str]:
    """For every budget one plain sentence: where the policy won, cannot be told apart, or lost, and whether it missed
    the budget. Won and lost are said of losses; what only divergences tell comes after."""
    lines = []
    texts = result.settings["texts"]
    for budget in result.settings["budgets"]:
        at = [point for point in result.points if point.budget == budget and point.difference is not None]
        against = [point for point in at if point.arm != "dense"]
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
        nearer, farther = _decided({point.arm: point.divergence_difference for point in against})
        told = {
            "the policy beats {}": beats,
            f"the difference to {{}} is within the noise of {counted(texts, 'text')}": open_,
            "the policy loses to {}": loses,
            "by divergence it beats {}": [arm for arm in nearer if arm not in beats],
            "by divergence it loses to {}": [arm for arm in farther if arm not in loses],
        }
        parts += [words.format(", ".join(arms)) for words, arms in told.items() if arms]
        lines.append(f"{result.currency} {budget_digits(budget)}: {'; '.join(parts)}")
    return lines


def _decided(differences: dict[str, Difference | None]) -> tuple[list[str], list[str]]:
    """The arms that the policy beats, and those that it loses to, by intervals that exclude zero."""
    known = {arm: found for arm, found in differences.items() if found is not None}
    return [arm for arm in known if known[arm].high < 0], [arm for arm in known if known[arm].low > 0]


_HEAD = """<!doctype html><html lang=en><meta charset=utf-8>
<meta name=viewport content='width=device-width,initial-scale=1'><title>solm results</title><style>
body{font:16px/1.55 system-ui,sans-serif;color:#212529;background:#fff;max-width:78rem;margin:0 auto;padding:1rem}
p,li{max-width:46rem;overflow-wrap:anywhere}pre{overflow-x:auto;font-size:.75rem;line-height:1.4}
</style><h1>Results</h1><p>Every arm saw the same tokens. Differences are policy minus arm with paired bootstrap 95 %
intervals. Divergence: how far an arm's predictions lie from those of dense steps, as KL in nats per token.</p>"""


def page(found: list[tuple[str, EvaluationResult]]) -> str:
    """An HTML page about evaluations, each under its name, which stands alone."""
    parts = [_HEAD]
    for name, result in found:
        s, made = result.settings, result.environment
        levels = "; ".join(f"{axis} {', '.join(f'{level:g}' for level in s['space'][axis])}" for axis in AXES)
        console = Console(record=True, width=200, file=io.StringIO())
        console.print(table(result))
        facts = (
            f"{s['model']} ({s['dtype']}), {counted(s['texts'], 'text')} of {s['length']} tokens after {s['context']} "
            f"dense ones, {s['data']}. {levels}. Commit {made['commit']}, {made['machine']['processor']}: "
            f"{result.command}"
        )
        parts += [f"<h2>{escape(name)}</h2><p>{escape(facts)}</p><ul>"]
        parts += [f"<li>{escape(line)}</li>" for line in verdict(result)]
        parts += ["</ul>", console.export_html(code_format="<pre>{code}</pre>", inline_styles=True)]
    return "\n".join(parts) + "\n"
