"""An evaluation as a table in the terminal, as a verdict in words, as a picture, and as a page of all of these."""

import base64
import io
from collections.abc import Callable
from html import escape
from itertools import groupby
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from solm.core.actions import AXES
from solm.core.errors import counted
from solm.evaluation.result import Difference, EvaluationResult, Point

COLOURS = {
    "policy": "#0b7285", "allocated": "#e8590c", "uniform": "#a61e4d", "random": "#868e96", "constant": "#364fc7",
    "teal": "#343a40", "upper-bits": "#0ca678",
}  # fmt: skip

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


def plot(result: EvaluationResult) -> bytes:
    """A PNG of perplexity against what was spent, in the currency of the budgets. An arm's bar is where the policy's
    paired 95 % interval puts it as seen from the policy; without a policy, the interval over texts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure: Any
    axes: Any
    figure, axes = plt.subplots(figsize=(6, 4.4), dpi=150)  # small, so that words stay readable on a phone
    arms = dict.fromkeys(point.arm for point in result.points if point.arm != "dense")
    for shift, arm in enumerate(arms):
        points = sorted((p for p in result.points if p.arm == arm), key=result.spent)
        middle = np.exp([p.nats for p in points])
        low, high = np.exp([_ends(result, p) for p in points]).T
        # Side by side, since matched arms would hide one another.
        x = np.array([result.spent(p) for p in points]) + 0.002 * (shift - len(arms) / 2)
        axes.errorbar(
            x, middle, yerr=np.clip([middle - low, high - middle], 0, None), label=arm, marker="o", capsize=3, lw=1.5,
            color=COLOURS.get(arm, "#adb5bd"),
        )  # fmt: skip
    dense = next(point for point in result.points if point.arm == "dense")
    axes.axhline(dense.perplexity, color="#495057", ls="--", lw=1, label="dense")
    axes.set_xlabel(f"realised {result.currency} (arms side by side)")
    axes.set_ylabel("perplexity")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()


def _ends(result: EvaluationResult, point: Point) -> tuple[float, float]:
    """The ends of a point's bar, in nats."""
    policy = result.arm("policy", point.budget)
    if policy is None:
        return point.low, point.high
    if point.difference is None or not np.isfinite(point.difference.low):
        return point.nats, point.nats
    return policy.nats - point.difference.high, policy.nats - point.difference.low


_HEAD = """<!doctype html><html lang=en><meta charset=utf-8>
<meta name=viewport content='width=device-width,initial-scale=1'><title>solm results</title><style>
body{font:16px/1.55 system-ui,sans-serif;color:#212529;background:#fff;max-width:78rem;margin:0 auto;padding:1rem}
p,li{max-width:46rem;overflow-wrap:anywhere}img{max-width:100%}pre{overflow-x:auto;font-size:.75rem;line-height:1.4}
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
        picture = base64.b64encode(plot(result)).decode()
        facts = (
            f"{s['model']} ({s['dtype']}), {counted(s['texts'], 'text')} of {s['length']} tokens after {s['context']} "
            f"dense ones, {s['data']}. {levels}. Commit {made['commit']}, {made['machine']['processor']}: "
            f"{result.command}"
        )
        parts += [f"<h2>{escape(name)}</h2><p>{escape(facts)}</p><ul>"]
        parts += [f"<li>{escape(line)}</li>" for line in verdict(result)]
        parts += [f"</ul><p><img alt='perplexity by budget' src='data:image/png;base64,{picture}'></p>"]
        parts += [console.export_html(code_format="<pre>{code}</pre>", inline_styles=True)]
    return "\n".join(parts) + "\n"
