"""What layers and heads keep of an action under an allocation, on the torch backend."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import solm
from helpers.models import keep_of, tiny_model, tokens
from helpers.policies import BENDS, by_head, profile_of, sparsity_of, with_hidden
from helpers.sessions import scored_under
from solm.backends.torch.backend import TorchBackend
from solm.backends.torch.cache import PageBounds
from solm.backends.torch.pages import select_pages
from solm.backends.torch.plan import HIDDEN, INPUT, Layout, ceil_share, kv_budget, make_plan
from solm.core.actions import ActionSpace
from solm.core.sparsity import SparsityConfig
from solm.policies.schedules import Static

SPACE = ActionSpace(attention=(0.1, 0.4, 1.0), mlp=(0.4, 0.7, 1.0), bits=(4, 16))


@pytest.fixture(scope="module")
def control():
    control = TorchBackend(tiny_model("llama", torch.float32, num_hidden_layers=4))
    yield control
    control.detach()


def test_layers_read_what_the_allocation_gives_them(control):
    allocation = profile_of(*BENDS)
    plan = make_plan(
        keep_of((0.4, 0.6, 16), 1, 1),
        torch.tensor([[400]]),
        SparsityConfig(window=16, allocation=allocation),
        control.shapes,
    )
    between = (400 - 17) // 16 - 1
    optional = (0.4 * 400 - (16 + 400 - (400 - 17) // 16 * 16)) / (between * 16)
    for layer, bend in enumerate(BENDS):
        s, own = optional, plan.at(layer)
        assert int(own.kv.pages) == pytest.approx((s + bend * s * (1 - s)) * between, abs=1.05)
        kept = 0.6 + BENDS[3 - layer] * 0.24
        assert int(own.channels(control.shapes.intermediate, HIDDEN)) == pytest.approx(
            kept * control.shapes.intermediate, abs=1.05
        )
    realised = torch.stack([plan.realised_by(layer, layer + 1, 4) for layer in range(4)]).sum(0)
    torch.testing.assert_close(realised, plan.realised)
    assert plan.realised[0, 0, 1] == pytest.approx(0.6, abs=0.02)


def test_hidden_channels_may_have_curves_of_their_own(control):
    allocation = with_hidden(profile_of(*BENDS), 0.5, 0.2, -0.3, -0.8)
    sparsity = SparsityConfig(window=16, hidden_power=2, input_part=0.7, allocation=allocation)
    plan = make_plan(keep_of((1, 0.6, 16), 1, 1), torch.tensor([[400]]), sparsity, control.shapes)
    inputs, hiddens, shapes = [], [], control.shapes
    for layer, bend in enumerate((0.5, 0.2, -0.3, -0.8)):
        own = plan.at(layer)
        inputs.append(int(own.channels(shapes.hidden, INPUT)) / shapes.hidden)
        hiddens.append(int(own.channels(shapes.intermediate, HIDDEN)) / shapes.intermediate)
        assert inputs[-1] == pytest.approx(0.6 + BENDS[3 - layer] * 0.24, abs=1.05 / shapes.hidden)
        assert hiddens[-1] == pytest.approx(0.6 + bend * 0.24, abs=1.05 / shapes.intermediate), "no power of a share"
    assert float(plan.realised[0, 0, 1]) == pytest.approx(0.7 * np.mean(inputs) + 0.3 * np.mean(hiddens))


def test_heads_read_what_the_allocation_gives_them(control):
    """What the masks let every head read is what is counted."""
    allocation = by_head(profile_of(*BENDS))
    seen = torch.tensor([[400], [300]])
    plan = make_plan(
        keep_of((0.4, 1, 16), 2, 1), seen, SparsityConfig(window=16, allocation=allocation), control.shapes
    )
    layout = Layout(2, 1, seen - 1, torch.zeros(2, dtype=torch.int64), 0, 400, uniform_base=True)
    query, keys = torch.randn(2, 2, 1, 2, 1, 16), torch.randn(2, 2, 1, 400, 16)
    read = []
    for layer in range(4):
        own = plan.at(layer)
        _, mask = select_pages(query, None, PageBounds.of(keys, 16), keys, layout, own)
        visible = layout.visible(None)[1][:, :, :, None]
        read.append((mask & visible).sum(-1)[:, :, 0, 0, 0])  # [rows, heads]
        assert (read[-1][:, 0] > read[-1][:, 1]).all()
        fixed = read[-1] - own.kv.pages[..., 0].T * 16
        assert (fixed == fixed[:, :1]).all()  # sinks and window, the same for both
    share = torch.stack(read).double().mean((0, 2)) / seen[:, 0]
    torch.testing.assert_close(share, plan.realised[:, 0, 0])
    assert (share - 0.4).abs().max() < 0.06


@given(st.floats(0.05, 0.95), st.integers(16, 120))
def test_static_keeps_the_budget_under_an_allocation(part, steps):
    with solm.attach(tiny_model("llama"), sparsity=sparsity_of(0.8, -0.8)) as lm:
        ids = tokens(1, 200 + steps + 1)
        session = lm.session()
        session.prefill(ids[:, :200])
        lows = torch.tensor([low for low, _ in SPACE.ranges], dtype=torch.float64)
        target = (lows + part * (1 - lows))[None]
        spent = scored_under(session.fork(1), Static(SPACE), ids[:, 200:], target).realised.mean(1)
        # Levels in between realise their number to within a page in every layer; the lowest may read more than it says.
        assert (spent - target.clamp(min=0.2)).abs().max() < 0.5 / steps + 0.06


@given(st.integers(1, 2000), st.integers(0, 100))
def test_ceil_share_is_exact_integer_arithmetic(total, percent):
    got = int(ceil_share(torch.tensor(percent / 100, dtype=torch.float64), total))
    assert got == -(-percent * total // 100)


@given(
    st.integers(1, 700),
    st.sampled_from([0.1, 0.2, 0.35, 0.6, 0.9, 1.0]),
)
def test_realised_share_is_what_the_masks_read(length, keep):
    sparsity = SparsityConfig(page_size=8, window=16)
    budget, realised = kv_budget(torch.tensor([[keep]], dtype=torch.float64), torch.tensor([[length]]), sparsity)
    assert 0 < float(realised) <= 1
    assert keep < 1 or float(realised) == 1
    start, pages = int(budget.window_start), int(budget.pages)
    assert start % 8 == 0
    assert length - start > min(length - 1, 16)
    always = min(start, 8) + length - start
    assert float(realised) == pytest.approx((always + 8 * pages) / length)
    assert always + 8 * pages <= max(always, math.ceil(keep * length - 1e-9) + 7)


def test_an_even_profile_changes_nothing_but_rounding_cost(control):
    ids, keep = tokens(2, 100), keep_of((0.3, 0.5, 16), 2, 40)
    found = []
    for sparsity in (SparsityConfig(window=16), sparsity_of(0, 0, 0, 0)):
        session = control.session(sparsity)
        session.prefill(ids)
        found.append(session.fork(1).extend(tokens(2, 40, seed=5), keep))
    torch.testing.assert_close(found[0].realised, found[1].realised, rtol=0, atol=16 / 100)
    torch.testing.assert_close(found[0].realised[..., 1:], found[1].realised[..., 1:])
