"""Milliseconds as a linear function of realised shares."""

import numpy as np
import pytest

from helpers.timings import CPU, SHAPES, made_timings
from solm.core.measured import MeasuredCost
from solm.core.sparsity import SparsityConfig


def test_rates_are_those_of_the_levels_that_were_measured():
    known = MeasuredCost(made_timings(CPU, SHAPES), CPU, SHAPES)
    assert known.dense(250) == pytest.approx(10)
    assert known.rates(100) == pytest.approx((1, 5, 0))
    assert known.rates(250) == pytest.approx((2.5, 5, 0))
    assert known.rates(9000) == pytest.approx((4, 5, 0)), "beyond the contexts the nearest holds"
    assert known.share((0.5, 0.6, 1.0), 400) == pytest.approx(1 - 0.5 * 0.4 - 0.4 * 0.5)


def test_the_cost_of_an_average_is_the_average_cost():
    known = MeasuredCost(made_timings(CPU, SHAPES), CPU, SHAPES)
    shares = np.random.default_rng(0).random((3, 7, 3))
    every = known.milliseconds(shares, np.full(7, 230))
    assert every.shape == (3, 7)
    assert np.allclose(every.mean(1), known.milliseconds(shares.mean(1), 230.0))


def test_channels_are_worth_the_same_in_every_context():
    known = made_timings(CPU, SHAPES)
    noisy = known.model_copy(update={"mlp_ms": (known.mlp_ms[0], tuple(10 - (10 - ms) / 2 for ms in known.mlp_ms[1]))})
    found = MeasuredCost(noisy, CPU, SHAPES)
    assert found.rates(100)[1] == found.rates(400)[1] == pytest.approx(3.75), "the mean of 5 and half of it"


def test_noise_that_makes_lower_levels_slower_saves_nothing():
    slower = made_timings(CPU, SHAPES, attention=(-0.2, 0.4))
    assert MeasuredCost(slower, CPU, SHAPES).rates(100)[0] == 0


def test_high_halves_of_weights_have_a_rate_of_their_own():
    nested = SparsityConfig.preset("nested")
    known = MeasuredCost(made_timings(nested, SHAPES, halved_ms=(7.0, 7.0)), nested, SHAPES)
    assert known.rates(100)[2] == pytest.approx(4)
    assert known.share((1, 1, 4 / 16), 100) == pytest.approx(0.7)
