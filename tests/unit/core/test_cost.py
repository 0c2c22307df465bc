"""Costs of steps."""

import numpy as np
import pytest
import torch

from solm.core.cost import ModelShapes, relative_cost
from solm.core.errors import SolmError
from solm.core.sparsity import SparsityConfig

SHAPES = ModelShapes(
    layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64, vocabulary=49152, gated=True
)


def test_costs_are_one_when_dense_and_fall_with_every_share():
    sparsity = SparsityConfig()
    dense = torch.ones(3, dtype=torch.float64)
    for model in ("nominal", "bytes", "flops"):
        assert float(relative_cost(dense, 600, SHAPES, sparsity, model)) == pytest.approx(1)
    half_mlp = torch.tensor([1, 0.5, 1], dtype=torch.float64)
    half_kv = torch.tensor([0.5, 1, 1], dtype=torch.float64)
    for model in ("bytes", "flops"):
        assert float(relative_cost(half_mlp, 600, SHAPES, sparsity, model)) < 0.75
        assert float(relative_cost(half_kv, 8000, SHAPES, sparsity, model)) < 0.9
        few = torch.tensor([1, 1, 5 / 16], dtype=torch.float64)
        assert float(relative_cost(few, 600, SHAPES, sparsity, model)) == pytest.approx(1)
    # Shares of the step's weights as measured by hand: gate+up 39.5 %, down 19.7 %, attention 19.7 %, head 21 %.
    sparse = torch.tensor([1, 0.6, 1], dtype=torch.float64)
    assert float(relative_cost(sparse, 0, SHAPES, sparsity, "bytes")) == pytest.approx(1 - 0.4 * 0.592, abs=0.002)
    assert float(relative_cost(dense, 600, SHAPES, sparsity, "bytes", 10**6)) > 1
    with pytest.raises(SolmError, match="unknown cost model"):
        relative_cost(dense, 600, SHAPES, sparsity, "watts")


def test_bytes_count_every_number_with_the_bits_in_which_it_is_stored():
    stored = SHAPES.model_copy(update={"weight_bits": 5, "head_bits": 8.5, "cache_bits": 8.5, "bound_bits": 16})
    length, pages = 8000, 0.2
    weights, head = 30 * SHAPES.layer_weights * 5, SHAPES.head_weights * 8.5
    numbers = 30 * 3 * 2 * 64 * length  # keys and values
    dense = weights + head + numbers * 8.5
    step = weights + head + numbers * 8.5 * pages + numbers / 16 * 16  # bounds: two numbers of 16 bits a page of 16
    found = relative_cost(np.array([pages, 1, 1]), length, stored, SparsityConfig(), "bytes")
    assert found == pytest.approx(step / dense)
    assert found < relative_cost(np.array([pages, 1, 1]), length, SHAPES, SparsityConfig(), "bytes") - 0.04
    for model in ("nominal", "flops"):
        costs = [
            relative_cost(np.array([pages, 0.5, 1]), length, shapes, SparsityConfig(), model)
            for shapes in (stored, SHAPES)
        ]
        assert costs[0] == costs[1]
    assert "weight_bits" not in stored.model_dump()  # what is stored and shown are the sizes alone
