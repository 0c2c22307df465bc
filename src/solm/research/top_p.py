"""Top-p attention on a budget: a controller moves p until the pages that are read cost what was asked for."""

from dataclasses import dataclass

import numpy as np
import torch

from solm.core.actions import ActionSpace
from solm.policies.protocol import Observation
from solm.policies.schedules import Static

_SHORTEST_HORIZON = 8
"""Steps over which a deviation from the budget is made good."""
_GAIN = 3.0
"""By how much the log-odds of p follow a share of attention that is owed."""
_FIRST_ODDS = 2.0


@dataclass
class _Progress:
    """Log-odds of p [N], and what attention had spent [N] before the last step; None before the first."""

    odds: torch.Tensor
    spent: torch.Tensor | None


class TopPController(Static):
    """Says per step which softmax mass p attention must hold, and leaves how much that reads to the text.

    What it reads is known after a step alone, so p rises where less than what is due was read and falls where it was
    more. The other axes follow the static schedule. Its space has p, in whole percents, in place of κ: it needs a
    session under a `Rule` with `top_p`, and its actions are none of `space`.
    """

    reads_model = True

    def __init__(self, space: ActionSpace):
        masses = tuple(percent / 100 for percent in range(1, 101))
        super().__init__(ActionSpace(attention=masses, mlp=space.mlp, bits=space.bits))

    def start(self, rows: int, device: torch.device) -> _Progress:  # type: ignore[override]
        return _Progress(torch.full((rows,), _FIRST_ODDS, dtype=torch.float64), None)

    def act(  # type: ignore[override]
        self, observation: Observation, state: _Progress, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, _Progress]:
        action, _ = super().act(observation, None, generator)
        target, ledger = observation.target[:, 0], observation.ledger
        spent = ledger.spent[:, 0]
        horizon = torch.as_tensor(np.maximum(observation.remaining, _SHORTEST_HORIZON))
        due = (target * (ledger.steps + horizon) - spent) / horizon
        odds = state.odds
        if state.spent is not None:
            odds = odds + _GAIN * torch.where(observation.controllable, due - (spent - state.spent), 0.0)
        odds = odds.clamp(-6, 6)
        level = (odds.sigmoid() * 100).round().long().clamp(1, 100) - 1
        level = torch.where(target >= 1, 99, level)
        _, mlp, bits = self.space.shape
        return action % (mlp * bits) + level * mlp * bits, _Progress(odds, spent)
