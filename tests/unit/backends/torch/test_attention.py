"""Attention under an action against a slow reference that loops over rows, heads and pages."""

import math

import pytest
import torch

from solm.backends.torch.attention import Scoring, attend
from solm.backends.torch.cache import KeyValues, page_bounds
from solm.backends.torch.plan import Layout, make_plan
from solm.core.cost import ModelShapes
from solm.core.sparsity import SparsityConfig

SHAPES = ModelShapes(layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, head_dim=16, vocabulary=259, gated=True)


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
    actions = torch.stack([keep, torch.ones_like(keep), torch.full_like(keep, 16)], -1)
    plan = make_plan(actions.numpy(), positions.numpy() + 1, sparsity, SHAPES).at(0)
    layout = Layout(1, forks, positions, torch.full((forks,), split), split, length - split)
    whole = (length - split) // 8 * 8
    own = KeyValues(own_k, own_v, page_bounds(own_k[:, :, :, :whole], 8))
    prefix = KeyValues(shared_k, shared_v, page_bounds(shared_k, 8)) if split else None
    return (query, prefix, own, layout, plan, Scoring(size**-0.5)), keep


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
    by_scores = attend(
        *arguments[:-1], Scoring(arguments[-1].scaling, 1e6), sliding_window
    )  # which needs scores, and caps none
    torch.testing.assert_close(fused, by_scores, atol=1e-7, rtol=1e-7)
