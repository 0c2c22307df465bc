"""Untrained policies and made-up allocations for the tiny models."""

import numpy as np
import torch

from solm.core.actions import ActionSpace
from solm.core.allocation import KNOTS, Allocation
from solm.core.sparsity import SparsityConfig
from solm.policies.artifact import PolicyConfig, TrainedPolicy
from solm.policies.network import NetworkConfig
from solm.policies.value_policy import ValueConfig, ValueNetwork

SPARSITY = SparsityConfig(page_size=8, window=8)
SPACE = ActionSpace.preset("joint-27")
EVEN = tuple((np.arange(KNOTS) / (KNOTS - 1)).tolist())


def network(layer: int = 1, grid: ActionSpace = SPACE, seed: int = 0) -> ValueNetwork:
    """Random sensitivities and plausible costs."""
    torch.manual_seed(seed)
    made = ValueNetwork(ValueConfig(base_hidden=64, layer=layer, grid=grid, width=16))
    torch.nn.init.normal_(made.head.weight, std=0.5)
    with torch.no_grad():
        for allocation in made.profiles:
            allocation.copy_(torch.tensor([-1.0, -0.3]))
        made.calibration.copy_(made(torch.randn(len(made.calibration), 64), torch.ones(len(made.calibration), 3)))
    return made.eval()


def under_values(lm, sparsity):
    """The tiny model with a value policy that was not trained but tells tokens apart."""
    values = network(layer=1)
    config = PolicyConfig(
        base=lm.identity, space=values.config.grid, sparsity=sparsity, network=values.config
    )  # fmt: skip
    lm.trained, lm.sparsity = TrainedPolicy(config, values), sparsity
    return lm


def under_policy(lm):
    """The tiny model with an untrained policy network."""
    config = PolicyConfig(
        base=lm.identity,
        space=ActionSpace.preset("joint-8"),
        sparsity=SparsityConfig(window=32, page_size=8),
        network=NetworkConfig(base_hidden=64, actions=8, width=16, heads=2),
    )
    lm.trained, lm.sparsity = TrainedPolicy(config), config.sparsity
    return lm


def profile_of(*bends: float) -> Allocation:
    """Layers that keep s + bend · s (1 - s) where the average keeps s; bends should add up to 0."""
    s = np.array(EVEN)
    curves = tuple(tuple((s + bend * s * (1 - s)).round(12).tolist()) for bend in bends)
    return Allocation(attention=curves, mlp=tuple(reversed(curves)))


def sparsity_of(*bends: float, **options) -> SparsityConfig:
    return SparsityConfig(window=16, allocation=profile_of(*bends), **options)


def by_head(allocation: Allocation) -> Allocation:
    """Two KV heads of every layer, the first of which reads more than the layer did and the other less."""
    pairs = [(np.sqrt(curve), 2 * np.array(curve) - np.sqrt(curve)) for curve in allocation.attention]
    curves = (tuple(np.maximum.accumulate(head.clip(0, 1)).tolist()) for pair in pairs for head in pair)
    return Allocation(attention=tuple(curves), mlp=allocation.mlp)


BENDS = (0.9, -0.6, -0.7, 0.4)
