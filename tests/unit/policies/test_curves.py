"""Curves of sites under one price, against activations of a known distribution."""

import numpy as np
import pytest

from helpers.policies import EVEN
from solm.core.sparsity import PERCENTAGES, Allocation
from solm.policies.curves import BIT_PROBES, PROBES, bit_losses, left_out, priced_curves, site_losses

SPREAD = np.linspace(1, 0, PERCENTAGES)
"""Quantiles of |x| that is evenly spread from 0 to 1: a share s leaves out the mean square (1 - s)³ / 3."""
KEPT = np.linspace(0, 1, PERCENTAGES)
LIMITS = np.array([[SPREAD, 2 * SPREAD], [SPREAD, SPREAD]])


def test_what_a_share_leaves_out():
    found = left_out(LIMITS)[0]
    assert np.allclose(found[0], (1 - KEPT) ** 3 / 3, atol=1e-4)
    assert np.allclose(found[1], 4 * found[0])


def test_a_loss_is_that_of_the_probe_beyond_rounding_and_follows_the_square():
    rounding = np.array([0.02, 0.01])
    costs = {
        "mlp": np.stack([np.array([0.05, 0.4]) + rounding, rounding], 1),
        "hidden": np.array([0.01, 0.02])[:, None] + rounding[:, None],
    }
    found = site_losses(costs, LIMITS)
    for site, axis in enumerate(costs):
        at = round(100 * PROBES[axis][0])
        assert np.allclose(found[:, site, at], costs[axis][:, 0] - rounding)
        assert np.allclose(found[..., -1], 0)
        slopes = np.polyfit(np.log(1 - KEPT[20:90]), np.log(found[0, site, 20:90]), 1)
        assert abs(slopes[0] - 3 * 1.3) < 0.02
    costs["hidden"][0] = 0.0
    assert 0 < site_losses(costs, LIMITS)[0, 1, 20] < 1e-4, "noise below rounding counts as almost nothing"


@pytest.mark.parametrize("parts", [(0.7, 0.3), (0.6, 0.25, 0.1, 0.05)])
def test_all_layers_and_sites_have_one_price(parts):
    sensitivity = np.array([[3.0, 0.5, 0.5, 0.2], [1.0, 2.0, 0.3, 0.2], [0.4, 1.0, 0.4, 0.3]])[:, : len(parts)]
    curves = priced_curves(sensitivity[..., None] * (1 - KEPT) ** 3, parts)
    Allocation(attention=(EVEN,) * 3, **curves)  # raises for what is no allocation
    assert list(curves) == list(PROBES)[: len(parts)]
    shares = np.stack([np.array(curve) for curve in curves.values()], 1)  # [layers, sites, knots]
    assert np.allclose(np.tensordot(parts, shares, (0, 1)).mean(0), EVEN, atol=0.003)
    price = sensitivity * (1 - shares[..., 10]) ** 2 / np.array(parts)
    assert np.allclose(price, price.mean(), rtol=0.1)


UPPER = 0.6
PARTS = (0.6, 0.25, 0.1, 0.05)


def priced_with_bits(of_bits):
    """Curves of three layers [layers, sites, knots], and of the bits of their first two sites, 1 or 0."""
    sensitivity = np.array([[3.0, 0.5, 0.5, 0.2], [1.0, 2.0, 0.3, 0.2], [0.4, 1.0, 0.4, 0.3]])
    lost = sensitivity[..., None] * (1 - KEPT) ** 3
    costs = {"mlp": np.zeros((3, 2)), "input_bits": of_bits[:, :1], "hidden_bits": of_bits[:, 1:]}
    curves = priced_curves(lost, PARTS, bit_losses(costs, len(PARTS)), UPPER)
    assert list(curves) == [*PROBES, *BIT_PROBES]
    Allocation(attention=(EVEN,) * 3, **curves)  # raises for what is no allocation
    shares, bits = (np.stack([np.array(curves[axis]) for axis in some], 1) for some in (PROBES, BIT_PROBES))
    return shares, bits, lost


def test_lower_bits_go_where_they_are_worth_less_than_their_time():
    shares, bits, _ = priced_with_bits(np.array([[1e-4, 10.0], [1e-4, 10.0], [10.0, 1e-4]]))
    assert set(np.unique(bits)) <= {0, 1}
    assert (bits[:2, 0, 1:10] == 0).all()
    assert (bits[2, 1, 1:10] == 0).all()
    assert (bits[:2, 1] == 1).all(), "what loses 10 nats is read whole"
    assert (bits[2, 0] == 1).all()
    assert (bits[..., -1] == 1).all()
    weights = np.where(np.concatenate([bits, np.ones_like(bits)], 1) == 1, 1.0, UPPER)
    realised = np.tensordot(PARTS, shares * weights, (0, 1)).mean(0)
    assert (realised <= np.array(EVEN) + 1e-6).all()
    assert np.allclose(realised[1:-3], np.array(EVEN)[1:-3], atol=0.02)
