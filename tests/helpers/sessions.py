"""Sessions of tiny models under a policy, for tests that need a known text decided and scored."""

import torch

from solm.backends.results import Scored
from solm.backends.session import AnyPolicy, Session


def scored_under(session: Session, policy: AnyPolicy, tokens: torch.Tensor, target: torch.Tensor) -> Scored:
    """Tokens [N, T+1] decided by `policy` within target [N, 3] over their T steps, and scored."""
    session.control(policy, target, tokens.shape[1] - 1)
    return session.score(tokens)
