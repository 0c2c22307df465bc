"""The arms `entropy` and `drift`: controllers without training, whose compute follows a signal of the model."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from solm.core.actions import ActionSpace
from solm.evaluation.arms import Arm
from solm.evaluation.baselines import BaselineRequest
from solm.policies.protocol import Observation

_SHORTEST_HORIZON = 8
"""Steps over which a deviation from the budget is made good."""


@dataclass
class _Seen:
    """Signals of the steps so far [N, t] and the hidden state before the last one [N, H]."""

    signals: torch.Tensor
    hidden: torch.Tensor | None


class SignalController(ABC):
    """Takes the higher of the two levels around the budget where its signal is high for this text.

    The signal's rank among those of the steps so far decides. What is left of the budget sets the rank that is needed.
    """

    reads_model = True

    def __init__(self, space: ActionSpace):
        self.space = space

    @abstractmethod
    def signal(self, hidden: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
        """[N] from the last hidden state [N, H] and the one before it; higher: spend more."""

    def start(self, rows: int, device: torch.device) -> _Seen:
        return _Seen(torch.zeros(rows, 0), None)

    def act(
        self, observation: Observation, state: _Seen, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, _Seen]:
        assert observation.hidden is not None
        now = self.signal(observation.hidden, state.hidden).float().cpu()[:, None]
        signals = torch.cat([state.signals, now], 1)
        # Ties count half, so that the first step, which has nothing to compare with, is in the middle.
        rank = ((signals < now).sum(1) + (signals == now).sum(1) / 2) / signals.shape[1]
        horizon = torch.as_tensor(np.maximum(observation.remaining, _SHORTEST_HORIZON))
        action = torch.zeros_like(observation.previous)
        for axis, levels in enumerate(observation.levels):
            size = levels.shape[1]
            goal = observation.target[:, axis] * (observation.ledger.steps + horizon)
            due = ((goal - observation.ledger.spent[:, axis]) / horizon)[:, None]
            below = ((levels <= due + 1e-12).sum(1, keepdim=True) - 1).clamp(0, max(0, size - 2))
            above = (below + 1).clamp(max=size - 1)
            low, high = levels.gather(1, below), levels.gather(1, above)
            share = ((due - low) / (high - low).clamp(min=1e-12))[:, 0].clamp(0, 1)
            action = action * size + torch.where(rank > 1 - share, above[:, 0], below[:, 0])
        return action, _Seen(signals, observation.hidden)


class EntropyController(SignalController):
    """Spends where the model was unsure which token would come: entropy of its last prediction.

    head: hidden states [N, H] to logits [N, V].
    """

    def __init__(self, space: ActionSpace, head: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__(space)
        self.head = head

    @torch.no_grad()
    def signal(self, hidden: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
        scores = self.head(hidden).float().log_softmax(-1)
        return -(scores.exp() * scores).sum(-1)


class DriftController(SignalController):
    """Spends where the last hidden state moved far from the one before it: one minus their cosine."""

    def signal(self, hidden: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
        if before is None:
            return torch.zeros(len(hidden))
        return 1 - torch.cosine_similarity(hidden.float(), before.float(), dim=-1)


def entropy(request: BaselineRequest) -> Arm:
    return Arm(EntropyController(request.space, request.lm.model.get_output_embeddings()))


def drift(request: BaselineRequest) -> Arm:
    return Arm(DriftController(request.space))
