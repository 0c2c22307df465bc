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
