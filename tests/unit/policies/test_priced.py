"""Prices of shares: budgets are met, and compute goes where it gains."""

import numpy as np
import pytest
import torch

from helpers.policies import SPACE, allocate, network, shares_of
from solm.core.budget import NET_RATES, Ledger
from solm.policies.priced import PriceCurve, equal_prices
from solm.policies.value_network import ValueNetwork
from solm.policies.value_policy import ValueConfig, ValuePolicy


def test_at_the_price_of_a_share_tokens_spend_that_share():
    generator = torch.Generator().manual_seed(0)
    steep = torch.rand(4000, 1, generator=generator)
    shares = torch.tensor([0.4, 0.6, 0.8, 1.0], dtype=torch.float64)
    costs = steep * torch.tensor([1.0, 0.4, 0.1, 0.0])
    curve = PriceCurve(costs, shares)
    for wanted in (0.45, 0.6, 0.75, 0.9):
        price = curve.price(np.array([wanted]))
        assert float(shares[(costs + price[0] * shares).argmin(-1)].mean()) == pytest.approx(wanted, abs=0.02)
        assert curve.share(float(price[0])) == pytest.approx(wanted, abs=0.02)
    beyond = curve.price(np.array([0.1, 1.5]))
    assert (float(beyond[0]), float(beyond[1])) == (pytest.approx(10**1.5), 0)


@pytest.mark.parametrize("horizon", [16, 128])
@pytest.mark.parametrize("shares", [(0.3, 0.5, 0.4), (0.5, 0.7, 0.5), (0.8, 0.9, 0.7)])
def test_every_row_meets_its_budget_and_saves_where_it_costs_least(shares, horizon):
    policy = ValuePolicy(network(), SPACE)
    target = torch.tensor([shares] * 8, dtype=torch.float64)
    ledger, generator = Ledger(torch.zeros(8, 3).double(), torch.zeros(8, 3).long()), torch.Generator().manual_seed(1)
    levels, costs = [], []
    for step in range(horizon):
        predicted = policy.costs(torch.randn(8, 1, 64, generator=generator), SPACE.table[-1].expand(8, 1, 3))
        action = allocate(
            policy, tuple(axis[:, 0] for axis in predicted), shares_of(SPACE, 8), target, ledger, horizon - step
        )
        share = SPACE.table[action] / torch.tensor([1, 1, 16])
        ledger = ledger.add(share, torch.ones(8, 3, dtype=torch.bool))
        levels.append(torch.unravel_index(action, SPACE.shape)[1])
        costs.append(torch.from_numpy(predicted[1][:, 0]))
    # The coarsest level gap is 0.5625 bits-share: half of it is left over at worst, once, at the end.
    assert (ledger.average - target).abs().max() <= max(0.002, 0.6 * 0.5625 / horizon)
    levels, costs = torch.cat(levels), torch.cat(costs)
    shuffled = levels[torch.randperm(len(levels), generator=generator)]
    ours, theirs = (costs.gather(1, choice[:, None]).mean() for choice in (levels, shuffled))
    assert ours < theirs


@pytest.mark.parametrize("harder", [0.4, 2.5])
def test_a_text_unlike_those_of_training_keeps_to_its_budget_from_the_start(harder):
    policy = ValuePolicy(network(), SPACE)
    target = torch.tensor([[0.5, 0.7, 0.5]] * 8, dtype=torch.float64)

    def average(expected: torch.Tensor | None) -> float:
        """The share of the MLP after 64 of 1,024 steps."""
        ledger, generator = (
            Ledger(torch.zeros(8, 3).double(), torch.zeros(8, 3).long()),
            torch.Generator().manual_seed(1),
        )
        for step in range(64):
            predicted = policy.costs(torch.randn(8, 1, 64, generator=generator), SPACE.table[-1].expand(8, 1, 3))
            costs = tuple(harder * axis[:, 0] for axis in predicted)
            action = allocate(policy, costs, shares_of(SPACE, 8), target, ledger, 1024 - step, expected)
            ledger = ledger.add(SPACE.table[action] / torch.tensor([1, 1, 16]), torch.ones(8, 3, dtype=torch.bool))
        return float((ledger.average - target)[:, 1].mean().abs())

    assert average(torch.zeros(8, 3, dtype=torch.float64)) < 0.5 * average(None)


def test_a_net_keep_is_split_at_one_price():
    cheap = ValueNetwork(ValueConfig(base_hidden=64, layer=1, grid=SPACE, width=16))
    noise = 1 + 0.3 * torch.rand(len(cheap.training_sensitivities), 1, generator=torch.Generator().manual_seed(0))
    # Attention costs ten times as much as the MLP, bits nothing.
    cheap.training_sensitivities.copy_(noise.expand(-1, 3))
    with torch.no_grad():
        for known, costs in zip(cheap.level_costs, ([1.0, 0.4], [0.1, 0.04], [0.0, 0.0]), strict=True):
            known.copy_(torch.tensor(costs))
    budget = ValuePolicy(cheap, SPACE).split(0.6, NET_RATES, SPACE.shares)
    assert budget.net == pytest.approx(0.6, abs=1e-6)
    assert budget.attention > budget.mlp > budget.bits / 16 == 5 / 16


def test_an_axis_that_saves_little_is_spent_less():
    """Two axes of equal costs, of which one is worth four times as much: it alone is cut first."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.4, 0.6, 0.8, 1.0], dtype=torch.float64)
    costs = (1 + torch.rand(4000, 1, generator=generator)) * torch.tensor([0.5, 0.2, 0.05, 0.0])
    curves = [PriceCurve(costs, shares), PriceCurve(costs, shares), PriceCurve(torch.zeros(1, 1), torch.ones(1))]
    rates = np.array([0.1, 0.4, 0.0])
    budget = equal_prices(curves, 0.85, rates)
    assert 0.5 + 0.1 * budget.attention + 0.4 * budget.mlp == pytest.approx(0.85, abs=1e-6)
    assert budget.mlp < budget.attention - 0.1
    idle = equal_prices(curves, 0.85, np.array([0.0, 0.5, 0.0]))
    assert (idle.attention, idle.mlp) == (1, pytest.approx(0.7, abs=1e-6))
    dearer = equal_prices(curves, 0.85, rates, (0.1, 1.0, 1.0))
    assert dearer.attention < budget.attention - 0.1, "an axis that loses a tenth is cut more"
    assert dearer.mlp > budget.mlp
    assert equal_prices(curves, 0.85, rates, (7.0, 7.0, 7.0)).shares == pytest.approx(budget.shares, abs=1e-6)
    floor = equal_prices(curves, 0.1, rates)
    assert (floor.attention, floor.mlp) == pytest.approx((0.4, 0.4))
