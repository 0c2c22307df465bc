"""Costs of steps: bytes that are read."""

import numpy as np
import pytest

from solm.core.cost import ModelShapes, realised_mlp, relative_bytes
from solm.core.sparsity import KNOTS, PERCENTAGES, Allocation, ChannelThresholds, SparsityConfig

EVEN = np.arange(KNOTS) / (KNOTS - 1)
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


def test_experts_that_a_token_visits_are_a_number_and_under_thresholds_an_average():
    shapes = SHAPES.model_copy(update={"experts_used": 4, "layers": 2})
    exact = SparsityConfig(mlp_site="experts")
    limits = ChannelThresholds.of(np.linspace(1, 0, PERCENTAGES)[None, None].repeat(2, 0))
    keep = np.array([0.1, 0.3, 0.6, 1.0])
    assert realised_mlp(keep, exact, shapes).tolist() == [[0.25, 0.5, 0.75, 1.0]]
    average = exact.changed(thresholds=limits)
    assert realised_mlp(keep, average, shapes).tolist() == [[0.25, 0.3, 0.6, 1.0]]
    more, less = (tuple((share**power).tolist()) for share, power in ((EVEN, 0.5), (EVEN, 2)))
    dealt = average.under(Allocation(attention=(more, less), mlp=(more, less)))
    assert np.allclose(realised_mlp(np.array([0.25, 0.8]), dealt, shapes), [[0.5, 0.8**0.5], [0.25, 0.64]], atol=0.01)
    assert relative_bytes(np.array([1, 0.5, 1]), 0, shapes, dealt) == pytest.approx(
        1 - 0.5 * 2 * 12 * 576 * 1536 / (2 * shapes.layer_weights + shapes.head_weights)
    )


def test_an_expert_that_all_tokens_share_is_read_in_full():
    """As the same model without it, and three matrices more in each layer."""
    shapes = SHAPES.model_copy(update={"experts_used": 4, "shared": 2048})
    without, more = shapes.model_copy(update={"shared": 0}), 3 * 576 * 2048
    assert shapes.layer_weights == without.layer_weights + more
    sparse, sizes = np.array([1, 0.6, 1]), [30 * one.layer_weights + one.head_weights for one in (without, shapes)]
    read = relative_bytes(sparse, 0, without, SparsityConfig()) * sizes[0] + 30 * more
    assert relative_bytes(sparse, 0, shapes, SparsityConfig()) * sizes[1] == pytest.approx(read)
