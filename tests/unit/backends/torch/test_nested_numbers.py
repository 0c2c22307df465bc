"""Nested weights: both halves are as fine as 8 bits, the upper one alone as 4, whatever the size of the weights."""

import pytest
import torch

from solm.backends.torch.linears import high_half, nested


@pytest.mark.parametrize("size", [1.0, 0.05, 0.001, 0.0001])
def test_numbers_are_next_to_the_weights(size):
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(1)) * size
    number, step, lowest = nested(weight)
    step, lowest = (part.float().repeat_interleave(32, 1) for part in (step, lowest))
    rounding = 2.0**-11 * weight.abs() + 2.0**-25 * 256  # of steps and lowest values in float16
    assert ((lowest + step * number - weight).abs() <= 0.51 * step + rounding).all()
    assert ((high_half(weight) - weight).abs() <= 8.1 * step + rounding).all()
