"""Advantages and the clipped objective, on tensors [S, K, T]: S texts, K rollouts each, T steps."""

from dataclasses import dataclass

import torch

from solm.paper.config import TrainConfig

_PENALTY = (100.0, 100.0, 200.0)
"""Weight per axis of the squared budget gap."""
_TOLERANCE = 0.02
"""Budget gap per axis without penalty, in shares."""
_RATIO_CLIP = 0.2


def returns_to_go(rewards: torch.Tensor, gamma: float) -> torch.Tensor:
    """G_t = Σ γ^i r_{t+i} along the last dimension."""
    steps = rewards.shape[-1]
    lag = torch.arange(steps)[:, None] - torch.arange(steps)
    weights = torch.where(lag >= 0, float(gamma) ** lag.clamp(min=0), 0.0).to(rewards)
    return rewards @ weights


def budget_penalty(
    realised: torch.Tensor, target: torch.Tensor, config: TrainConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Soft penalty [S, K] of average shares realised [S, K, 3] against target [S, K, 3], and the signed gaps.

    Only axes with more than one level count.
    """
    gap = realised - target
    weight = torch.tensor(_PENALTY) * torch.tensor([levels > 1 for levels in config.space.shape])
    excess = (gap.abs() - _TOLERANCE).clamp(min=0)
    return (weight.to(gap) * excess**2).sum(-1), gap


def advantages(
    rewards: torch.Tensor, realised: torch.Tensor, penalty: torch.Tensor, counted: torch.Tensor, config: TrainConfig
) -> torch.Tensor:
    """Advantages [S, K, T], whitened over the counted steps of the batch.

    rewards: [S, K, T] log-probabilities; realised: [S, K, T, 3] shares spent; penalty: [S, K]; counted: [S, K, T].

    ``process`` centres the return-to-go of every step over the K rollouts of a text; ``outcome`` gives every step the
    episode's total, centred likewise (both arXiv 2605.10875). With both, a step that spends more has a higher return,
    and a lower one only through the penalty and through later steps. ``priced`` subtracts what a step spends times a
    price per axis, the least-squares return per share spent in the batch. What is left says whether compute had more
    effect on this token than on average.
    """
    rewards = rewards * counted
    if config.advantage == "outcome":
        value = (rewards.sum(-1) - penalty)[..., None].expand_as(rewards)
    else:
        value = returns_to_go(rewards, config.gamma) - penalty[..., None]
    value = value - value.mean(1, keepdim=True)
    if config.advantage == "priced":
        spent = (realised - realised.mean(1, keepdim=True))[counted]
        prices = torch.linalg.lstsq(spent, value[counted][:, None], driver="gelsd").solution
        value = value - ((realised - realised.mean(1, keepdim=True)) @ prices)[..., 0]
    used = value[counted]
    return (value - used.mean()) / used.std().clamp(min=1e-6)


@dataclass(frozen=True)
class Loss:
    total: torch.Tensor
    entropy: torch.Tensor


def clipped_objective(
    logits: torch.Tensor,
    old: torch.Tensor,
    actions: torch.Tensor,
    advantage: torch.Tensor,
    weight: torch.Tensor,
    config: TrainConfig,
) -> Loss:
    """PPO's clipped ratio objective with entropy bonus; logits [N, T, A], the rest [N, T].

    weight: of every step, 0 where there was nothing to decide; those of the whole batch sum to 1.
    """
    log_policy = logits.log_softmax(-1)
    chosen = log_policy.gather(-1, actions[..., None])[..., 0]
    ratio = (chosen - old).exp()
    clipped = ratio.clamp(1 - _RATIO_CLIP, 1 + _RATIO_CLIP)
    gain = torch.minimum(ratio * advantage, clipped * advantage)
    entropy = -(log_policy.exp() * log_policy).sum(-1)
    mean_entropy = (entropy * weight).sum()
    return Loss(-(gain * weight).sum() - config.entropy * mean_entropy, mean_entropy)
