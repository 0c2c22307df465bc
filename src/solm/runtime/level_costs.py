"""Level costs, measured token by token: what every level of every axis costs where all steps take it."""

from collections.abc import Callable

import torch

from solm.backends.logits import divergences, log_probabilities
from solm.backends.session import Session
from solm.core.actions import DENSE, ActionSpace
from solm.policies.priced import LevelCosts


def measured_costs(session: Session, tokens: torch.Tensor, space: ActionSpace) -> LevelCosts:
    """What every level costs on the tokens that came, one axis at a time: [N, T, levels] float64, nats.

    That is the log-probability of the next token in the dense run less that under the level; a single one may be
    negative. session: N prefilled rows; tokens: [N, T+1].
    """
    following = tokens[:, 1:]
    dense = log_probabilities(_logits(session, tokens, DENSE), following)
    return _each_level(session, tokens, space, lambda logits: dense - log_probabilities(logits, following))


def expected_costs(session: Session, tokens: torch.Tensor, space: ActionSpace) -> LevelCosts:
    """The same in expectation over the next tokens that the dense run predicts: the divergence from it, at least 0.

    For a calibrated model both have the same average over a text, and this one has far less variance.
    """
    dense = _logits(session, tokens, DENSE).flatten(0, 1)

    def cost(logits: torch.Tensor) -> torch.Tensor:
        return divergences(logits.flatten(0, 1)[:, None], dense).view(logits.shape[:2])

    return _each_level(session, tokens, space, cost)


def _logits(session: Session, tokens: torch.Tensor, action: tuple[float, float, float]) -> torch.Tensor:
    steps = tokens.shape[1] - 1
    keep = torch.tensor(action, dtype=torch.float64).expand(len(tokens), steps, 3)
    return session.fork(1, capacity=steps + session.sparsity.page_size).extend(tokens[:, :-1], keep).logits


def _each_level(
    session: Session, tokens: torch.Tensor, space: ActionSpace, cost: Callable[[torch.Tensor], torch.Tensor]
) -> LevelCosts:
    parts = []
    for axis, levels in enumerate((space.attention, space.mlp, space.bits)):
        costs = torch.zeros(len(tokens), tokens.shape[1] - 1, len(levels), dtype=torch.float64)
        for index, level in enumerate(levels[:-1]):
            attention, mlp, bits = (level if axis == other else DENSE[other] for other in range(3))
            costs[..., index] = cost(_logits(session, tokens, (float(attention), float(mlp), float(bits))))
        parts.append(costs)
    return LevelCosts(*parts)
