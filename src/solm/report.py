"""A self-contained HTML page about one evaluation: verdict, table, plot, training, coloured generations."""

import base64
from html import escape
from typing import Any

from solm.decoding.generate import Reply
from solm.evaluation.result import EvaluationResult, Point
from solm.evaluation.show import verdict

_STYLE = """
:root{color-scheme:light dark;--ink:#212529;--soft:#6c757d;--line:#dee2e6;--paper:#fff}
:root{--good:#2b8a3e;--bad:#c92a2a;--open:#b08900}
@media(prefers-color-scheme:dark){:root{--ink:#e9ecef;--soft:#adb5bd;--line:#495057;--paper:#16191d}
:root{--good:#69db7c;--bad:#ff8787;--open:#ffd43b}}
body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
body{max-width:60rem;margin:0 auto;padding:1.5rem}
h1{font-size:1.6rem;margin:.2rem 0}h2{font-size:1.15rem;margin:2rem 0 .5rem}p,li{max-width:46rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.3rem .7rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:nth-child(2),td:nth-child(2){text-align:left}tr.first td{border-top:2px solid var(--line)}
.good{color:var(--good)}.bad{color:var(--bad)}.open{color:var(--open)}.soft{color:var(--soft);font-size:.9rem}
img{max-width:100%;background:#fff;border-radius:6px}
.reply{white-space:pre-wrap;border:1px solid var(--line);border-radius:6px;padding:.8rem 1rem;margin:.4rem 0 1.2rem}
.reply span{border-radius:3px;padding:1px 0}svg{width:100%;height:auto;max-width:46rem}
"""


def render(
    result: EvaluationResult,
    picture: bytes,
    prompt: str,
    replies: dict[float, Reply],
    seconds: float,
) -> str:
    """The page. picture: PNG; replies: by budget; seconds: what this run took."""
    s = result.settings
    facts = (
        f"{s['model']} ({s['dtype']}), {s['sequences']} held-out sequences of {s['length']} tokens after "
        f"{s['context']} dense ones, data {s['data']}, seed {s['seed']}; commit {result.environment['commit']}, "
        f"{result.environment['machine']['processor']} with {result.environment['machine']['cores']} cores; "
        f"this run took {seconds / 60:.1f} minutes."
    )
    image = base64.b64encode(picture).decode()
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'><title>solm quickstart</title>",
        f"<style>{_STYLE}</style><h1>A compute dial for a frozen model</h1><p class=soft>{escape(facts)}</p>",
        "<h2>Did the policy win?</h2><ul>",
        *(f"<li>{escape(line)}</li>" for line in verdict(result)),
        "</ul><p class=soft>Every arm saw the same tokens and spent, per sequence and axis, what the policy spent. "
        "Differences are nats per token, policy minus arm, with paired bootstrap 95 % intervals over sequences; "
        "negative is better.</p>",
        "<h2>Perplexity at matched budget</h2>",
        _table(result),
        f"<p><img alt='perplexity against realised net keep' src='data:image/png;base64,{image}'></p>",
        "<h2>Training</h2>",
        _training(result.policy),
        f"<h2>One prompt, {len(replies)} budgets</h2><p>{escape(prompt)}</p>",
        "<p class=soft>Background: bytes read by the step behind each token, from green (few) to red (dense). "
        "Hover for the action.</p>",
        *(_reply(budget, reply) for budget, reply in replies.items()),
    ]
    return "\n".join(parts) + "\n"


def _table(result: EvaluationResult) -> str:
    rows, last = [], None
    for point in result.points:
        first = " class=first" if point.budget != last else ""
        last = point.budget
        rows.append(
            f"<tr{first}><td>{point.budget:.2f}<td>{escape(point.arm)}<td>{point.realised:.3f}"
            f"<td>{point.cost['bytes']:.3f}<td>{point.perplexity:.2f}<td>{point.nats:.4f}<td>{_difference(point)}</tr>"
        )
    head = "<tr><th>budget<th>arm<th>realised<th>bytes<th>perplexity<th>nats/token<th>policy − arm</tr>"
    return f"<div class=scroll><table>{head}{''.join(rows)}</table></div>"


def _difference(point: Point) -> str:
    if point.difference is None:
        return ""
    value, low, high = point.difference.value, point.difference.low, point.difference.high
    kind = "good" if high < 0 else "bad" if low > 0 else "open"
    return f"<span class={kind}>{value:+.4f} [{low:+.4f}, {high:+.4f}]</span>"


def _training(provenance: dict[str, Any]) -> str:
    """What the policy learned from, in a sentence."""
    config = provenance.get("config", {})
    if config.get("method") != "values":
        return f"<p>{escape(str(config.get('updates', '?')))} updates of policy gradient.</p>"
    tokens = config["batches"] * config["sequences"] * config["horizon"]
    explained = provenance["explained"][-1:] or [float("nan")]
    return (
        f"<p>{config['schedules']} random schedules on each of {tokens:,} tokens of {escape(', '.join(config['data']))}"
        f"; the network explains {explained[0]:.1%} of what an action costs a held-out token beyond the action's "
        f"average.</p>"
    )


def _reply(budget: float, reply: Reply) -> str:
    spans = []
    for token in reply.tokens:
        hot = min(1.0, max(0.0, (token.cost - 0.6) / 0.4))
        colour = f"hsla({120 - 120 * hot:.0f},70%,50%,.28)"
        title = f"{token.action}, {token.cost:.2f} of dense bytes"
        spans.append(f"<span style='background:{colour}' title='{title}'>{escape(token.text)}</span>")
    got = reply.compute
    return (
        f"<p><b>budget {budget:.2f}</b> <span class=soft>realised {got.realised['net']:.3f} (attention "
        f"{got.realised['attention']:.2f}, MLP {got.realised['mlp']:.2f}, bits {got.realised['bits']:.2f}); "
        f"{got.bytes:.2f} of dense bytes</span></p><div class=reply>{''.join(spans)}</div>"
    )
