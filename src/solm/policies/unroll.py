"""The whole schedule of a policy that does not read the model, found without running the model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from solm.core.arrays import Array, as_numpy, as_tensor, in_kind, is_tensor
from solm.core.budget import Ledger
from solm.core.cost import ModelShapes, axis_levels
from solm.core.sparsity import SparsityConfig
from solm.policies.protocol import Count, Observation, Policy, budget_prior

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Schedule:
    """T steps of N rows: actions [N, T] int64 and the shares that they realise, realised [N, T, 3] float64.

    ledger, state: the rows' ledger and the policy's state after the last step. inputs: what a policy network would read
    besides the model's states, where it was recorded: scalars [N, T, 8], previous actions [N, T], prior [N, T, A].
    All are tensors where kv_length was one, else arrays.
    """

    actions: Any
    realised: Any
    ledger: Ledger
    state: Any
    inputs: "tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None"


def unroll(
    policy: Policy,
    kv_length: Array,
    sparsity: SparsityConfig,
    shapes: ModelShapes,
    steps: int,
    target: Array,
    ledger: Ledger,
    *,
    horizon: Count | None = None,
    first_step: Count = 0,
    state: Any = None,
    previous: Array | None = None,
    generator: "torch.Generator | np.random.Generator | None" = None,
    record: bool = False,
) -> Schedule:
    """The next `steps` actions of a policy with `reads_model` False; dense on axes that a step cannot control.

    kv_length: [N] int64 keys that the next step of every row sees, its own included. target: [N, 3] float64 shares.
    ledger: what the rows have spent. first_step: steps taken before; horizon: steps that the budget is meant for, by
    default those up to the last one found here. state: the policy's, by default that of new rows. previous: [N] int64
    last action, by default dense. record: keep what a policy network would read (`Schedule.inputs`).

    Tensors, or arrays where the policy is one of `solm.policies.schedules` and nothing is recorded.
    """
    space, lengths = policy.space, as_numpy(kv_length)
    rows = np.arange(len(lengths))
    horizon = first_step + steps if horizon is None else horizon
    kv_lengths = lengths[:, None] + np.arange(steps)
    levels = axis_levels(space, kv_lengths, sparsity, shapes)
    controllable = sparsity.controllable(kv_lengths)
    if state is None and is_tensor(kv_length):
        host: Any = kv_length
        state = policy.start(len(lengths), host.device)
    last = np.full(len(lengths), space.dense_index) if previous is None else as_numpy(previous)
    spent = Ledger(as_numpy(ledger.spent), as_numpy(ledger.steps))
    actions, shares, inputs = [], [], []
    for step in range(steps):
        now = [axis[:, step] for axis in levels]
        seen = Observation(
            None, None, in_kind(as_numpy(target), kv_length),
            Ledger(in_kind(spent.spent, kv_length), in_kind(spent.steps, kv_length)),
            (in_kind(now[0], kv_length), in_kind(now[1], kv_length), in_kind(now[2], kv_length)), first_step + step,
            horizon, in_kind(controllable[:, step], kv_length), in_kind(last, kv_length),
        )  # fmt: skip
        chosen, state = policy.act(seen, state, generator)  # type: ignore[arg-type]
        taken = space.controlled(as_numpy(chosen), controllable[:, step])
        if record:
            inputs.append((seen.scalars(), as_tensor(last), budget_prior(seen)))
        level = space.levels[taken]
        realised = np.stack([axis[rows, level[:, index]] for index, axis in enumerate(now)], 1)
        spent, last = spent.add(realised, controllable[:, step]), taken
        actions.append(taken)
        shares.append(realised)
    return Schedule(
        in_kind(np.stack(actions, 1), kv_length),
        in_kind(np.stack(shares, 1), kv_length),
        Ledger(in_kind(spent.spent, kv_length), in_kind(spent.steps, kv_length)),
        state,
        _recorded(inputs) if record else None,
    )


def _recorded(
    inputs: "list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]",
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    import torch

    scalars, previous, prior = (torch.stack(parts, 1) for parts in zip(*inputs, strict=True))
    return scalars, previous, prior
