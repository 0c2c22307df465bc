"""A self-contained HTML page about one evaluation: verdict, table, plot, training, coloured generations."""

from html import escape
from typing import Any

from solm.evaluation.report.actions import coloured
from solm.evaluation.report.page import head, image, perplexity_table
from solm.evaluation.result import EvaluationResult
from solm.evaluation.show import verdict
from solm.runtime.generate import Reply

_UNDER_ALLOCATION = (
    " All arms but uniform follow the model's allocation, which gives more to the layers and heads that lose more. "
    "In uniform all layers keep the same."
)


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
        f"{s['model']} ({s['dtype']}), {s['texts']} held-out texts of {s['length']} tokens after "
        f"{s['context']} dense ones, data {s['data']}, seed {s['seed']}; commit {result.environment['commit']}, "
        f"{result.environment['machine']['processor']} with {result.environment['machine']['cores']} cores; "
        f"this run took {seconds / 60:.1f} minutes."
    )
    parts = [
        head("solm quickstart"),
        f"<h1>A compute dial for a frozen model</h1><p class=soft>{escape(facts)}</p>",
        "<h2>Did the policy win?</h2><ul>",
        *(f"<li>{escape(line)}</li>" for line in verdict(result)),
        "</ul><p class=soft>Every arm saw the same tokens and spent, per text and axis, what the policy spent. "
        "Differences are nats per token, policy minus arm, with paired bootstrap 95 % intervals over texts; "
        f"negative is better.{_UNDER_ALLOCATION if s['sparsity'].get('allocation') else ''}</p>",
        "<h2>Perplexity at matched budget</h2>",
        perplexity_table(result),
        image(picture, "perplexity against realised net keep"),
        "<h2>Training</h2>",
        _training(result.policy),
        f"<h2>One prompt, {len(replies)} budgets</h2><p>{escape(prompt)}</p>",
        "<p class=soft>Background: bytes read by the step behind each token, from green (few) to red (dense). "
        "Hover for the action.</p>",
        *(_reply(budget, reply) for budget, reply in replies.items()),
    ]
    return "\n".join(parts) + "\n"


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


def _reply(budget: float, reply: Reply) -> str:
    got = reply.compute
    return (
        f"<p><b>budget {budget:.2f}</b> <span class=soft>realised {got.realised['net']:.3f} (attention "
        f"{got.realised['attention']:.2f}, MLP {got.realised['mlp']:.2f}, bits {got.realised['bits']:.2f}); "
        f"{got.bytes:.2f} of dense bytes</span></p>"
    ) + coloured((token.text, token.cost, f"{token.action}, {token.cost:.2f} of dense bytes") for token in reply.tokens)
