"""Prices of shares: budgets are met, and compute goes where it gains."""

import numpy as np
import pytest
import torch

from helpers.policies import SPACE, network
from solm.core.actions import ActionSpace
from solm.core.budget import Ledger
from solm.policies.priced import PriceCurve
from solm.policies.protocol import Observation
from solm.policies.value_policy import ValueConfig, ValueNetwork, ValuePolicy


def test_at_the_price_of_a_share_tokens_spend_that_share():
    generator = torch.Generator().manual_seed(0)
    steep = torch.rand(4000, 1, generator=generator)
    shares = torch.tensor([0.4, 0.6, 0.8, 1.0], dtype=torch.float64)
    gains = -steep * torch.tensor([1.0, 0.4, 0.1, 0.0])
    curve = PriceCurve(gains, shares)
    for wanted in (0.45, 0.6, 0.75, 0.9):
        price = curve.price(np.array([wanted]))
        assert float(shares[(gains - price[0] * shares).argmax(-1)].mean()) == pytest.approx(wanted, abs=0.02)
        assert curve.share(float(price[0])) == pytest.approx(wanted, abs=0.02)
    beyond = curve.price(np.array([0.1, 1.5]))
    assert (float(beyond[0]), float(beyond[1])) == (pytest.approx(10**1.5), 0)


def observation(space: ActionSpace, target, ledger, step, horizon) -> Observation:
    rows = len(target)
    levels = tuple(
        torch.tensor(axis, dtype=torch.float64).expand(rows, -1)
        for axis in (space.attention, space.mlp, [bits / 16 for bits in space.bits])
    )
    on = torch.ones(rows, dtype=torch.bool)
    return Observation(None, None, target, ledger, levels, step, horizon, on, torch.zeros(rows, dtype=torch.long))


@pytest.mark.parametrize("horizon", [16, 128])
@pytest.mark.parametrize("shares", [(0.3, 0.5, 0.4), (0.5, 0.7, 0.5), (0.8, 0.9, 0.7)])
def test_every_row_meets_its_budget_and_compute_goes_where_it_gains(shares, horizon):
    policy = ValuePolicy(network(), SPACE)
    target = torch.tensor([shares] * 8, dtype=torch.float64)
    ledger, generator = Ledger.empty(8), torch.Generator().manual_seed(1)
    levels, gained = [], []
    for step in range(horizon):
        gains = policy.gains(torch.randn(8, 1, 64, generator=generator), SPACE.table[-1].expand(8, 1, 3))
        seen = observation(SPACE, target, ledger, step, horizon)
        action = policy.allocate(tuple(gain[:, 0] for gain in gains), seen)
        share = SPACE.table[action] / torch.tensor([1, 1, 16])
        ledger = ledger.book(share, seen.controllable)
        levels.append(torch.unravel_index(action, SPACE.shape)[1])
        gained.append(gains[1][:, 0])
    # The coarsest level gap is 0.5625 bits-share: half of it is left over at worst, once, at the end.
    assert (ledger.average - target).abs().max() <= max(0.002, 0.6 * 0.5625 / horizon)
    levels, gained = torch.cat(levels), torch.cat(gained)
    shuffled = levels[torch.randperm(len(levels), generator=generator)]
    ours, theirs = (gained.gather(1, choice[:, None]).mean() for choice in (levels, shuffled))
    assert ours > theirs


def test_a_net_keep_is_split_at_one_price():
    cheap = ValueNetwork(ValueConfig(base_hidden=64, layer=1, grid=SPACE, width=16))
    noise = 1 + 0.3 * torch.rand(len(cheap.calibration), 1, generator=torch.Generator().manual_seed(0))
    # Attention costs ten times as much as the MLP, bits nothing.
    cheap.calibration.copy_(noise.expand(-1, 3))
    with torch.no_grad():
        for allocation, costs in zip(cheap.profiles, ([-1.0, -0.4], [-0.1, -0.04], [0.0, 0.0]), strict=True):
            allocation.copy_(torch.tensor(costs))
    budget = ValuePolicy(cheap, SPACE).split(0.6)
    assert budget.net == pytest.approx(0.6, abs=1e-6)
    assert budget.attention > budget.mlp > budget.bits / 16 == 5 / 16
