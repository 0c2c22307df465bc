"""A self-contained HTML page about a quickstart: speeds, comparison, training, coloured generations."""

from html import escape
from typing import Any

from solm.core.errors import counted
from solm.evaluation.report.actions import coloured
from solm.evaluation.report.page import head, image, perplexity_table
from solm.evaluation.result import EvaluationResult
from solm.evaluation.show import cost, measured, verdict
from solm.evaluation.speeds import COLUMNS, Speeds, cells, difference
from solm.runtime.reply import Reply

_UNDER_ALLOCATION = (
    " All arms but uniform follow the model's allocation, which gives more to the layers and heads that lose more. "
    "In uniform all layers keep the same."
)


def summary(speeds: Speeds, result: EvaluationResult) -> list[str]:
    """What was found, in sentences: speed, cost, and what the comparison can tell."""
    dense, *others = speeds.found
    if speeds.note:
        lines = [f"Speed: not measured. {speeds.note}"]
    else:
        told = [
            f"{one.milliseconds:.1f} ms under budget {one.budget:.2f} ({speeds.factor(one):.2f} times as fast)"
            for one in others
        ]
        lines = [
            f"Speed: after {speeds.prompt:,} tokens a dense step took {dense.milliseconds:.1f} ms here, "
            f"{' and '.join(told)}. A short context saves less."
        ]
    s = result.settings
    lines += [f"Quality of the trained policy: {line}." for line in cost(result)]
    lines += [f"Comparison: {line}." for line in verdict(result)]
    return [
        *lines,
        f"Sample: {counted(s['texts'], 'text')} of {s['length']} tokens, {result.points[0].tokens:,} in all. "
        "Net keep is the mean share of KV pages, MLP channels and activation bits.",
    ]


def why_more(result: EvaluationResult, net: float, reply: Reply) -> str:
    """Why a reply spent more than net keep `net`; empty where it did not."""
    sparsity = result.settings["sparsity"]
    if reply.compute.realised["net"] < net + 0.02:
        return ""
    return (
        f"more than asked for: attention always reads the first {sparsity['sinks']} tokens and the last "
        f"{sparsity['window']}, which is much of so short a context"
    )


def seconds_table(seconds: dict[str, float]) -> list[tuple[str, str]]:
    """The stages and their sum, each with its seconds."""
    return [(stage, f"{took:.0f}") for stage, took in [*seconds.items(), ("all", sum(seconds.values()))]]


def render(
    result: EvaluationResult,
    picture: bytes,
    prompt: str,
    replies: dict[float, Reply],
    seconds: dict[str, float],
    speeds: Speeds,
) -> str:
    """The page. picture: PNG; replies: by net keep; seconds: what the stages took; speeds: what came before."""
    s = result.settings
    facts = (
        f"{s['model']}, seed {s['seed']}, commit {result.environment['commit']}, "
        f"{result.environment['machine']['processor']} with {result.environment['machine']['cores']} cores."
    )
    took = ", ".join(f"{stage} {told}" for stage, told in seconds_table(seconds))
    parts = [
        head("solm quickstart"),
        f"<h1>A compute dial for a frozen model</h1><p class=soft>{escape(facts)} Seconds taken: {escape(took)}.</p>",
        "<ul>",
        *(f"<li>{escape(line)}</li>" for line in summary(speeds, result)),
        "</ul><h2>What the dial saves on this machine</h2>",
        *_speeds(speeds),
        "<h2>How the trained policy compares</h2>",
        f"<p>Measured: perplexity ({s['dtype']}) on {escape(measured(result))}</p>",
        perplexity_table(result),
        "<p class=soft>Differences are policy minus arm, in nats per token, with paired bootstrap 95 % intervals over "
        "texts: of the loss, and of the divergence (KL) of an arm's predictions from those of dense steps. "
        f"Negative is better. An interval that holds 0 is within the noise: {s['texts']} "
        f"texts cannot tell the two apart.{_UNDER_ALLOCATION if s['sparsity'].get('allocation') else ''} The best of "
        "several random schedules is known only afterwards: it is a bound, not something to run.</p>",
        image(picture, "perplexity against realised net keep"),
        "<h2>Training</h2>",
        _training(result.policy),
        f"<h2>A reply under the trained policy</h2><p>{escape(prompt)}</p>",
        "<p class=soft>Background: bytes read by the step behind each token, from green (few) to red (dense). "
        "Hover for the action.</p>",
        *(_reply(budget, reply, why_more(result, budget, reply)) for budget, reply in replies.items()),
    ]
    return "\n".join(parts) + "\n"


def _speeds(speeds: Speeds) -> list[str]:
    """One prompt, decoded dense and under budgets: a table and the texts."""
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}' for cell in cells(speeds, one))}</tr>" for one in speeds.found)
    titles = f"<tr>{''.join(f'<th>{column}' for column in COLUMNS)}</tr>"
    note = f"<p>{escape(speeds.note)}</p>" if speeds.note else ""
    texts = [
        f"<p><b>{escape(one.name)}</b> <span class=soft>{escape(difference(speeds, one)) if one.budget else ''}</span>"
        f"</p><div class=reply>{escape(one.text.strip())}</div>"
        for one in speeds.found
    ]
    return [
        f"<p>The same prompt of {speeds.prompt:,} tokens, decoded on {escape(speeds.machine)}. "
        f"{speeds.budgets} Speed is relative to dense steps in the same precision.</p>{note}",
        f"<div class='scroll names'><table>{titles}{rows}</table></div>",
        f"<p class=soft>{escape(speeds.question)}</p>",
        *texts,
    ]


def _training(provenance: dict[str, Any]) -> str:
    """What the policy learned from, in a sentence."""
    config = provenance.get("config", {})
    if config.get("method") != "values":
        return f"<p>{escape(str(config.get('updates', '?')))} updates of policy gradient.</p>"
    tokens = config["batches"] * config["texts"] * config["length"]
    explained = provenance["explained"][-1:] or [float("nan")]
    return (
        f"<p>{config['schedules']} random schedules on each of {tokens:,} tokens of {escape(', '.join(config['data']))}"
        f"; the network explains {explained[0]:.1%} of what an action costs a held-out token beyond the action's "
        f"average.</p>"
    )


def _reply(budget: float, reply: Reply, why: str) -> str:
    got = reply.compute
    return (
        f"<p><b>net keep {budget:.2f}</b> <span class=soft>realised {got.realised['net']:.3f} (attention "
        f"{got.realised['attention']:.2f}, MLP {got.realised['mlp']:.2f}, bits {got.realised['bits']:.2f}); "
        f"{got.bytes:.2f} of dense bytes{'; ' if why else ''}{escape(why)}</span></p>"
    ) + coloured((token.text, token.cost, f"{token.action}, {token.cost:.2f} of dense bytes") for token in reply.tokens)
