"""Fitting a value network to counterfactual samples."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from solm.actions import FULL_BITS
from solm.policies.values import ValueConfig, ValueNetwork
from solm.training.config import FitConfig
from solm.training.counterfactual import Samples, keep_of

_LARGEST_GAIN = 5.0
"""Nats; single tokens can change by more, and would then decide the fit."""


@dataclass(frozen=True)
class Fit:
    """explained: share of the held-out variance of gains explained beyond every action's mean, by epoch. slopes: per
    axis by how much held-out gains change where the network says by 1."""

    explained: list[float]
    slopes: list[float]


@dataclass(frozen=True)
class _Rows:
    """Samples in one row each: hidden [M, H], before [M, 3] shares, after [M, 3] levels, saved [M, 3] what the
    schedule that the sample is from saves on average, gain [M], weight [M]."""

    hidden: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    saved: torch.Tensor
    gain: torch.Tensor
    weight: torch.Tensor

    def take(self, index: torch.Tensor) -> "_Rows":
        return _Rows(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def fit(
    samples: Samples,
    config: ValueConfig,
    how: FitConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[ValueNetwork, Fit]:
    """A value network for `samples`, least squares on the gain of the action taken, noisy actions weighted down.

    progress: called with optimiser steps done and in all.
    """
    torch.manual_seed(how.seed)
    network = ValueNetwork(config, how.dropout)
    rows, texts = _flatten(samples, config, how)
    last = texts >= int(len(samples.dense) * (1 - how.held_out))
    train, test = rows.take((~last).nonzero()[:, 0]), rows.take(last.nonzero()[:, 0])
    total = how.epochs * -(-len(train.gain) // how.batch)
    # What a step loses to the savings of the steps around it is no part of its own action's cost.
    spill = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([*network.parameters(), spill], lr=how.learning_rate, weight_decay=how.weight_decay)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.learning_rate, total_steps=total, pct_start=0.1)
    explained, done = [], 0
    for _ in range(how.epochs):
        network.train()
        for index in torch.randperm(len(train.gain)).split(how.batch):
            batch = train.take(index)
            error = predict(network, batch, spill) - batch.gain
            optimizer.zero_grad(set_to_none=True)
            (batch.weight * error**2).mean().backward()
            optimizer.step()
            rate.step()
            done += 1
            progress(done, total)
        network.eval()
        if len(test.gain):
            explained.append(_explained(network, train, test, spill.detach()))
    with torch.no_grad():
        some = torch.randperm(len(rows.gain))[: config.calibration]
        kept = network(rows.hidden[some].float(), rows.before[some])
        scale = kept.mean(0)
        slopes = _slopes(network, test, spill, scale) if len(test.gain) else torch.ones(3)
        trust = slopes.clamp(0, 1)
        kept = 1 + trust * (kept / scale - 1)
        network.calibration.copy_(kept.repeat(-(-config.calibration // len(kept)), 1)[: config.calibration])
        for axis, profile in enumerate(network.profiles):
            profile.mul_(scale[axis]).clamp_(max=0)
        network.scale.copy_(scale)
        network.trust.copy_(trust)
    return network, Fit(explained, slopes.tolist())


def predict(network: ValueNetwork, rows: _Rows, spill: torch.Tensor) -> torch.Tensor:
    """Gain [M] of the rows' actions, spill [3] being what full savings around a step cost it per axis."""
    return (network(rows.hidden, rows.before) * _unit_costs(network, rows, spill)).sum(-1)


def _unit_costs(network: ValueNetwork, rows: _Rows, spill: torch.Tensor) -> torch.Tensor:
    """Per axis what the rows' levels, and the savings around them, cost a token of sensitivity 1: [M, 3]."""
    own = [F.pad(profile, (0, 1))[rows.after[:, axis].long()] for axis, profile in enumerate(network.profiles)]
    return torch.stack(own, 1) + rows.saved * spill


def _slopes(network: ValueNetwork, rows: _Rows, spill: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Least squares, per axis, of what average sensitivities `mean` [3] leave unexplained on what the network adds.

    Below 1 the network tells tokens further apart than they are: that much of its word should be believed.
    """
    left, right = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for index in torch.arange(len(rows.gain)).split(65536):
        part = rows.take(index)
        added = ((network(part.hidden, part.before) - mean) * _unit_costs(network, part, spill)).double()
        missing = (part.gain - predict(network, part, spill)).double() + added.sum(1)
        weighted = added * part.weight[:, None]
        left += weighted.T @ added
        right += weighted.T @ missing
    return torch.linalg.lstsq(left + 1e-9 * torch.eye(3), right[:, None]).solution[:, 0].float()


def _flatten(samples: Samples, config: ValueConfig, how: FitConfig) -> tuple[_Rows, torch.Tensor]:
    """Rows of all samples, and which text each is from."""
    shape = samples.gain.shape
    before = keep_of(samples.before, config.grid)
    before[..., 2] /= FULL_BITS
    gain = samples.gain.clamp(-_LARGEST_GAIN, _LARGEST_GAIN)
    action = _action_index(samples.after, config)
    mean, variance = _by_action(gain.flatten(), action.flatten(), config)
    if how.gamma:
        gain = gain + _later(gain - mean[action].float(), how.gamma)
    weight = 1 / variance.clamp(min=0.05)
    texts = torch.arange(shape[0]).repeat_interleave(shape[1] * shape[2])
    after = keep_of(samples.after, config.grid)
    after[..., 2] /= FULL_BITS
    saved = (1 - after).mean(2, keepdim=True).expand_as(after).float()
    rows = _Rows(
        samples.hidden.flatten(0, 2), before.float().flatten(0, 2), samples.after.flatten(0, 2), saved.flatten(0, 2),
        gain.flatten(),
        (weight / weight[action.flatten()].mean())[action.flatten()].float(),
    )  # fmt: skip
    return rows, texts


def _later(surprise: torch.Tensor, gamma: float) -> torch.Tensor:
    """Σ γ^i of what the steps after each gained beyond their own actions' mean, [..., T]."""
    total = torch.zeros_like(surprise)
    for step in range(surprise.shape[-1] - 2, -1, -1):
        total[..., step] = gamma * (surprise[..., step + 1] + total[..., step + 1])
    return total


def _action_index(levels: torch.Tensor, config: ValueConfig) -> torch.Tensor:
    a, b, c = levels.long().unbind(-1)
    return (a * config.grid.shape[1] + b) * config.grid.shape[2] + c


def _by_action(gain: torch.Tensor, action: torch.Tensor, config: ValueConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of the gain per action of the grid, [A] float64; of all where an action is rare."""
    count = torch.bincount(action, minlength=len(config.grid)).double()
    mean = torch.bincount(action, gain.double(), len(config.grid)) / count.clamp(min=1)
    square = torch.bincount(action, gain.double() ** 2, len(config.grid)) / count.clamp(min=1)
    rare = count < 50
    variance = torch.where(rare, gain.double().var(), square - mean**2)
    return torch.where(rare, gain.double().mean(), mean), variance


@torch.no_grad()
def _explained(network: ValueNetwork, train: _Rows, test: _Rows, spill: torch.Tensor) -> float:
    mean, _ = _by_action(train.gain, _action_index(train.after, network.config), network.config)
    base = mean[_action_index(test.after, network.config)] - test.gain
    error = torch.cat(
        [
            predict(network, part, spill) - part.gain
            for part in (test.take(index) for index in torch.arange(len(test.gain)).split(65536))
        ]
    )
    return float(1 - (test.weight * error**2).sum() / (test.weight * base**2).sum())
