"""Policy gradient that fine-tunes the sensitivities of a fitted value policy, on counterfactual schedules.

A text's steps are taken several times side by side. Each time the sensitivities are multiplied with noise, and every
step takes the level that is then the cheapest at a fixed price. What it loses, and pays, against the mean of the others
is its advantage (GRPO, with a reward at every step). A fixed price stands for the budget, so that there is nothing to
penalise.
"""

import copy
from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict, Field

from solm.backends.logits import divergences
from solm.backends.results import SplitSchedule
from solm.core.actions import DENSE, FULL_BITS
from solm.core.arrays import as_tensor
from solm.data.windows import TokenStream
from solm.policies.artifact import TrainedPolicy
from solm.policies.value_network import ValueNetwork
from solm.policies.value_policy import ValuePolicy
from solm.runtime.language_model import LanguageModel
from solm.training.counterfactual import keep_of
from solm.training.rollout import step_generator
from solm.training.sources import draw_windows

_WEIGHT_DECAY, _CLIP = 0.01, 1.0
_LEAST = 1e-3  # of a sensitivity
_ROLLOUTS = 8
"""Times that a text's steps are taken."""
_NOISE = 0.5
"""Standard deviation of the noise on the logarithm of a sensitivity."""
_SHARES = 0.35, 0.95
"""Between them lies the average share of every axis at which its price is drawn."""


class FineTuneConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    context: int = Field(512, ge=1)
    """Tokens of a text that are read densely before the steps."""
    length: int = Field(128, ge=1)
    """Steps of a text."""
    learning_rate: float = Field(3e-4, gt=0)
    seed: int = 0


def fine_tune(
    lm: LanguageModel,
    trained: TrainedPolicy,
    streams: list[TokenStream],
    config: FineTuneConfig,
    more: Callable[[int], bool],
) -> TrainedPolicy:
    """`trained`, a value policy, with fine-tuned sensitivities, and prices that belong to them.

    lm: the model under the policy's sparsity, without a policy. more: whether there is time for another update, after
    so many.
    """
    assert isinstance(trained.network, ValueNetwork)
    network = copy.deepcopy(trained.network).eval()
    weights = [*network.read.parameters(), *network.head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=_WEIGHT_DECAY)
    read: list[tuple[torch.Tensor, torch.Tensor]] = []  # by the network, at every update
    while more(len(read)):
        optimizer.zero_grad(set_to_none=True)
        loss, seen = _loss(lm, network, trained, streams, config, step_generator(config.seed, len(read) + 1, 2))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, _CLIP)
        optimizer.step()
        read.append(seen)
    if read:
        with torch.no_grad():
            found = torch.cat([network(*one) for one in read])
        count = len(network.training_sensitivities)
        some = torch.randperm(len(found), generator=torch.Generator().manual_seed(config.seed))[:count]
        network.training_sensitivities.copy_(found[some].repeat(-(-count // len(some)), 1)[:count])
    return TrainedPolicy(trained.config, network)


def _loss(
    lm: LanguageModel,
    network: ValueNetwork,
    trained: TrainedPolicy,
    streams: list[TokenStream],
    config: FineTuneConfig,
    generator: torch.Generator,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """The objective on one text, whose gradient is that of the policy, and what the network read, its arguments."""
    policy, space = ValuePolicy(network, trained.config.space), trained.config.space
    steps = config.length
    window = draw_windows(streams, 1, config.context + steps, generator)
    low, high = _SHARES
    asked = low + (high - low) * torch.rand(3, generator=generator)
    prices = [float(curve.price(share.numpy())) for curve, share in zip(policy.curves, asked, strict=True)]
    shares = [torch.from_numpy(curve.shares) for curve in policy.curves]
    # The layers before the policy's take the level next to the average.
    early = torch.stack([(axis - share).abs().argmin() for axis, share in zip(shares, asked, strict=True)])
    before = keep_of(early, space).expand(1, steps, 3)

    session = lm.session(capacity=config.context)
    session.prefill(window[:, : config.context])
    tokens, room = window[:, config.context :], steps + lm.sparsity.page_size
    dense = torch.tensor(DENSE, dtype=torch.float64).expand(1, steps, 3)
    first = session.fork(2, capacity=room).extend(
        tokens.expand(2, -1), SplitSchedule(policy.layer, torch.cat([dense, before]), dense.expand(2, -1, -1))
    )
    assert first.stream is not None
    shares_before = before[0].clone()
    shares_before[..., 2] /= FULL_BITS
    seen = as_tensor(first.stream[1]).cpu().float(), shares_before.float()
    sensitivity = network(*seen)  # [steps, 3]
    noise = torch.randn(_ROLLOUTS, steps, 3, generator=generator)
    costs = policy.level_costs(sensitivity.detach() * (_NOISE * noise).exp())
    scores = [cost + price * share for cost, price, share in zip(costs, prices, shares, strict=True)]
    levels = torch.stack([score.argmin(-1) for score in scores], -1)  # [rollouts, steps, 3]
    after = keep_of(levels, space)
    taken = session.fork(_ROLLOUTS, capacity=room).extend(
        tokens.expand(_ROLLOUTS, -1), SplitSchedule(policy.layer, before.expand(_ROLLOUTS, -1, -1), after)
    )
    lost = divergences(taken.logits.transpose(0, 1), first.logits[0]).T.cpu()
    paid = torch.stack(
        [price * share[level] for price, share, level in zip(prices, shares, levels.unbind(-1), strict=True)]
    ).sum(0)
    reward = -(lost + paid)
    advantage = reward - reward.mean(0)
    advantage = (advantage / advantage.std().clamp(min=1e-6)).float()
    varied = noise * torch.tensor([size > 1 for size in space.shape])
    # The gradient of a normal distribution's log-density by its mean, the logarithm of the sensitivity.
    return -(advantage[..., None] * varied / _NOISE * sensitivity.clamp(min=_LEAST).log()).mean(), seen
