"""Schedules that are known before the model runs."""

from dataclasses import dataclass

import torch

from solm.budget import Ledger
from solm.decoding.session import Session, axis_levels
from solm.policies.observation import Observation, Policy, budget_prior


@dataclass(frozen=True)
class Schedule:
    """A schedule known in advance: actions [N, T], and per step what its policy's network would be told besides the
    model's states: scalars [N, T, 8], previous [N, T], prior [N, T, A]; and the ledger after it."""

    actions: torch.Tensor
    scalars: torch.Tensor
    previous: torch.Tensor
    prior: torch.Tensor
    ledger: Ledger


def unroll(
    session: Session,
    policy: Policy,
    steps: int,
    target: torch.Tensor,
    generator: torch.Generator | None = None,
    ledger: Ledger | None = None,
) -> Schedule:
    """The schedule over `steps` steps of a policy that does not read the model, found without running it.

    ledger: what the policy has spent so far; by default what the session's rows have.
    """
    kv_length, ledger = session.kv_length, session.ledger if ledger is None else ledger
    state = policy.start(session.rows, session.device)
    previous = torch.full((session.rows,), policy.space.dense_index)
    rows = torch.arange(session.rows)
    told: list[tuple[torch.Tensor, ...]] = []
    for step in range(steps):
        levels = axis_levels(policy.space, kv_length, session.semantics, session.control)
        controllable = kv_length > session.semantics.always_read
        observation = Observation(None, None, target, ledger, levels, step, steps, controllable, previous)
        actions, state = policy.act(observation, state, generator)
        actions = torch.where(controllable, actions, policy.space.dense_index)
        told.append((actions, observation.scalars(), previous, budget_prior(observation)))
        chosen = torch.unravel_index(actions, policy.space.shape)
        realised = torch.stack([axis[rows, index] for axis, index in zip(levels, chosen, strict=True)], 1)
        ledger, kv_length, previous = ledger.book(realised, controllable), kv_length + 1, actions
    actions, scalars, before, prior = (torch.stack(parts, 1) for parts in zip(*told, strict=True))
    return Schedule(actions, scalars, before, prior, ledger)
