"""Mid-pass decisions of a priced policy over known tokens, as pure functions of budgets and the residual stream."""

from dataclasses import dataclass

import numpy as np
import torch

from solm.core.cost import ModelShapes, axis_levels
from solm.core.sparsity import SparsityConfig
from solm.policies.priced import PricedPolicy
from solm.policies.schedules import take, two_levels


@dataclass(frozen=True)
class Decided:
    """Decisions about Q steps of N rows.

    actions: [N, Q] int64, of the layers from the policy's on. realised: [N, Q, 3] float64 shares of all layers
    together. controllable: [N, Q, 3] bool; only these steps count towards the budget of an axis. spent, expected:
    [N, 3] float64 and counted: [N, 3] int64, the sums of realised shares and of those that prices were set for, and the
    number of steps that counted, after the last step.
    """

    actions: torch.Tensor
    realised: torch.Tensor
    controllable: torch.Tensor
    spent: torch.Tensor
    expected: torch.Tensor
    counted: torch.Tensor


def decide_known(
    policy: PricedPolicy,
    hidden: torch.Tensor,
    before: torch.Tensor,
    kv_length: torch.Tensor,
    sparsity: SparsityConfig,
    shapes: ModelShapes,
    *,
    target: torch.Tensor,
    spent: torch.Tensor,
    expected: torch.Tensor,
    counted: torch.Tensor,
    taken: torch.Tensor,
    horizon: torch.Tensor,
) -> Decided:
    """The actions of Q known tokens of N rows, of which no decision depends on what an earlier one did to the model.

    hidden: [N, Q, H] residual stream that enters `policy.layer`. before: [N, Q] int64 actions of the layers before it
    (`policies.unroll` with `Static` finds them). kv_length: [N] int64 keys that the first of the steps sees, its own
    included. target: [N, 3] float64 shares. spent, expected: [N, 3] float64 sums of the shares realised, and of those
    that prices were set for, over `counted` [N, 3] int64 steps. taken: [N] int64 steps since the budget began, counted
    or not; horizon: [N] int64 steps that it is meant for. All but hidden on the host.
    """
    space, steps = policy.space, before.shape[1]
    costs = [axis.numpy() for axis in policy.costs(hidden, space.table[before])]
    kv_lengths = kv_length[:, None] + torch.arange(steps)
    controllable = sparsity.controllable(kv_lengths)
    whole = [axis.numpy() for axis in axis_levels(space, kv_lengths, sparsity, shapes)]
    first = [axis.numpy() for axis in axis_levels(space, kv_lengths, sparsity, shapes, before=policy.layer)]
    rest = [axis - part for axis, part in zip(whole, first, strict=True)]
    early, chosen_levels = space.level_table.numpy()[before.numpy()], space.level_table.numpy()
    # Per axis [N, Q, levels]: what the step realises under each level, the layers before the policy's being known.
    levels = [
        take(part, early[..., axis])[..., None] + after
        for axis, (part, after) in enumerate(zip(first, rest, strict=True))
    ]
    goal, part = target.numpy(), policy.layer / shapes.layers
    ahead = np.stack(
        [_first_layers_share(goal[:, axis, None], whole[axis], first[axis], part) for axis in range(3)], -1
    )
    lowest, highest = (ahead + np.stack([axis[..., end] for axis in rest], -1) for end in (0, -1))
    total, total_expected, total_steps = spent.numpy().copy(), expected.numpy().copy(), counted.numpy().copy()
    done, meant = taken.numpy(), horizon.numpy()
    on = controllable.numpy()
    actions, realised = np.empty(before.shape, dtype=np.int64), np.empty((*before.shape, 3))
    for step in range(steps):
        now = tuple(axis[:, step] for axis in levels)
        action, due = policy.allocate(
            tuple(axis[:, step] for axis in costs), now, goal, total, total_expected, total_steps,
            np.maximum(1, meant - done - step), (lowest[:, step], highest[:, step]),
        )  # fmt: skip
        actions[:, step] = space.controlled(action, on[:, step])
        index = chosen_levels[actions[:, step]]
        realised[:, step] = np.stack([take(axis, index[:, number]) for number, axis in enumerate(now)], 1)
        total += realised[:, step] * on[:, step]
        total_expected += due * on[:, step]
        total_steps += on[:, step]
    return Decided(
        torch.from_numpy(actions), torch.from_numpy(realised), controllable, torch.from_numpy(total),
        torch.from_numpy(total_expected), torch.from_numpy(total_steps),
    )  # fmt: skip


def _first_layers_share(target: np.ndarray, whole: np.ndarray, first: np.ndarray, part: float) -> np.ndarray:
    """What the first layers contribute [N, Q] under a schedule that mixes two levels to realise `target` [N, 1].

    whole, first: [N, Q, levels] shares that levels realise, and what these layers contribute to them. part: these
    layers' number over that of all layers.
    """
    excess = first - part * whole  # what these layers contribute beyond their number
    goal = np.broadcast_to(target, whole.shape[:2])
    lower, upper = two_levels(whole, goal, 0.0)
    low, high = take(whole, lower), take(whole, upper)
    place = ((goal - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    low_excess = take(excess, lower)
    return np.asarray(part * goal + (low_excess + place * (take(excess, upper) - low_excess)))
