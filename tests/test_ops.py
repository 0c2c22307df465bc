"""The maths of an action against slow, obvious references."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from solm.backends.torch.attention import KeyValues, attend
from solm.backends.torch.layout import Layout
from solm.backends.torch.pages import PageBounds, _group_queries, _page_scores
from solm.backends.torch.plan import ceil_share, kv_budget, make_plan
from solm.backends.torch.quantize import fake_quantize
from solm.backends.torch.select import keep_channels, largest
from solm.core.cost import ModelShapes
from solm.core.sparsity import SparsityConfig

SHAPES = ModelShapes(layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, head_dim=16, vocabulary=259, gated=True)


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


def test_largest_with_ties_kept_keeps_them_all():
    mask = largest(torch.tensor([[3.0, 1.0, 3.0, 3.0, 0.0]]), torch.tensor([[2]]), keep_ties=True)
    assert mask.tolist() == [[True, False, True, True, False]]


def test_largest_takes_another_count_in_every_row():
    counts = torch.tensor([[0], [1], [4]])
    assert largest(torch.randn(3, 4), counts).sum(-1).tolist() == [0, 1, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_count_leaves_values_bit_for_bit(dtype):
    x = torch.randn(5, 33, dtype=dtype)
    assert torch.equal(keep_channels(x, torch.full((5, 1), 33)), x)


@given(st.integers(1, 2000), st.integers(0, 100))
def test_ceil_share_is_exact_integer_arithmetic(total, percent):
    got = int(ceil_share(torch.tensor(percent / 100, dtype=torch.float64), total))
    assert got == -(-percent * total // 100)


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


def test_page_bound_is_an_upper_bound_of_every_key_in_the_page():
    keys, query = torch.randn(2, 3, 24, 8), torch.randn(2, 3, 4, 2, 5, 8)
    shared = PageBounds.of(keys[:, :, None], 6)
    bound = _page_scores(_group_queries(query, "query_head"), shared)
    exact = (query @ keys[:, :, None, None].mT).unflatten(-1, (4, 6)).amax(-1)
    assert (bound >= exact - 1e-5).all()
    copied = PageBounds(*(part.expand(-1, -1, 4, -1, -1) for part in (shared.low, shared.high)))
    torch.testing.assert_close(_page_scores(_group_queries(query, "query_head"), copied), bound)


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


def naive_attention(query, keys, values, positions, keep, sparsity):
    """One row at a time, one query at a time, page by page; keys [Hkv, T, D], query [Hq, Q, D]."""
    heads, count, size = query.shape
    group, page = heads // keys.shape[0], sparsity.page_size
    output = torch.zeros(heads, count, values.shape[-1], dtype=query.dtype)
    for q, position in enumerate(positions.tolist()):
        seen = position + 1
        start = max(0, seen - sparsity.window - 1) // page * page
        sinks = -(-sparsity.sinks // page)
        tokens = math.ceil(keep[q] * seen - 1e-9)
        always = min(start, sinks * page) + seen - start
        between = list(range(sinks, start // page))
        number = min(len(between), -(-max(0, tokens - always) // page))
        for kv in range(keys.shape[0]):
            scores = []
            for index in between:
                block = keys[kv, index * page : (index + 1) * page]
                low, high = block.amin(0), block.amax(0)
                scores.append(
                    sum(
                        torch.maximum(query[h, q] * low, query[h, q] * high).sum()
                        for h in range(kv * group, (kv + 1) * group)
                    )
                )
            chosen = {between[i] for i in sorted(range(len(between)), key=lambda i: -scores[i])[:number]}
            read = [t for t in range(seen) if t < sinks * page or t >= start or t // page in chosen]
            for h in range(kv * group, (kv + 1) * group):
                weight = torch.softmax(query[h, q] @ keys[kv, read].T / size**0.5, -1)
                output[h, q] = weight @ values[kv, read]
    return output


def drawn_attention(split, count, sparsity, seed=3):
    """Arguments of `attend` for two forks of 83 tokens, the last `count` of them queries, and the shares to keep."""
    generator = torch.Generator().manual_seed(seed)
    forks, heads, kv, length, size = 2, 4, 2, 83, 16

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shared_k, shared_v = draw(1, kv, 1, split, size), draw(1, kv, 1, split, size)
    own_k, own_v = draw(1, kv, forks, length - split, size), draw(1, kv, forks, length - split, size)
    query = draw(forks, heads, count, size)
    positions = torch.arange(length - count, length).expand(forks, -1)
    keep = torch.rand(forks, count, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    plan = make_plan(
        torch.stack([keep, torch.ones_like(keep), torch.full_like(keep, 16)], -1), positions + 1, sparsity, SHAPES
    )
    layout = Layout(1, forks, positions, torch.full((forks,), split), split, length - split, uniform_base=True)
    whole = (length - split) // 8 * 8
    own = KeyValues(own_k, own_v, PageBounds.of(own_k[:, :, :, :whole], 8))
    prefix = KeyValues(shared_k, shared_v, PageBounds.of(shared_k, 8)) if split else None
    return (query, prefix, own, layout, plan, size**-0.5), keep


@pytest.mark.parametrize("split", [0, 24, 40])
@pytest.mark.parametrize("count", [5, 20])  # by scores, and fused
def test_attention_over_shared_prefix_equals_the_naive_reference(split, count):
    sparsity = SparsityConfig(page_size=8, window=16, sinks=4)
    arguments, keep = drawn_attention(split, count, sparsity)
    query, prefix, own, layout = arguments[:4]
    got = attend(*arguments)
    for row in range(layout.forks):
        keys, values = own.keys[0, :, row], own.values[0, :, row]
        if prefix is not None:
            keys = torch.cat([prefix.keys[0, :, 0], keys], 1)
            values = torch.cat([prefix.values[0, :, 0], values], 1)
        expected = naive_attention(query[row], keys, values, layout.positions[row], keep[row].tolist(), sparsity)
        torch.testing.assert_close(got[row], expected)


@pytest.mark.parametrize("split", [0, 40])
@pytest.mark.parametrize("sliding_window", [None, 30])
@pytest.mark.parametrize("changes", [{}, {"select_per": "query_head"}])
def test_fused_attention_equals_attention_by_scores(split, sliding_window, changes, monkeypatch):
    arguments, _ = drawn_attention(split, 20, SparsityConfig(page_size=8, window=16, sinks=4, **changes))
    fused = attend(*arguments, sliding_window=sliding_window)
    monkeypatch.delattr("solm.backends.torch.attention._fused")
    by_scores = attend(*arguments, softcap=1e6, sliding_window=sliding_window)  # which needs scores, and caps none
    torch.testing.assert_close(fused, by_scores, atol=1e-7, rtol=1e-7)
