"""Schedules driven without a model."""

import numpy as np
import torch
from hypothesis import strategies as st

from solm.core.budget import Ledger
from solm.paper.config import GRIDS
from solm.policies.schedules import unroll


def run_schedule(policy, target, steps):
    """Drive a blind schedule over constant levels; realised averages [N, 3]."""
    space, rows = policy.space, len(target)
    levels = tuple(
        np.tile(np.array(axis, dtype=np.float64) / (16 if index == 2 else 1), (rows, steps, 1))
        for index, axis in enumerate((space.attention, space.mlp, space.bits))
    )
    nothing = np.zeros((rows, 3))
    ledger = Ledger(nothing, nothing.astype(np.int64))
    found = unroll(policy, levels, np.ones((rows, steps, 3), dtype=bool), np.asarray(target), ledger)
    return torch.from_numpy(found.ledger.average)


SPACES = st.sampled_from([GRIDS[name] for name in ("joint-8", "joint-27", "joint-336", "mlp-40", "bits-5-10")])
