"""What every level of every axis costs, measured token by token."""

from collections.abc import Callable

import torch

from solm.backends.passes import divergences, log_probabilities
from solm.backends.torch.session import Session
from solm.core.actions import DENSE, ActionSpace
from solm.policies.priced import Gains


def level_gains(session: Session, tokens: torch.Tensor, space: ActionSpace) -> Gains:
    """What every level costs when every step takes it, one axis at a time: per axis [N, T, levels] float64, the
    log-probability of the token that came above the dense run's.

    session: N prefilled rows; tokens: [N, T+1].
    """
    following = tokens[:, 1:]
    dense = log_probabilities(_logits(session, tokens, DENSE), following)
    return _each_level(session, tokens, space, lambda logits: log_probabilities(logits, following) - dense)


def expected_gains(session: Session, tokens: torch.Tensor, space: ActionSpace) -> Gains:
    """The same in expectation over next tokens that the dense run predicts: minus the divergence from it.

    On a text, the average of both is equal for a calibrated model, and this one varies far less.
    """
    dense = _logits(session, tokens, DENSE).flatten(0, 1)

    def gain(logits: torch.Tensor) -> torch.Tensor:
        return -divergences(logits.flatten(0, 1)[:, None], dense).view(logits.shape[:2])

    return _each_level(session, tokens, space, gain)


def _logits(session: Session, tokens: torch.Tensor, action: tuple[float, float, float]) -> torch.Tensor:
    steps = tokens.shape[1] - 1
    keep = torch.tensor(action, dtype=torch.float64).expand(len(tokens), steps, 3)
    return session.fork(1, capacity=steps + session.sparsity.page_size).extend(tokens[:, :-1], keep).logits


def _each_level(
    session: Session, tokens: torch.Tensor, space: ActionSpace, gain: Callable[[torch.Tensor], torch.Tensor]
) -> Gains:
    parts = []
    for axis, levels in enumerate((space.attention, space.mlp, space.bits)):
        gains = torch.zeros(len(tokens), tokens.shape[1] - 1, len(levels), dtype=torch.float64)
        for index, level in enumerate(levels[:-1]):
            attention, mlp, bits = (level if axis == other else DENSE[other] for other in range(3))
            gains[..., index] = gain(_logits(session, tokens, (float(attention), float(mlp), float(bits))))
        parts.append(gains)
    return parts[0], parts[1], parts[2]
