"""Schedules driven without a model."""

import torch
from hypothesis import strategies as st

from solm.core.actions import PRESETS
from solm.core.budget import Ledger
from solm.policies.protocol import Observation


def run_schedule(policy, target, steps, seed=0):
    """Drive a blind schedule over constant levels; realised averages [N, 3]."""
    space, rows = policy.space, len(target)
    levels = tuple(
        torch.tensor(axis, dtype=torch.float64).expand(rows, -1) / (16 if index == 2 else 1)
        for index, axis in enumerate((space.attention, space.mlp, space.bits))
    )
    ledger, generator = Ledger.empty(rows), torch.Generator().manual_seed(seed)
    previous = torch.full((rows,), space.dense_index)
    on = torch.ones(rows, 3, dtype=torch.bool)
    shares = space.table / torch.tensor([1, 1, 16.0])
    for step in range(steps):
        observation = Observation(None, None, target, ledger, levels, step, steps, on, previous)
        previous, _ = policy.act(observation, None, generator)
        ledger = ledger.add(shares[previous], on)
    return ledger.average


SPACES = st.sampled_from([PRESETS[name] for name in ("joint-8", "joint-27", "joint-336", "mlp-40", "bits-5-10")])
