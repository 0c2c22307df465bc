"""What a policy did, on a page: levels by position and token class, and texts coloured by cost."""

from collections.abc import Iterable
from html import escape

from solm.core.actions import AXES
from solm.evaluation.result import ActionUse, EvaluationResult, Example, Use
from solm.evaluation.show import budget_digits

_NAMES = {"attention": "pages read", "mlp": "MLP channels", "bits": "bits"}


def coloured(tokens: Iterable[tuple[str, float, str]], low: float = 0.6, high: float = 1.0) -> str:
    """Tokens (text, cost as a share of dense, words to hover for) on a ground from green, `low`, to red, `high`."""
    spans = []
    for text, cost, words in tokens:
        hot = min(1.0, max(0.0, (cost - low) / max(high - low, 1e-9)))
        colour = f"hsla({120 - 120 * hot:.0f},70%,50%,.28)"
        spans.append(f"<span style='background:{colour}' title='{escape(words, quote=True)}'>{escape(text)}</span>")
    return f"<div class=reply>{''.join(spans)}</div>"


def histograms(result: EvaluationResult) -> str:
    """Bars of how often every level was taken, for each budget: by position and by token class."""
    space, parts = result.settings["space"], []
    for index, use in enumerate(result.use):
        opened = " open" if index == 0 else ""
        parts.append(f"<details{opened}><summary>budget {budget_digits(use.budget)}</summary>")
        parts += [_axis(axis, space[axis], use) for axis in AXES if len(space[axis]) > 1]
        parts.append("</details>")
    return "\n".join(parts)


def _axis(axis: str, levels: list[float], use: ActionUse) -> str:
    keys = "".join(f"<span><i style='{_shade(i, len(levels))}'></i>{level:g}</span>" for i, level in enumerate(levels))
    return (
        f"<h3>{_NAMES[axis]}</h3><p class=key>{keys}</p><div class=pair>"
        f"<div><p class=soft>by position after the context</p>{_bars(axis, levels, use.positions)}</div>"
        f"<div><p class=soft>by the token that the step reads</p>{_bars(axis, levels, use.classes)}</div></div>"
    )


def _bars(axis: str, levels: list[float], uses: list[Use]) -> str:
    rows = []
    for use in uses:
        counts = use.counts[axis]
        total = sum(counts)
        pieces = "".join(
            f"<i style='flex:{count};{_shade(i, len(levels))}' title='{level:g}: {count / total:.0%} of {total:,}'></i>"
            for i, (level, count) in enumerate(zip(levels, counts, strict=True))
            if count
        )
        rows.append(f"<div class=row><span>{escape(use.group)}</span><b>{pieces}</b></div>")
    return "".join(rows)


def _shade(level: int, levels: int) -> str:
    return f"background:color-mix(in srgb,var(--bar) {15 + 85 * level / (levels - 1):.0f}%,transparent)"


def texts(result: EvaluationResult) -> str:
    """The example texts, cheapest step green and dearest red."""
    return "\n".join(_text(example) for example in result.examples)


def _text(example: Example) -> str:
    costs = [token.cost for token in example.tokens]
    mean = sum(costs) / len(costs)
    shown = (
        (token.text, token.cost, f"{token.action}, {token.cost:.2f} of dense bytes; next token {token.nats:.2f} nats")
        for token in example.tokens
    )
    head = f"<p><b>budget {budget_digits(example.budget)}</b> <span class=soft>{mean:.2f} of dense bytes</span></p>"
    return head + coloured(shown, min(costs), max(costs))
