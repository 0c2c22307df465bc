"""What every level of every axis costs, measured token by token."""

from collections.abc import Callable

import torch

from solm.actions import DENSE, ActionSpace
from solm.decoding.passes import divergences, log_probabilities
from solm.decoding.session import Session
from solm.policies.prices import Gains


def level_gains(session: Session, tokens: torch.Tensor, space: ActionSpace) -> Gains:
    """What every level costs when every step takes it, one axis at a time: per axis [N, T, levels] float64, the
    log-probability of the token that came above the dense run's.

    session: N prefilled rows; tokens: [N, T+1].
    """
    dense = log_probabilities(_logits(session, tokens, DENSE), tokens[:, 1:]).double().cpu()
    return _each_level(
        session, tokens, space, lambda logits: log_probabilities(logits, tokens[:, 1:]).double().cpu() - dense
    )


def expected_gains(session: Session, tokens: torch.Tensor, space: ActionSpace) -> Gains:
    """The same in expectation over next tokens that the dense run predicts: minus the divergence from it.

    On a text, the average of both is equal for a calibrated model, and this one varies far less.
    """
    dense = _logits(session, tokens, DENSE)

    def gain(logits: torch.Tensor) -> torch.Tensor:
        return -divergences(logits.flatten(0, 1)[:, None], dense.flatten(0, 1)).view(logits.shape[:2]).double().cpu()

    return _each_level(session, tokens, space, gain)


def _logits(session: Session, tokens: torch.Tensor, action: tuple[float, float, float]) -> torch.Tensor:
    steps = tokens.shape[1] - 1
    keep = torch.tensor(action, dtype=torch.float64).expand(len(tokens), steps, 3)
    return session.fork(1, capacity=steps + session.semantics.page_size).extend(tokens[:, :-1], keep).logits


def _each_level(
    session: Session, tokens: torch.Tensor, space: ActionSpace, gain: Callable[[torch.Tensor], torch.Tensor]
) -> Gains:
    parts = []
    for axis, levels in enumerate((space.attention, space.mlp, space.bits)):
        gains = []
        for level in levels[:-1]:
            attention, mlp, bits = (level if axis == other else DENSE[other] for other in range(3))
            gains.append(gain(_logits(session, tokens, (float(attention), float(mlp), float(bits)))))
        parts.append(torch.stack([*gains, torch.zeros(tokens.shape[0], tokens.shape[1] - 1).double()], -1))
    return parts[0], parts[1], parts[2]
