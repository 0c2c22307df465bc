"""Fitting a value network to counterfactual samples."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from solm.core.actions import FULL_BITS
from solm.policies.value_network import ValueNetwork
from solm.policies.value_policy import ValueConfig
from solm.training.config import FitConfig
from solm.training.counterfactual import Samples, keep_of
from solm.training.one_cycle import OneCycleAdamW

_PART = 8192
"""Rows that are looked at together."""
_LARGEST_COST = 5.0
"""Nats. A few tokens change by more; without the limit they would decide the trust in the network."""
_LEAST = 1e-3
"""Nats that every action is taken to cost at least: the deviance needs positive means."""
_FIRST_INTERFERENCE = 0.05
"""Nats at which the parameter `interference` starts."""


@dataclass(frozen=True)
class Fit:
    """explained: after each epoch, the share of the held-out deviance of divergences that the network explains beyond
    every action's mean. slopes: [3] per axis, least squares of held-out costs on predicted ones; errors: their standard
    errors over texts."""

    explained: list[float]
    slopes: list[float]
    errors: list[float]


@dataclass(frozen=True)
class _Rows:
    """Samples in one row each: hidden [M, H], before [M, 3] shares, after [M, 3] levels, saved [M, 3] average
    shares that the sample's schedule leaves out, divergence [M] and cost [M] in nats."""

    hidden: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    saved: torch.Tensor
    divergence: torch.Tensor
    cost: torch.Tensor

    def take(self, index: torch.Tensor | slice) -> "_Rows":
        """Some rows; a slice shares memory with all of them."""
        return _Rows(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def parts(self) -> "Iterator[_Rows]":
        """All rows, in parts that fit into memory in float32."""
        return (self.take(slice(first, first + _PART)) for first in range(0, len(self.cost), _PART))


def fit(
    samples: Samples,
    config: ValueConfig,
    how: FitConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
    held_out: int | None = None,
) -> tuple[ValueNetwork, Fit]:
    """A value network for `samples`.

    It is fitted to divergences by Poisson deviance, as their variance grows with their mean. For a calibrated model the
    divergence is the expected cost over next tokens, so that the fit does not see the variance of the token that came
    (a Rao-Blackwell estimate). The costs on tokens that came, of held-out texts, set the trust in the network.

    progress: called with optimiser steps done and in all. held_out: so many of the last texts are held out; None: the
    share that `how` says.
    """
    torch.manual_seed(how.seed)
    network = ValueNetwork(config, how.dropout)
    rows, texts = _flatten(samples, config)
    every = len(samples.dense)
    learned = int(every * (1 - how.held_out)) if held_out is None else every - held_out
    last = slice(learned * len(texts) // every, None)
    train, test = rows.take(slice(last.start)), rows.take(last)
    total = how.epochs * -(-len(train.cost) // how.batch)
    # What a step loses through the savings of the steps around it is no part of its own action's cost.
    interference = torch.nn.Parameter(torch.full((3,), _FIRST_INTERFERENCE))
    optimizer = OneCycleAdamW([*network.parameters(), interference], how.learning_rate, how.weight_decay, total)
    explained, done = [], 0
    for _ in range(how.epochs):
        network.train()
        for index in torch.randperm(len(train.cost)).split(how.batch):
            batch = train.take(index)
            cost = predict(network, batch, interference)
            (cost - batch.divergence * cost.log()).mean().backward()
            optimizer.step()
            done += 1
            progress(done, total)
        network.eval()
        if len(test.cost):
            explained.append(_explained(network, train, test, interference.detach()))
    with torch.no_grad():
        count = config.kept_sensitivities
        some = torch.randperm(len(rows.cost))[:count]
        kept = network(rows.hidden[some].float(), rows.before[some])
        scale = kept.mean(0)
        slopes, errors = torch.ones(3), torch.zeros(3)
        if len(test.cost):
            slopes, errors = _slopes(network, train, test, texts[last] - int(texts[last].min()), interference, scale)
        trust = (slopes - errors).clamp(0, 1)
        kept = 1 + trust * (kept / scale - 1)
        network.training_sensitivities.copy_(kept.repeat(-(-count // len(kept)), 1)[:count])
        for axis, costs in enumerate(network.level_costs):
            costs.mul_(scale[axis]).clamp_(min=0)
        network.scale.copy_(scale)
        network.trust.copy_(trust)
    return network, Fit(explained, slopes.tolist(), errors.tolist())


def predict(network: ValueNetwork, rows: _Rows, interference: torch.Tensor) -> torch.Tensor:
    """Cost [M] of the rows' actions, nats. interference: [3] cost per axis of a step among others that save all."""
    cost = (network(rows.hidden, rows.before) * _unit_costs(network, rows, interference)).sum(-1)
    return cost.clamp(min=_LEAST)


def _unit_costs(network: ValueNetwork, rows: _Rows, interference: torch.Tensor) -> torch.Tensor:
    """[M, 3]: per axis what the rows' levels, and the savings around them, cost a token of sensitivity 1."""
    own = [F.pad(costs, (0, 1))[rows.after[:, axis].long()] for axis, costs in enumerate(network.level_costs)]
    return torch.stack(own, 1) + rows.saved * interference


def _slopes(
    network: ValueNetwork,
    train: _Rows,
    test: _Rows,
    texts: torch.Tensor,
    interference: torch.Tensor,
    mean: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """[3] least squares of what average sensitivities, mean [3], leave unexplained of `test`'s costs, on what the
    network's sensitivities add, and their standard errors over texts [M], the numbers of the rows' texts (jackknife).
    Actions are weighted by the inverse variance of their costs in `train`.

    A slope below 1 says that the network separates tokens too far. Less its error it becomes the trust in the network:
    where few texts were held out, or sampled, one that explains nothing would often be trusted by chance.
    """
    _, variance = _by_action(train.cost, _action_index(train.after, network.config), network.config)
    count = int(texts.max()) + 1
    left, right = torch.zeros(count, 3, 3, dtype=torch.float64), torch.zeros(count, 3, dtype=torch.float64)
    for part, some in zip(test.parts(), texts.split(_PART), strict=True):
        unit = _unit_costs(network, part, interference)
        added = ((network(part.hidden, part.before) - mean) * unit).double()
        missing = part.cost.double() - (mean * unit).sum(1).double()
        weighted = added / variance.clamp(min=0.05)[_action_index(part.after, network.config)][:, None]
        left.index_add_(0, some, weighted[:, :, None] * added[:, None])
        right.index_add_(0, some, weighted * missing[:, None])
    without = _solved(left.sum(0) - left, right.sum(0) - right)  # one text
    errors = ((count - 1) / count * (without - without.mean(0)).square().sum(0)).sqrt()
    if count < 2:  # one text says nothing of how texts differ
        errors = torch.full_like(errors, torch.inf)
    return _solved(left.sum(0), right.sum(0)), errors.float()


def _solved(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The solutions [..., 3] of least squares with these sums."""
    return torch.linalg.solve(left + 1e-9 * torch.eye(3), right).float()


def _flatten(samples: Samples, config: ValueConfig) -> tuple[_Rows, torch.Tensor]:
    """Rows of all samples, and the number of the text that each is from."""
    shape = samples.cost.shape
    before, after = keep_of(samples.before, config.grid), keep_of(samples.after, config.grid)
    for keep in (before, after):
        keep[..., 2] /= FULL_BITS
    saved = (1 - after).mean(2, keepdim=True).expand_as(after).float()
    texts = torch.arange(shape[0]).repeat_interleave(shape[1] * shape[2])
    rows = _Rows(
        samples.hidden.flatten(0, 2), before.float().flatten(0, 2), samples.after.flatten(0, 2), saved.flatten(0, 2),
        samples.divergence.flatten(), samples.cost.clamp(-_LARGEST_COST, _LARGEST_COST).flatten(),
    )  # fmt: skip
    return rows, texts


def _action_index(levels: torch.Tensor, config: ValueConfig) -> torch.Tensor:
    a, b, c = levels.long().unbind(-1)
    return (a * config.grid.shape[1] + b) * config.grid.shape[2] + c


def _by_action(value: torch.Tensor, action: torch.Tensor, config: ValueConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance [A] float64 of a value [M] per action of the grid; of all rows where an action is rare."""
    count = torch.bincount(action, minlength=len(config.grid)).double()
    mean = torch.bincount(action, value.double(), len(config.grid)) / count.clamp(min=1)
    square = torch.bincount(action, value.double() ** 2, len(config.grid)) / count.clamp(min=1)
    rare = count < 50
    variance = torch.where(rare, value.double().var(), square - mean**2)
    return torch.where(rare, value.double().mean(), mean), variance


@torch.no_grad()
def _explained(network: ValueNetwork, train: _Rows, test: _Rows, interference: torch.Tensor) -> float:
    mean, _ = _by_action(train.divergence, _action_index(train.after, network.config), network.config)
    base = mean[_action_index(test.after, network.config)].clamp(min=_LEAST)
    cost = torch.cat([predict(network, part, interference) for part in test.parts()])
    return float(1 - _deviance(test.divergence, cost) / _deviance(test.divergence, base))


def _deviance(seen: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Poisson deviance of seen [M] from mean [M], halved."""
    seen, mean = seen.double(), mean.double()
    return (torch.special.xlogy(seen, seen / mean) - seen + mean).sum()
