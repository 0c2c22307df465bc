"""The learned policy: a policy network that reads the previous step's hidden state and draws an action."""

from typing import Literal

import torch

from solm.core.actions import ActionSpace
from solm.policies.network import Features, Memory, PolicyNetwork
from solm.policies.protocol import Observation, budget_prior, feasible


def features(observation: Observation) -> Features:
    """One step's observation as network input, T = 1, on the device of the hidden state."""
    assert observation.hidden is not None
    assert observation.embedding is not None
    device = observation.hidden.device
    return Features(
        observation.hidden[:, None],
        observation.embedding[:, None],
        observation.scalars()[:, None].to(device),
        observation.previous[:, None].to(device),
        budget_prior(observation)[:, None].to(device),
    )


class LearnedPolicy:
    """Samples from a network's distribution over actions, or takes the most likely one.

    clamp: rule out actions after which the budget could no longer be met by the horizon. Training leaves it off and
    has a penalty instead. part: these rows among the rows of all processes, and the number of those, so that a batch
    which several processes share draws what it would in one.
    """

    reads_model = True

    def __init__(
        self,
        network: PolicyNetwork,
        space: ActionSpace,
        decision: Literal["sample", "greedy"] = "sample",
        clamp: bool = True,
        part: tuple[slice, int] | None = None,
    ):
        self.network, self.space, self.decision, self.clamp, self.part = network, space, decision, clamp, part

    @property
    def size(self) -> int:
        """Fitted numbers that are read at every step."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def start(self, rows: int, device: torch.device) -> Memory:
        return self.network.start(rows, device)

    @torch.no_grad()
    def act(
        self, observation: Observation, state: Memory, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, Memory]:
        logits, state = self.network(features(observation), state)
        scores = logits[:, 0].double().cpu()
        if self.clamp:
            scores = scores.masked_fill(~feasible(observation), -torch.inf)
        if self.decision == "sample":
            # Gumbel-max on the CPU, so that a seed means the same on every device.
            rows, everyone = self.part or (slice(None), len(scores))
            noise = torch.rand(everyone, scores.shape[1], generator=generator, dtype=torch.float64)[rows]
            scores = scores - torch.log(-torch.log(noise.clamp(1e-300, 1 - 1e-16)))
        return scores.argmax(-1), state
