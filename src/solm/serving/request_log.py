"""What the access log and traces say about a completion: tokens, compute, priority, how it ended. Never text."""

from collections.abc import Sequence
from typing import Any

from solm.core.budget import mean_terms
from solm.serving.answers import Choice
from solm.serving.rows import Ended
from solm.serving.service import Exchange


def log_facts(exchange: Exchange, choices: Sequence[Choice] | None, failed: str | None = None) -> dict[str, Any]:
    """The facts of a request. Tokens of a prompt of several replies count once, as in the answer.

    choices: as far as they arrived, None: not known. failed: how those ended that did not complete, by default
    ``cancelled``: the client hung up.

    ``requested``, ``allowed`` (by governor and deadline) and ``realised`` hold budgets in the words of
    `solm.core.budget`, as means over the replies, weighted by their tokens. ``saved_ms`` is what the steps saved
    against dense ones, where step times are known.
    """
    jobs, each = exchange.jobs, exchange.answers.each
    order = jobs[0].order
    ends = [None for _ in jobs] if choices is None else [choice.ended for choice in choices]
    found: dict[str, Any] = {"policy": order.name, "priority": order.priority}
    if choices is not None:
        written = [len(one.said) if one.ended is None else one.ended.tokens for one in choices]
        found |= {"prompt_tokens": sum(len(job.ids) for job in jobs[::each]), "completion_tokens": sum(written)}
    found["requested"] = _rounded(mean_terms([job.order.resolved.terms for job in jobs], [1] * len(jobs)))
    complete = [ended for ended in ends if ended is not None]
    if complete:
        weights = [max(1, ended.tokens) for ended in complete]
        found["cached_tokens"] = sum(ended.cached_tokens for ended in ends[::each] if ended is not None)
        found["allowed"] = _rounded(mean_terms([ended.allowed for ended in complete], weights))
        found["realised"] = _rounded(mean_terms([ended.compute.realised for ended in complete], weights))
        if "ms" in found["realised"]:
            found["saved_ms"] = round(sum(map(_saved, complete)), 1)
    return found | {"finish": [failed or "cancelled" if ended is None else ended.reason for ended in ends]}


def _saved(ended: Ended) -> float:
    """Milliseconds that a reply's steps saved. Its first token comes from the dense prefill."""
    spent = ended.compute.realised
    return (spent["speed"] - 1) * spent["ms"] * max(0, ended.tokens - 1)


def _rounded(terms: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in terms.items()}
