"""Simulated quantisation."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from solm.backends.torch.select import fake_quantize


@given(st.integers(2, 15), st.sampled_from([None, 4, 5]))
def test_quantisation_error_is_bounded_by_half_a_step_of_its_group(bits, group):
    x = torch.randn(3, 10, generator=torch.Generator().manual_seed(bits))
    error = (fake_quantize(x, torch.full((3, 1), bits), group) - x).abs()
    for row in range(3):
        for start in range(0, 10, group or 10):
            part = slice(start, start + (group or 10))
            step = x[row, part].abs().max() / (2 ** (bits - 1) - 1)
            assert error[row, part].max() <= step / 2 + 1e-6


def test_quantisation_at_16_bits_is_the_identity_and_rounds_half_to_even():
    x = torch.tensor([[0.5, -1.5, 2.5, 3.0]])
    assert torch.equal(fake_quantize(x, torch.tensor([[16]])), x)
    assert fake_quantize(x, torch.tensor([[3]])).tolist() == [[0.0, -2.0, 2.0, 3.0]]


def test_quantising_zeros_gives_zeros():
    assert torch.equal(fake_quantize(torch.zeros(2, 8), torch.tensor([[4], [4]])), torch.zeros(2, 8))
