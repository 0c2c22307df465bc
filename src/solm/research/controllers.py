"""The arms `entropy` and `drift`: controllers without training, whose compute follows a signal of the model."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from solm.core.actions import ActionSpace
from solm.evaluation.arms import Arm
from solm.evaluation.baselines import BaselineRequest
from solm.policies.levels import SHORTEST_HORIZON, due_share, take, two_levels
from solm.policies.protocol import Observation


@dataclass
class _Seen:
    """Signals of the steps so far [N, t] and the hidden state before the last one [N, H]."""

    signals: torch.Tensor
    hidden: torch.Tensor | None

    def rows(self, index: torch.Tensor) -> "_Seen":
        hidden = None if self.hidden is None else self.hidden[index.to(self.hidden.device)]
        return _Seen(self.signals[index], hidden)


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
        horizon = np.maximum(observation.remaining, SHORTEST_HORIZON)
        target, ledger = observation.target.numpy(), observation.ledger
        action = np.zeros(len(target), dtype=np.int64)
        for axis, shares in enumerate(observation.levels):
            levels = shares.numpy()
            due = due_share(target[:, axis], ledger.spent[:, axis].numpy(), ledger.steps[:, axis].numpy(), horizon)
            lower, upper = two_levels(levels, due)
            low, high = take(levels, lower), take(levels, upper)
            share = ((due - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
            action = action * levels.shape[1] + np.where(rank.numpy() > 1 - share, upper, lower)
        return torch.from_numpy(action), _Seen(signals, observation.hidden)


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
