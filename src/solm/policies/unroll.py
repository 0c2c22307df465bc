"""The whole schedule of a policy that does not read the model, found without running the model."""

from dataclasses import dataclass
from typing import Any

import torch

from solm.core.budget import Ledger
from solm.core.cost import ModelShapes
from solm.core.shares import axis_levels
from solm.core.sparsity import SparsityConfig
from solm.policies.protocol import Count, Observation, Policy, budget_prior


@dataclass(frozen=True)
class Schedule:
    """T steps of N rows: actions [N, T] int64 and the shares that they realise, realised [N, T, 3] float64.

    ledger, state: the rows' ledger and the policy's state after the last step. inputs: what a policy network would read
    besides the model's states, where it was recorded: scalars [N, T, 8], previous actions [N, T], prior [N, T, A].
    """

    actions: torch.Tensor
    realised: torch.Tensor
    ledger: Ledger
    state: Any
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None


def unroll(
    policy: Policy,
    kv_length: torch.Tensor,
    sparsity: SparsityConfig,
    shapes: ModelShapes,
    steps: int,
    target: torch.Tensor,
    ledger: Ledger,
    *,
    horizon: Count | None = None,
    first_step: Count = 0,
    state: Any = None,
    previous: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
    record: bool = False,
) -> Schedule:
    """The next `steps` actions of a policy with `reads_model` False; dense where a step cannot be controlled.

    kv_length: [N] int64 keys that the next step of every row sees, its own included. target: [N, 3] float64 shares.
    ledger: what the rows have spent. first_step: steps taken before; horizon: steps that the budget is meant for, by
    default those up to the last one found here. state: the policy's, by default that of new rows. previous: [N] int64
    last action, by default dense. record: keep what a policy network would read (`Schedule.inputs`).
    """
    space, rows = policy.space, torch.arange(len(kv_length))
    horizon = first_step + steps if horizon is None else horizon
    kv_lengths = kv_length[:, None] + torch.arange(steps)
    levels = axis_levels(space, kv_lengths, sparsity, shapes)
    controllable = kv_lengths > sparsity.always_read
    state = policy.start(len(kv_length), torch.device("cpu")) if state is None else state
    previous = torch.full((len(kv_length),), space.dense_index) if previous is None else previous
    actions, shares, inputs = [], [], []
    for step in range(steps):
        now = (levels[0][:, step], levels[1][:, step], levels[2][:, step])
        seen = Observation(
            None, None, target, ledger, now, first_step + step, horizon, controllable[:, step], previous
        )  # fmt: skip
        taken, state = policy.act(seen, state, generator)
        taken = torch.where(seen.controllable, taken, space.dense_index)
        if record:
            inputs.append((seen.scalars(), previous, budget_prior(seen)))
        chosen = space.level_table[taken]
        realised = torch.stack([axis[rows, chosen[:, index]] for index, axis in enumerate(now)], 1)
        ledger, previous = ledger.add(realised, seen.controllable), taken
        actions.append(taken)
        shares.append(realised)
    kept = [torch.stack(parts, 1) for parts in zip(*inputs, strict=True)]
    recorded = (kept[0], kept[1], kept[2]) if record else None
    return Schedule(torch.stack(actions, 1), torch.stack(shares, 1), ledger, state, recorded)
