"""Costs of steps: bytes, multiply-adds, and milliseconds as a linear function of realised shares."""

import numpy as np
import pytest

from helpers.timings import CPU, made_timings
from helpers.timings import SHAPES as TIMED
from solm.core.cost import MeasuredCost, ModelShapes, relative_bytes
from solm.core.sparsity import SparsityConfig
from solm.policies.curves import measured_parts

SHAPES = ModelShapes(
    layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64, vocabulary=49152, gated=True
)


def test_bytes_are_one_when_dense_and_fall_with_every_share():
    sparsity = SparsityConfig()
    dense = np.ones(3)
    assert float(relative_bytes(dense, 600, SHAPES, sparsity)) == pytest.approx(1)
    assert float(relative_bytes(np.array([1, 0.5, 1]), 600, SHAPES, sparsity)) < 0.75
    assert float(relative_bytes(np.array([0.5, 1, 1]), 8000, SHAPES, sparsity)) < 0.9
    assert float(relative_bytes(np.array([1, 1, 5 / 16]), 600, SHAPES, sparsity)) == pytest.approx(1)
    # Shares of the step's weights as measured by hand: gate+up 39.5 %, down 19.7 %, attention 19.7 %, head 21 %.
    sparse = np.array([1, 0.6, 1])
    assert float(relative_bytes(sparse, 0, SHAPES, sparsity)) == pytest.approx(1 - 0.4 * 0.592, abs=0.002)
    assert float(relative_bytes(dense, 600, SHAPES, sparsity, 10**6)) > 1


def test_bytes_count_every_number_with_the_bits_in_which_it_is_stored():
    stored = SHAPES.model_copy(update={"weight_bits": 5, "head_bits": 8.5, "cache_bits": 8.5, "bound_bits": 16})
    length, pages = 8000, 0.2
    weights, head = 30 * SHAPES.layer_weights * 5, SHAPES.head_weights * 8.5
    numbers = 30 * 3 * 2 * 64 * length  # keys and values
    dense = weights + head + numbers * 8.5
    step = weights + head + numbers * 8.5 * pages + numbers / 16 * 16  # bounds: two numbers of 16 bits a page of 16
    found = relative_bytes(np.array([pages, 1, 1]), length, stored, SparsityConfig())
    assert found == pytest.approx(step / dense)
    assert found < relative_bytes(np.array([pages, 1, 1]), length, SHAPES, SparsityConfig()) - 0.04
    assert "weight_bits" not in stored.model_dump()  # what is stored and shown are the sizes alone


def test_rates_are_those_of_the_levels_that_were_measured():
    known = MeasuredCost.of(made_timings(CPU, TIMED), CPU, TIMED)
    assert known.dense(250) == pytest.approx(10)
    assert known.rates(100) == pytest.approx((1, 5, 0))
    assert known.rates(250) == pytest.approx((2.5, 5, 0))
    assert known.rates(9000) == pytest.approx((4, 5, 0)), "beyond the contexts the nearest holds"
    assert known.share((0.5, 0.6, 1.0), 400) == pytest.approx(1 - 0.5 * 0.4 - 0.4 * 0.5)


def test_the_cost_of_an_average_is_the_average_cost():
    known = MeasuredCost.of(made_timings(CPU, TIMED), CPU, TIMED)
    shares = np.random.default_rng(0).random((3, 7, 3))
    every = known.milliseconds(shares, np.full(7, 230))
    assert every.shape == (3, 7)
    assert np.allclose(every.mean(1), known.milliseconds(shares.mean(1), 230.0))


def test_attention_is_worth_what_its_keys_are():
    """Noise after few tokens, where keys take next to no time, hardly counts: a rate of its own would be 3 there."""
    noisy = made_timings(CPU, TIMED, attention=(0.3, 0.4))
    found = [MeasuredCost.of(noisy, CPU, TIMED).rates(context)[0] for context in (100, 400)]
    assert found[1] == pytest.approx(4 * found[0])
    assert 4 < found[1] < 4.6


def test_high_halves_of_weights_have_a_rate_of_their_own():
    nested = SparsityConfig.preset("nested")
    known = MeasuredCost.of(made_timings(nested, TIMED, halved_ms=(7.0, 7.0)), nested, TIMED)
    assert known.rates(100)[2] == pytest.approx(4)
    assert known.share((1, 1, 4 / 16), 100) == pytest.approx(0.7)


def sites(inputs, hidden, slower=0.0):
    """Timings where all input channels take `inputs` ms of 10 and all hidden ones `hidden`, in every context."""
    levels = (0.4, 0.6, 0.8, 1.0)
    both = tuple(10 + slower - inputs * (1 - level) - hidden * (1 - level**2) for level in levels)
    alone = tuple(10 + slower - hidden * (1 - level) for level in (0.3, 0.6))
    return made_timings(CPU, TIMED, attention=(0.0, 0.0)).model_copy(
        update={"attention_ms": ((10 + slower,) * 4,) * 2, "mlp_ms": (both,) * 2, "hidden": (0.3, 0.6),
                "hidden_ms": (alone,) * 2}
    )  # fmt: skip


@pytest.mark.parametrize(("inputs", "hidden", "part"), [(4, 2, 0.667), (3, 1, 0.75), (5, 0, 0.817), (1, 4, 0.517)])
def test_input_channels_count_the_time_that_they_take(inputs, hidden, part):
    """Of gate, up and down, all alike in weights; at most 0.15 from the two thirds that these count."""
    found = measured_parts(sites(inputs, hidden), CPU, TIMED)
    assert found == {"input_part": pytest.approx(part, abs=1e-3), "projection_part": 0}


@pytest.mark.parametrize(("halved", "part"), [(7.0, 0.5), (8.5, 0.75), (10.5, 1.0), (4.0, 0.5)])
def test_upper_bits_count_the_time_that_they_take(halved, part):
    """Of the 6 ms of all channels; at least half of it, as half of the bytes are read."""
    nested = SparsityConfig.preset("nested")
    known = sites(4, 2).model_copy(update={"halved_ms": (halved, halved)})
    assert measured_parts(known, nested, TIMED)["upper_bits_part"] == pytest.approx(part)
