"""Regression of sensitivities: it finds what was planted, and little where there is nothing."""

import numpy as np
import pytest
import torch

from helpers.policies import SPACE
from solm.core.actions import WHOLE
from solm.fit.costs import cost_factors
from solm.fit.regression import fit_samples, set_level_costs
from solm.fit.samples import Samples, draw_levels, keep_of
from solm.policies.value_network import ValueNetwork
from solm.policies.value_policy import ValueConfig, ValuePolicy


def planted(noise: float) -> Samples:
    """Costs of which one direction of the hidden state says what the MLP's levels cost; divergences vary by a factor,
    as costs do by what token came."""
    generator = torch.Generator().manual_seed(0)
    before, after = draw_levels(SPACE, 120, 3, 64, generator)
    hidden = torch.randn(120, 3, 64, 64, generator=generator)
    need = torch.sigmoid(2 * hidden[..., 0])
    cost = torch.tensor([1.0, 0.3, 0.0])[after[..., 1].long()] * need
    came = cost - noise * torch.randn(cost.shape, generator=generator)
    divergence = cost * 2 * torch.rand(cost.shape, generator=generator)
    whole = torch.tensor(WHOLE)
    saved = (1 - keep_of(after, SPACE) / whole).mean(2, keepdim=True).expand(after.shape)
    return Samples(
        hidden.bfloat16().flatten(0, 2), (keep_of(before, SPACE) / whole).float().flatten(0, 2), after.flatten(0, 2),
        saved.float().flatten(0, 2), came.flatten(), divergence.flatten(),
    )  # fmt: skip


def test_regression_finds_what_is_there_and_trusts_it_as_far_as_held_out_samples_do():
    config = ValueConfig(base_hidden=64, layer=1, grid=SPACE, width=32)
    network = fit_samples(planted(noise=1), config, 120, 12, batch=512, dropout=0.1)
    # Sensitivities are 1 on average; the costs are the planted ones, on the planted axis alone.
    torch.testing.assert_close(network.training_sensitivities.float().mean(0), torch.ones(3), rtol=0, atol=0.05)
    costs = [axis.detach() for axis in network.level_costs]
    assert float(costs[1][0]) == pytest.approx(0.5, abs=0.1)
    assert float(costs[0][0]) == pytest.approx(0, abs=0.1)
    assert 0.6 < float(network.trust[1]) <= 1


def test_little_is_found_and_trusted_where_there_is_nothing():
    config = ValueConfig(base_hidden=64, layer=1, grid=SPACE, width=32)
    luck = planted(noise=1)
    order = torch.randperm(luck.cost.numel(), generator=torch.Generator().manual_seed(4))
    luck.cost.copy_(luck.cost[order])
    luck.divergence.copy_(torch.rand(luck.cost.shape, generator=torch.Generator().manual_seed(3)))
    network = fit_samples(luck, config, 120, 12, epochs=2, batch=512, dropout=0.1)
    assert float(network.trust[1]) < 0.2


def test_only_a_steps_own_part_of_attentions_cost_scales_with_sensitivity():
    made = ValueNetwork(ValueConfig(base_hidden=64, layer=1, grid=SPACE, width=16))
    with torch.no_grad():
        for costs in made.level_costs:
            costs.copy_(torch.tensor([0.5, 0.1]))
        measured = ([1.0, 0.4, 0.0], [0.8, 0.2, 0.0], [0.3, 0.05, 0.0])
        set_level_costs(made, [torch.tensor(costs) for costs in measured])
    assert made.config.attention_own == (0.5, 0.25)
    attention, mlp, bits = ValuePolicy(made, SPACE).level_costs(np.array([[1.0, 1, 1], [3, 3, 3]]))
    assert np.allclose(attention, [[1.0, 0.4, 0], [2.0, 0.6, 0]], rtol=0, atol=1e-7)
    assert np.allclose(mlp[1], 3 * mlp[0])
    assert np.allclose(bits[1], 3 * bits[0])


def test_what_levels_cost_after_another_context_is_one_multiple_per_axis():
    near, far = [[0.4, 0.1, 0.0], [1.0, 0.2, 0.0], [0.0]], [[0.15, 0.1, 0.0], [2.0, 1.6, 0.0], [0.0]]
    assert cost_factors(near, far) == pytest.approx((0.5, 3, 1))
    assert cost_factors(near, [[0.0] * 3, *near[1:]]) == pytest.approx((0.01, 1, 1)), "never free"
