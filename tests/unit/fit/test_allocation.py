"""Finding an allocation: what units lose, and how shares are dealt out."""

import numpy as np
import pytest
import torch

import solm
from helpers.models import tiny_model, tokens
from helpers.policies import EVEN
from solm.core.cost import realised_mlp
from solm.core.files import Parts
from solm.core.sparsity import KNOTS, Allocation, SparsityConfig
from solm.evaluation.texts import TokenStream
from solm.fit.allocation import find_allocation
from solm.fit.texts import draw_halves
from solm.policies.curves import greedy_curves, site_axes, trusted

SPARSITY = SparsityConfig(window=16, projection_part=0.3)


def test_heads_that_lose_more_get_more():
    shares = (0.2, 0.6)
    costs = np.array([[0.01, 0.001], [0.08, 0.01], [0.01, 0.001], [0.02, 0.002]])
    curves = np.array(greedy_curves(costs, shares))
    assert curves.shape == (4, KNOTS)
    assert np.allclose(curves.mean(0), EVEN, atol=1e-8)
    assert (np.diff(curves, axis=1) >= 0).all()
    assert (curves[:, -1] == 1).all()
    middle = curves[:, KNOTS // 2]
    assert middle[1] > middle[3] > middle[0]

    def loss(kept):
        slope, height = np.polyfit(shares, np.log(costs).T, 1)
        return np.exp(height + slope * kept).sum()

    assert all(loss(curves[:, knot]) < loss(np.full(4, EVEN[knot])) for knot in range(3, KNOTS - 3))
    curves = np.array(greedy_curves(np.array([[-0.002, -0.001], [0.1, 0.05]]), shares))
    assert curves[1, 8] > curves[0, 8], "negative costs count as zero"
    assert np.isfinite(curves).all()


def search(model, windows, context, parts=None, progress=lambda done, total: None, axes=()):
    """The result of a search on `model`, and what its allocation realises at the knots."""
    with solm.attach(model, sparsity=SPARSITY) as lm:
        limits = lm.backend.channel_thresholds(windows[:, :context], lm.sparsity.sites)
        lm = lm.with_policy(None, lm.sparsity.model_copy(update={"thresholds": limits}))
        axes = (*axes, *site_axes(lm.sparsity))
        result = find_allocation(lm, windows, context, axes, parts or Parts(None, ""), progress)
        under = lm.sparsity.under(Allocation.model_validate(result["allocation"]))
        realised = np.asarray(realised_mlp(np.array(EVEN), under, lm.shapes)).mean(0)
    return result, realised


@pytest.fixture(scope="module")
def model():
    """A model whose second layer does nothing for its MLP's and its output projection's part."""
    model = tiny_model("llama", torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(20)
        model.model.layers[1].mlp.down_proj.weight.zero_()
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(8)
        model.model.layers[1].self_attn.o_proj.weight.zero_()
    return model


def test_sites_that_do_nothing_are_given_up_first(model):
    calls: list[tuple[int, int]] = []
    result, realised = search(model, tokens(4, 200), 160, progress=lambda *now: calls.append(now), axes=["attention"])
    assert calls[-1] == (22, 22)  # of two layers: five shares of sites, and three of each of two heads
    assert np.allclose(realised, EVEN, atol=0.02), "the keep rate is what all sites realise"
    allocation = Allocation.model_validate(result["allocation"])
    for site in ("mlp", "hidden", "qkv", "out"):
        first, second = np.array(getattr(allocation, site))
        assert (first - second).mean() > 0.2, site
    assert {row["axis"] for row in result["checked"]} == {"attention", "mlp"}
    worse = [row for row in result["checked"] if row["axis"] == "mlp" and row["allocation"] > row["even"] + 1e-6]
    assert not worse
    uniform = {**result, "checked": [{**row, "even": 0.0, "allocation": 1.0} for row in result["checked"]]}
    assert len(set(trusted(uniform).hidden)) == 1, "where it loses, layers are alike"
    assert trusted(uniform).attention == (EVEN,) * 4


def test_sliding_layers_keep_an_even_share():
    """Gemma 2's first layer here reads its window whatever is dealt out: it must not be taken to give the rest away."""
    result, _ = search(tiny_model("gemma2", torch.float32), tokens(4, 140), 120, axes=["attention"])
    assert sorted(result["costs"]["attention"]) == [2, 3]  # the two heads of the other layer
    dealt = result["allocation"]["attention"]
    assert dealt[:2] == (EVEN, EVEN)
    assert np.allclose((np.array(dealt[2]) + dealt[3]) / 2, EVEN, atol=1e-8)


def test_the_halves_of_texts_share_no_token():
    streams = [TokenStream(torch.arange(first, first + 1000), str(first), "f") for first in (0, 1000)]
    windows = draw_halves(streams, 41, 50, torch.Generator().manual_seed(0))
    assert windows.shape == (41, 50)
    assert not set(windows[:20].flatten().tolist()) & set(windows[20:].flatten().tolist())
