"""Schedules that are known before the model runs."""

from dataclasses import dataclass

import torch

from solm.backends.rows import Rows
from solm.backends.torch.plan import axis_levels
from solm.core.budget import Ledger
from solm.policies.protocol import Observation, Policy, budget_prior


@dataclass(frozen=True)
class Schedule:
    """A schedule known in advance: actions [N, T], the shares they realise [N, T, 3], and the ledger after it.

    told: what its policy's network would be told besides the model's states, where that was asked for: scalars
    [N, T, 8], previous actions [N, T], prior [N, T, A].
    """

    actions: torch.Tensor
    realised: torch.Tensor
    ledger: Ledger
    told: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None


def unroll(
    session: Rows,
    policy: Policy,
    steps: int,
    target: torch.Tensor,
    generator: torch.Generator | None = None,
    ledger: Ledger | None = None,
    record: bool = False,
) -> Schedule:
    """The schedule over `steps` steps of a policy that does not read the model, found without running it.

    ledger: what the policy has spent so far; by default what the session's rows have. record: keep what its network
    would be told.
    """
    ledger = session.ledger if ledger is None else ledger
    space, rows = policy.space, torch.arange(session.rows)
    kv_length = session.kv_length[:, None] + torch.arange(steps)
    levels = axis_levels(space, kv_length, session.sparsity, session.control.shapes)
    controllable = kv_length > session.sparsity.always_read
    state = policy.start(session.rows, session.device)
    previous = torch.full((session.rows,), space.dense_index)
    taken, shares, told = [], [], []
    for step in range(steps):
        now = (levels[0][:, step], levels[1][:, step], levels[2][:, step])
        seen = Observation(None, None, target, ledger, now, step, steps, controllable[:, step], previous)
        actions, state = policy.act(seen, state, generator)
        actions = torch.where(seen.controllable, actions, space.dense_index)
        if record:
            told.append((seen.scalars(), previous, budget_prior(seen)))
        chosen = space.level_table[actions]
        realised = torch.stack([axis[rows, chosen[:, index]] for index, axis in enumerate(now)], 1)
        ledger, previous = ledger.book(realised, seen.controllable), actions
        taken.append(actions)
        shares.append(realised)
    kept = [torch.stack(parts, 1) for parts in zip(*told, strict=True)]
    recorded = (kept[0], kept[1], kept[2]) if record else None
    return Schedule(torch.stack(taken, 1), torch.stack(shares, 1), ledger, recorded)
