"""Collecting counterfactual episodes: one prefill per text, K schedules over the same tokens."""

from dataclasses import dataclass

import torch

from solm.backends.results import Scored
from solm.core.budget import Budget
from solm.core.cost import axis_levels
from solm.data.windows import TokenStream
from solm.paper.config import TrainConfig
from solm.paper.ranks import Ranks
from solm.paper.sources import draw_windows
from solm.policies.learned import LearnedPolicy
from solm.policies.network import Features
from solm.runtime.language_model import LanguageModel


@dataclass(frozen=True)
class Batch:
    """N = S·K episodes, the K rollouts of a text adjacent; target: [N, 3] budget shares."""

    episode: Scored
    features: Features
    target: torch.Tensor


def step_generator(seed: int, update: int, purpose: int) -> torch.Generator:
    """A generator that depends on nothing but its arguments, so that a resumed run draws what it would have drawn."""
    return torch.Generator().manual_seed((seed * 1_000_003 + update) * 16 + purpose)


def draw_targets(config: TrainConfig, generator: torch.Generator) -> torch.Tensor:
    """A budget for each of S texts: [S, 3] float64."""
    if config.budgets:
        picks = torch.randint(len(config.budgets), (config.texts,), generator=generator)
        shares = [Budget.from_net(config.budgets[index], config.space).shares for index in picks.tolist()]
        return torch.tensor(shares, dtype=torch.float64)
    low, high = torch.tensor(config.space.ranges, dtype=torch.float64).unbind(1)
    return low + (high - low) * torch.rand(config.texts, 3, generator=generator, dtype=torch.float64)


def collect(
    lm: LanguageModel,
    policy: LearnedPolicy,
    streams: list[TokenStream],
    config: TrainConfig,
    update: int,
    ranks: Ranks,
) -> Batch:
    """This process's share of the episodes of one update: some of its texts, with all their rollouts."""
    mine = ranks.share(config.texts)
    windows = draw_windows(
        streams, config.texts, config.context + config.length + 1, step_generator(config.seed, update, 0)
    )[mine]
    targets = draw_targets(config, step_generator(config.seed, update, 1))[mine].repeat_interleave(config.rollouts, 0)
    session = lm.session(capacity=config.context)
    session.prefill(windows[:, : config.context])
    forks = session.fork(config.rollouts, capacity=config.length + lm.sparsity.page_size)
    tokens = windows[:, config.context :].repeat_interleave(config.rollouts, 0)
    # No policy can meet targets below what the always-read tokens cost.
    levels = axis_levels(policy.space, forks.lengths + 1, lm.sparsity, lm.shapes)
    targets = torch.maximum(targets, torch.stack([axis[:, 0] for axis in levels], 1))
    forks.control(policy, targets, config.length, step_generator(config.seed, update, 2), record=True)
    episode = forks.score(tokens)
    assert forks.seen is not None
    return Batch(episode, forks.seen, targets)
