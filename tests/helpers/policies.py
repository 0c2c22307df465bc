"""Untrained policies and made-up allocations for the tiny models."""

import numpy as np
import torch

from solm.core.actions import ActionSpace
from solm.core.sparsity import KNOTS, Allocation, SparsityConfig
from solm.policies.artifact import PolicyConfig, TrainedPolicy
from solm.policies.value_network import ValueNetwork
from solm.policies.value_policy import ValueConfig

SPARSITY = SparsityConfig(page_size=8, window=8)
SPACE = ActionSpace.preset("joint-27")
EVEN = tuple((np.arange(KNOTS) / (KNOTS - 1)).tolist())


def network(layer: int = 1, grid: ActionSpace = SPACE, seed: int = 0) -> ValueNetwork:
    """Random sensitivities and plausible costs."""
    torch.manual_seed(seed)
    made = ValueNetwork(ValueConfig(base_hidden=64, layer=layer, grid=grid, width=16))
    torch.nn.init.normal_(made.head.weight, std=0.5)
    with torch.no_grad():
        for costs in made.level_costs:
            costs.copy_(torch.linspace(1.0, 0.3, len(costs)))
        count = len(made.training_sensitivities)
        made.training_sensitivities.copy_(made(torch.randn(count, 64), torch.ones(count, 3)))
    return made.eval()


def under_values(lm, sparsity):
    """The tiny model with a value policy that was not trained but tells tokens apart."""
    values = network(layer=1)
    config = PolicyConfig(
        base=lm.identity, space=values.config.grid, sparsity=sparsity, network=values.config
    )  # fmt: skip
    return lm.with_policy(TrainedPolicy(config, values))


def under_policy(lm):
    """The tiny model with an untrained value policy on a coarse grid."""
    values = network(grid=ActionSpace(attention=(0.1, 1.0), mlp=(0.6, 1.0), bits=(5, 16)))
    config = PolicyConfig(
        base=lm.identity,
        space=values.config.grid,
        sparsity=SparsityConfig(window=32, page_size=8),
        network=values.config,
    )
    return lm.with_policy(TrainedPolicy(config, values))


def profile_of(*bends: float) -> Allocation:
    """Layers that keep s + bend · s (1 - s) where the average keeps s; bends should add up to 0."""
    s = np.array(EVEN)
    curves = tuple(tuple((s + bend * s * (1 - s)).round(12).tolist()) for bend in bends)
    return Allocation(attention=curves, mlp=curves[::-1], hidden=curves[::-1])


def with_hidden(allocation: Allocation, *bends: float) -> Allocation:
    """The same with curves of their own for hidden channels, bent as those of `profile_of`."""
    return allocation.model_copy(update={"hidden": profile_of(*bends).attention})


def with_projections(allocation: Allocation, *bends: float) -> Allocation:
    """The same with curves of their own for the inputs of attention's projections: one bent, and one the other way."""
    curves = profile_of(*bends)
    return allocation.model_copy(update={"qkv": curves.attention, "out": curves.mlp})


def sparsity_of(*bends: float, **options) -> SparsityConfig:
    return SparsityConfig(window=16, allocation=profile_of(*bends), **options)


def by_head(allocation: Allocation) -> Allocation:
    """Two KV heads of every layer, the first of which reads more than the layer did and the other less."""
    pairs = [(np.sqrt(curve), 2 * np.array(curve) - np.sqrt(curve)) for curve in allocation.attention]
    curves = (tuple(np.maximum.accumulate(head.clip(0, 1)).tolist()) for pair in pairs for head in pair)
    return allocation.model_copy(update={"attention": tuple(curves)})


BENDS = (0.9, -0.6, -0.7, 0.4)


def shares_of(space: ActionSpace, rows: int) -> tuple[torch.Tensor, ...]:
    """Per axis the nominal shares [rows, levels]."""
    axes = (space.attention, space.mlp, [bits / 16 for bits in space.bits])
    return tuple(torch.tensor(axis, dtype=torch.float64).expand(rows, -1) for axis in axes)


def allocate(policy, costs, levels, target, ledger, remaining, expected=None) -> torch.Tensor:
    """The actions of a step. expected: [N, 3], to which it adds what prices were set for; None: what was spent."""
    arrays = ([np.asarray(axis) for axis in axes] for axes in (costs, levels))
    known = ledger.spent if expected is None else expected
    budget = (part.numpy() for part in (target, ledger.spent, known, ledger.steps))
    later = tuple(np.stack([np.asarray(axis)[:, end] for axis in levels], 1) for end in (0, -1))
    action, due = policy.allocate(*arrays, *budget, remaining, later)
    if expected is not None:
        expected += torch.from_numpy(due)
    return torch.from_numpy(action)
