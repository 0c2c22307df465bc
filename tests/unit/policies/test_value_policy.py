"""Value policies: levels between those learned, what is refused, and a fine space."""

import numpy as np
import pytest
import torch

from helpers.policies import SPACE, allocate
from solm.core.actions import ActionSpace
from solm.core.budget import Ledger
from solm.core.errors import PolicyMismatchError
from solm.policies.value_network import ValueNetwork
from solm.policies.value_policy import ValueConfig, ValuePolicy, costs_between, known_levels


def test_levels_between_those_learned_cost_what_convex_costs_would_and_others_are_refused():
    grid = ActionSpace(mlp=(0.4, 0.8, 1.0), bits=(4, 8, 16))
    (_, mlp, bits) = known_levels(grid, ActionSpace(mlp=(0.4, 0.6, 0.8, 0.9, 1.0), bits=(4, 6, 16)))
    found = costs_between(mlp[0], np.array([1.0, 0.01]), mlp[1])
    np.testing.assert_allclose(found, [1, 0.1, 0.01, 0.0025, 0], atol=1e-12)
    slopes = np.diff(found) / np.diff(mlp[1])
    assert (np.diff(slopes) >= 0).all()  # convex
    np.testing.assert_allclose(costs_between(bits[0], np.array([0.4, 0.0]), bits[1])[[0, 2]], [0.4, 0])
    with pytest.raises(PolicyMismatchError, match=r"mlp level 0\.3 is below .* 0\.4 to 1"):
        known_levels(grid, ActionSpace(mlp=(0.3, 1.0)))


def test_what_costs_are_after_other_contexts_is_interpolated_by_logarithms():
    after = ((512, (1.0, 1.0, 1.0)), (8192, (0.25, 4.0, 1.0)))
    config = ValueConfig(base_hidden=64, layer=1, grid=SPACE, costs_after=after)
    assert config.cost_factors(2048) == pytest.approx((0.5, 2, 1))
    assert config.cost_factors(64) == pytest.approx((1, 1, 1))
    assert config.cost_factors(1 << 20) == pytest.approx((0.25, 4, 1))
    assert ValueConfig(base_hidden=64, layer=1, grid=SPACE).cost_factors(8192) == (1, 1, 1)


@pytest.mark.parametrize("floor", [0.4, 0.62], ids=["in proportion", "some of it always"])
def test_a_fine_space_is_used_between_the_levels_that_were_learned(floor):
    """With average sensitivities alone a policy takes the levels next to the average, whatever a level realises."""
    fine = ActionSpace(mlp=tuple(percent / 100 for percent in range(40, 101, 5)))
    plain = ValueNetwork(ValueConfig(base_hidden=64, layer=1, grid=ActionSpace(mlp=(0.4, 0.6, 0.8, 1.0)), width=16))
    with torch.no_grad():
        plain.level_costs[1].copy_(torch.tensor([1.0, 0.2, 0.03]))
    policy = ValuePolicy(plain, fine)
    shares = torch.tensor([fine.mlp], dtype=torch.float64).clamp(min=floor)
    one, target = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[1.0, 0.68, 1.0]], dtype=torch.float64)
    ledger, taken = Ledger(torch.zeros(1, 3).double(), torch.zeros(1, 3).long()), []
    for step in range(64):
        costs = (one * 0, torch.from_numpy(policy.own_cost[1])[None], one * 0)
        taken.append(int(allocate(policy, costs, (one, shares, one), target, ledger, 64 - step)))
        spent = float(shares[0, taken[-1]])
        ledger = ledger.add(torch.tensor([[1.0, spent, 1.0]], dtype=torch.float64), torch.tensor([True]))
    assert {fine.mlp[level] for level in taken[:-4]} == {0.65, 0.7}
    assert float(ledger.average[0, 1]) == pytest.approx(0.68, abs=0.002)
