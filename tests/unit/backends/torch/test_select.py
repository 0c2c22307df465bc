"""Selection of the largest values and of channels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from solm.backends.torch.select import keep_channels, largest


@given(
    st.lists(st.lists(st.integers(0, 6), min_size=7, max_size=7), min_size=1, max_size=4),
    st.integers(0, 7),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_largest_keeps_exactly_the_count_and_prefers_low_indices(values, count, dtype):
    scores = torch.tensor(values).to(dtype)
    mask = largest(scores, torch.full((len(values), 1), count))
    for row, chosen in zip(values, mask.tolist(), strict=True):
        expected = sorted(range(7), key=lambda index: (-row[index], index))[:count]
        assert sorted(index for index, kept in enumerate(chosen) if kept) == sorted(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_count_leaves_values_bit_for_bit(dtype):
    x = torch.randn(5, 33, dtype=dtype)
    assert torch.equal(keep_channels(x, torch.full((5, 1), 33)), x)
