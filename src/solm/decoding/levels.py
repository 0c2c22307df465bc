"""What every level of every axis costs, measured token by token."""

import torch

from solm.actions import DENSE, ActionSpace
from solm.decoding.session import Session
from solm.policies.prices import Gains


def level_gains(session: Session, tokens: torch.Tensor, space: ActionSpace) -> Gains:
    """What every level costs when every step takes it, one axis at a time: per axis [N, T, levels] nats above dense.

    session: N prefilled rows; tokens: [N, T+1].
    """
    steps = tokens.shape[1] - 1

    def run(action: tuple[float, float, float]) -> torch.Tensor:
        keep = torch.tensor(action, dtype=torch.float64).expand(len(tokens), steps, 3)
        forked = session.fork(1, capacity=steps + session.semantics.page_size)
        return forked.score(tokens, keep).log_probabilities.double().cpu()

    dense = run(DENSE)
    parts = []
    for axis, levels in enumerate((space.attention, space.mlp, space.bits)):
        actions = [tuple(level if axis == other else DENSE[other] for other in range(3)) for level in levels[:-1]]
        gains = [run((float(a), float(b), float(c))) - dense for a, b, c in actions]
        parts.append(torch.stack([*gains, torch.zeros_like(dense)], -1))
    return parts[0], parts[1], parts[2]
