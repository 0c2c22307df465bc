"""An HTML page about evaluations, which stands alone, and the parts of it that other pages have, too."""

import base64
from collections.abc import Iterable
from html import escape

from solm.core.actions import AXES
from solm.core.errors import counted
from solm.evaluation.result import Difference, EvaluationResult, Example
from solm.evaluation.show import better, budget_digits, columns, interval, plot, verdict

_STYLE = """
:root{color-scheme:light dark;--ink:#212529;--soft:#6c757d;--line:#dee2e6;--paper:#fff}
:root{--bar:#0b7285;--good:#2b8a3e;--bad:#c92a2a;--open:#b08900}
@media(prefers-color-scheme:dark){:root{--ink:#e9ecef;--soft:#adb5bd;--line:#495057;--paper:#16191d}
:root{--bar:#3bc9db;--good:#69db7c;--bad:#ff8787;--open:#ffd43b}}
body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
body{max-width:78rem;margin:0 auto;padding:1.5rem}
h1{font-size:1.6rem;margin:.2rem 0}h2{font-size:1.15rem;margin:2rem 0 .5rem}p,li{max-width:46rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.88rem}
th,td{padding:.3rem .5rem;text-align:right;border-bottom:1px solid var(--line)}
td,td span span{white-space:nowrap}td>span{white-space:normal}
th:nth-child(2),td:nth-child(2){text-align:left}
.names th:nth-child(2),.names td:nth-child(2){text-align:right}
.names th:first-child,.names td:first-child{text-align:left}tr.first td{border-top:2px solid var(--line)}
.good{color:var(--good)}.bad{color:var(--bad)}.open{color:var(--open)}.soft{color:var(--soft);font-size:.9rem}
img{max-width:100%;background:#fff;border-radius:6px}
.reply{white-space:pre-wrap;border:1px solid var(--line);border-radius:6px;padding:.8rem 1rem;margin:.4rem 0 1.2rem}
.reply{max-width:46rem}.reply span{border-radius:3px;padding:1px 0}svg{width:100%;height:auto;max-width:46rem}
.reply,code{overflow-wrap:anywhere}li{overflow-wrap:break-word}h3{font-size:1rem;margin:1.4rem 0 .3rem}
@media(max-width:44rem){body{padding:1rem}}
"""


def head(title: str) -> str:
    """The beginning of a page, up to its first heading."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,"
        f"initial-scale=1'><title>{escape(title)}</title><style>{_STYLE}</style>"
    )


def image(picture: bytes, words: str) -> str:
    """A PNG inside the page; `words` say what it shows."""
    return f"<p><img alt='{escape(words)}' src='data:image/png;base64,{base64.b64encode(picture).decode()}'></p>"


def perplexity_table(result: EvaluationResult) -> str:
    """Arms by budget, one row each."""
    shown = columns(result, _interval)
    rows, last = [], None
    for point in result.points:
        first = " class=first" if point.budget != last else ""
        last = point.budget
        cells = "".join(f"<td>{escape(point.arm) if name == 'arm' else cell(point)}" for name, cell in shown.items())
        rows.append(f"<tr{first}>{cells}</tr>")
    titles = "".join(f"<th>{name}" for name in shown)
    told = f"<p class=soft>Budgets and what was realised: {escape(result.currency)}.</p>"
    return f"{told}<div class=scroll><table><tr>{titles}</tr>{''.join(rows)}</table></div>"


def _interval(found: Difference | None) -> str:
    """An interval, marked good where the policy is better."""
    if found is None:
        return ""
    colour = {True: "good", False: "bad", None: "open"}[better(found)]
    return f"<span class={colour}>{interval(found).replace(' [', ' <span>[')}</span></span>"  # breaks there alone


def coloured(tokens: Iterable[tuple[str, float, str]], low: float = 0.6, high: float = 1.0) -> str:
    """Tokens (text, cost as a share of dense, words to hover for) on a ground from green, `low`, to red, `high`."""
    spans = []
    for text, cost, words in tokens:
        hot = min(1.0, max(0.0, (cost - low) / max(high - low, 1e-9)))
        colour = f"hsla({120 - 120 * hot:.0f},70%,50%,.28)"
        spans.append(f"<span style='background:{colour}' title='{escape(words, quote=True)}'>{escape(text)}</span>")
    return f"<div class=reply>{''.join(spans)}</div>"


def render(found: list[tuple[str, EvaluationResult]]) -> str:
    """The page about evaluations, each under its name."""
    parts = [
        head("solm results"), "<h1>Results</h1>",
        "<p class=soft>Every arm saw the same tokens. Differences are policy minus arm with paired bootstrap 95 % "
        "intervals. Divergence: how far an arm's predictions lie from those of dense steps, as KL in nats per "
        "token.</p>",
    ]  # fmt: skip
    for name, result in found:
        parts += _evaluation(name, result)
    parts += ["<h2>Where it comes from</h2><ul>"]
    for name, result in found:
        where = f"commit {result.environment['commit']}, {result.environment['machine']['processor']}"
        parts.append(f"<li>{escape(name)}: <code>{escape(result.command)}</code>, {escape(where)}</li>")
    return "\n".join([*parts, "</ul>"]) + "\n"


def _evaluation(name: str, result: EvaluationResult) -> list[str]:
    s = result.settings
    windows = f"{counted(s['texts'], 'text')} of {s['length']} tokens after {s['context']} dense ones"
    measured = f"{s['model']} ({s['dtype']}), {windows}, {s['data']}"
    levels = "; ".join(f"{axis} {', '.join(f'{level:g}' for level in s['space'][axis])}" for axis in AXES)
    parts = [f"<h2>{escape(name)}</h2><p class=soft>{escape(measured)}. {levels}</p><ul>"]
    parts += [f"<li>{escape(line)}</li>" for line in verdict(result)]
    parts += ["</ul>", image(plot(result), f"{name}: perplexity against {result.currency}"), perplexity_table(result)]
    if result.examples:
        parts += [
            "<h3>Texts under the policy</h3><p class=soft>Background: bytes read by the step that processes the token, "
            "from green (the least) to red (the most) within a text. Hover for the action.</p>",
            *map(_text, result.examples),
        ]
    return parts


def _text(example: Example) -> str:
    """An example, its cheapest step green and its dearest red."""
    costs = [token.cost for token in example.tokens]
    mean = sum(costs) / len(costs)
    shown = (
        (token.text, token.cost, f"{token.action}, {token.cost:.2f} of dense bytes; next token {token.nats:.2f} nats")
        for token in example.tokens
    )
    head = f"<p><b>budget {budget_digits(example.budget)}</b> <span class=soft>{mean:.2f} of dense bytes</span></p>"
    return head + coloured(shown, min(costs), max(costs))
