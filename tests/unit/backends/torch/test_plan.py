"""What layers and heads keep of an action under an allocation, on the torch backend."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.models import keep_of, tiny_model
from helpers.policies import BENDS, by_head, profile_of
from solm.backends.torch.backend import TorchBackend
from solm.backends.torch.cache import KeyValues, page_bounds
from solm.backends.torch.pages import select_pages
from solm.backends.torch.plan import Layout, make_plan
from solm.core.cost import kv_budget
from solm.core.sparsity import SparsityConfig


@pytest.fixture(scope="module")
def control():
    control = TorchBackend(tiny_model("llama", torch.float32, num_hidden_layers=4))
    yield control
    control.detach()


def test_heads_read_what_the_allocation_gives_them(control):
    """What the masks let every head read is what is counted."""
    allocation = by_head(profile_of(*BENDS))
    seen = torch.tensor([[400], [300]])
    sparsity = SparsityConfig(window=16, allocation=allocation)
    plan = make_plan(keep_of((0.4, 1, 16), 2, 1).numpy(), seen.numpy(), sparsity, control.shapes)
    layout = Layout(2, 1, seen - 1, torch.zeros(2, dtype=torch.int64), 0, 400)
    query, keys = torch.randn(2, 2, 1, 2, 1, 16), torch.randn(2, 2, 1, 400, 16)
    read = []
    for layer in range(4):
        own = plan.at(layer)
        mask = select_pages(query, None, KeyValues(keys, keys, page_bounds(keys, 16)), layout, own)
        visible = layout.visible(None)[:, :, :, None]
        read.append((mask & visible).sum(-1)[:, :, 0, 0, 0])  # [rows, heads]
        assert (read[-1][:, 0] > read[-1][:, 1]).all()
        fixed = read[-1] - own.pages[..., 0].T * 16
        assert (fixed == fixed[:, :1]).all()  # sinks and window, the same for both
    share = torch.stack(read).double().mean((0, 2)) / seen[:, 0]
    torch.testing.assert_close(share, torch.from_numpy(plan.shares.mean(0)[:, 0, 0]))
    assert (share - 0.4).abs().max() < 0.06


@given(
    st.integers(1, 700),
    st.sampled_from([0.1, 0.2, 0.35, 0.6, 0.9, 1.0]),
)
def test_realised_share_is_what_the_masks_read(length, keep):
    sparsity = SparsityConfig(page_size=8, window=16)
    found = kv_budget(np.array([[keep]]), np.array([[length]]), sparsity)
    start, pages, realised = (values.item() for values in found)
    assert 0 < realised <= 1
    assert keep < 1 or realised == 1
    assert start % 8 == 0
    assert length - start > min(length - 1, 16)
    always = min(start, 8) + length - start
    assert realised == pytest.approx((always + 8 * pages) / length)
    assert always + 8 * pages <= max(always, math.ceil(keep * length - 1e-9) + 7)
