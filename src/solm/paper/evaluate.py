"""A policy against the static schedule that spends as much, on the same tokens of held-out text."""

from typing import Any

import torch

from solm.core.actions import DENSE
from solm.core.budget import Budget
from solm.evaluation.result import paired_difference
from solm.evaluation.texts import token_stream
from solm.paper.policy import PaperPolicy
from solm.paper.rollout import play, read_context, step_generator
from solm.policies.schedules import Static
from solm.runtime.language_model import LanguageModel


def compare(
    lm: LanguageModel,
    policy: PaperPolicy,
    data: str,
    budgets: list[float],
    texts: int,
    context: int,
    length: int,
    seed: int,
) -> list[dict[str, Any]]:
    """By net keep the mean losses, nats per token, of the policy, of a static schedule within the averages that the
    policy realised in each text, and of dense steps; policy minus static with a 95 % interval over texts.

    data: a source of text, of which `texts` windows of `context` tokens, which are read densely, and `length` further
    ones are used, or as many as there are.
    """
    stream = token_stream(data, lm.tokenizer)
    windows = stream.spaced(texts, context + length + 1, torch.Generator().manual_seed(seed))
    session, hidden = read_context(lm, windows[:, :context])
    tokens, space = windows[:, context:], policy.config.space
    policy.network.to(lm.backend.device)
    everything = torch.tensor(DENSE, dtype=torch.float64).expand(len(windows), length, 3)
    dense = -session.fork(1).score(tokens, everything).log_probabilities.double().mean(1)
    points = []
    for number, net in enumerate(budgets):
        target = torch.tensor([Budget.from_net(net, space).shares] * len(windows), dtype=torch.float64)
        draw = step_generator(seed, number, 3)
        episode = play(lm, policy, session.fork(1), hidden, tokens, target, draw)
        spent = episode.averages
        plain = session.fork(1)
        plain.control(Static(space), spent, length)
        ours = -episode.log_probabilities.double().mean(1)
        theirs = -plain.score(tokens).log_probabilities.double().cpu().mean(1)
        points.append(
            {
                "budget": net,
                "realised": float(spent.mean()),
                "policy": float(ours.mean()),
                "static": float(theirs.mean()),
                "dense": float(dense.mean()),
                "difference": paired_difference(ours.numpy(), theirs.numpy()).model_dump(),
            }
        )
    return points
