"""Fitting a value network to counterfactual samples."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from solm.core.actions import FULL_BITS
from solm.policies.value_policy import ValueConfig, ValueNetwork
from solm.training.config import FitConfig
from solm.training.counterfactual import Samples, keep_of

_LARGEST_GAIN = 5.0
"""Nats; single tokens can change by more, and would then decide how far the network is believed."""
_LEAST = 1e-3
"""Nats that every action is taken to cost at least: the deviance needs positive means."""
_SPILL = -0.05
"""Where `spill` begins."""


@dataclass(frozen=True)
class Fit:
    """explained: share of the held-out deviance of divergences explained beyond every action's mean, by epoch. slopes:
    per axis by how much held-out gains change where the network says by 1."""

    explained: list[float]
    slopes: list[float]


@dataclass(frozen=True)
class _Rows:
    """Samples in one row each: hidden [M, H], before [M, 3] shares, after [M, 3] levels, saved [M, 3] what the
    schedule that the sample is from saves on average, divergence [M], gain [M]."""

    hidden: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    saved: torch.Tensor
    divergence: torch.Tensor
    gain: torch.Tensor

    def take(self, index: torch.Tensor) -> "_Rows":
        return _Rows(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def parts(self) -> "Iterator[_Rows]":
        """All rows, so many at a time as fit into memory in float32."""
        return (self.take(index) for index in torch.arange(len(self.gain)).split(65536))


def fit(
    samples: Samples,
    config: ValueConfig,
    how: FitConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[ValueNetwork, Fit]:
    """A value network for `samples`.

    It is fitted to divergences, by Poisson deviance, whose variance grows with the mean as theirs does. For a
    calibrated model the divergence is the expectation, over next tokens, of what the action costs, so that the fit
    does not see the luck of the token that came (a Rao-Blackwell estimate). What came still judges: gains held out
    say how far the network is believed.

    progress: called with optimiser steps done and in all.
    """
    torch.manual_seed(how.seed)
    network = ValueNetwork(config, how.dropout)
    rows, texts = _flatten(samples, config)
    last = texts >= int(len(samples.dense) * (1 - how.held_out))
    train, test = rows.take((~last).nonzero()[:, 0]), rows.take(last.nonzero()[:, 0])
    total = how.epochs * -(-len(train.gain) // how.batch)
    # What a step loses to the savings of the steps around it is no part of its own action's cost.
    spill = torch.nn.Parameter(torch.full((3,), _SPILL))
    optimizer = torch.optim.AdamW([*network.parameters(), spill], lr=how.learning_rate, weight_decay=how.weight_decay)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.learning_rate, total_steps=total, pct_start=0.1)
    explained, done = [], 0
    for _ in range(how.epochs):
        network.train()
        for index in torch.randperm(len(train.gain)).split(how.batch):
            batch = train.take(index)
            cost = predict(network, batch, spill)
            optimizer.zero_grad(set_to_none=True)
            (cost - batch.divergence * cost.log()).mean().backward()
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
        slopes = _slopes(network, train, test, spill, scale) if len(test.gain) else torch.ones(3)
        trust = slopes.clamp(0, 1)
        kept = 1 + trust * (kept / scale - 1)
        network.calibration.copy_(kept.repeat(-(-config.calibration // len(kept)), 1)[: config.calibration])
        for axis, allocation in enumerate(network.profiles):
            allocation.mul_(scale[axis]).clamp_(max=0)
        network.scale.copy_(scale)
        network.trust.copy_(trust)
    return network, Fit(explained, slopes.tolist())


def predict(network: ValueNetwork, rows: _Rows, spill: torch.Tensor) -> torch.Tensor:
    """Cost [M] of the rows' actions, nats; spill [3] is the gain per axis of a step among others that save all."""
    gain = (network(rows.hidden, rows.before) * _unit_gains(network, rows, spill)).sum(-1)
    return (-gain).clamp(min=_LEAST)


def _unit_gains(network: ValueNetwork, rows: _Rows, spill: torch.Tensor) -> torch.Tensor:
    """Per axis what the rows' levels, and the savings around them, gain a token of sensitivity 1: [M, 3]."""
    own = [F.pad(allocation, (0, 1))[rows.after[:, axis].long()] for axis, allocation in enumerate(network.profiles)]
    return torch.stack(own, 1) + rows.saved * spill


def _slopes(network: ValueNetwork, train: _Rows, test: _Rows, spill: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Least squares, per axis, of what average sensitivities `mean` [3] leave unexplained of `test`'s gains on what the
    network adds; actions are weighted by how little gains vary in `train`.

    Below 1 the network tells tokens further apart than they are: that much of its word should be believed.
    """
    _, variance = _by_action(train.gain, _action_index(train.after, network.config), network.config)
    left, right = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for part in test.parts():
        unit = _unit_gains(network, part, spill)
        added = ((network(part.hidden, part.before) - mean) * unit).double()
        missing = part.gain.double() - (mean * unit).sum(1).double()
        weighted = added / variance.clamp(min=0.05)[_action_index(part.after, network.config)][:, None]
        left += weighted.T @ added
        right += weighted.T @ missing
    return torch.linalg.lstsq(left + 1e-9 * torch.eye(3), right[:, None]).solution[:, 0].float()


def _flatten(samples: Samples, config: ValueConfig) -> tuple[_Rows, torch.Tensor]:
    """Rows of all samples, and which text each is from."""
    shape = samples.gain.shape
    before, after = keep_of(samples.before, config.grid), keep_of(samples.after, config.grid)
    for keep in (before, after):
        keep[..., 2] /= FULL_BITS
    saved = (1 - after).mean(2, keepdim=True).expand_as(after).float()
    texts = torch.arange(shape[0]).repeat_interleave(shape[1] * shape[2])
    rows = _Rows(
        samples.hidden.flatten(0, 2), before.float().flatten(0, 2), samples.after.flatten(0, 2), saved.flatten(0, 2),
        samples.divergence.flatten(), samples.gain.clamp(-_LARGEST_GAIN, _LARGEST_GAIN).flatten(),
    )  # fmt: skip
    return rows, texts


def _action_index(levels: torch.Tensor, config: ValueConfig) -> torch.Tensor:
    a, b, c = levels.long().unbind(-1)
    return (a * config.grid.shape[1] + b) * config.grid.shape[2] + c


def _by_action(value: torch.Tensor, action: torch.Tensor, config: ValueConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of a value [M] per action of the grid, [A] float64; of all where an action is rare."""
    count = torch.bincount(action, minlength=len(config.grid)).double()
    mean = torch.bincount(action, value.double(), len(config.grid)) / count.clamp(min=1)
    square = torch.bincount(action, value.double() ** 2, len(config.grid)) / count.clamp(min=1)
    rare = count < 50
    variance = torch.where(rare, value.double().var(), square - mean**2)
    return torch.where(rare, value.double().mean(), mean), variance


@torch.no_grad()
def _explained(network: ValueNetwork, train: _Rows, test: _Rows, spill: torch.Tensor) -> float:
    mean, _ = _by_action(train.divergence, _action_index(train.after, network.config), network.config)
    base = mean[_action_index(test.after, network.config)].clamp(min=_LEAST)
    cost = torch.cat([predict(network, part, spill) for part in test.parts()])
    return float(1 - _deviance(test.divergence, cost) / _deviance(test.divergence, base))


def _deviance(seen: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Poisson deviance of seen [M] from mean [M], halved."""
    seen, mean = seen.double(), mean.double()
    return (torch.special.xlogy(seen, seen / mean) - seen + mean).sum()
