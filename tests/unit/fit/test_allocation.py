"""Finding an allocation: what layers lose, how shares are dealt out, interruption, and what is refused."""

import json

import numpy as np
import pytest
import torch
from solm.training.allocate import (
    _rounding_cost,
    axes_of,
    find_allocation,
    read_allocation,
    trusted,
)
from solm.training.allocation_curves import greedy_curves

import solm
from helpers.models import tiny_model, tokens
from helpers.policies import EVEN, network
from helpers.policies import SPACE as GRID
from helpers.policies import SPARSITY as PLAIN
from solm.core.allocation import KNOTS, Allocation
from solm.core.cost import realised_mlp
from solm.core.errors import DamagedFileError, DataError
from solm.core.sparsity import SparsityConfig
from solm.data.windows import TokenStream
from solm.policies.artifact import PolicyConfig, TrainedPolicy
from solm.training.sources import draw_halves


def test_layers_that_lose_more_get_more():
    shares = (0.2, 0.6)
    costs = np.array([[0.01, 0.001], [0.08, 0.01], [0.01, 0.001], [0.02, 0.002]])
    curves = np.array(greedy_curves(costs, shares))
    assert curves.shape == (4, KNOTS)
    assert np.allclose(curves.mean(0), EVEN, atol=1e-8)
    assert (np.diff(curves, axis=1) >= 0).all()
    assert (curves[:, -1] == 1).all()
    middle = curves[:, KNOTS // 2]
    assert middle[1] > middle[3] > middle[0]
    assert abs(middle[0] - middle[2]) <= 0.011

    def loss(kept):
        slope, height = np.polyfit(shares, np.log(costs).T, 1)
        return np.exp(height + slope * kept).sum()

    assert all(loss(curves[:, knot]) < loss(np.full(4, EVEN[knot])) for knot in range(3, KNOTS - 3))


def test_a_layer_without_cost_gets_least_and_negative_costs_count_as_zero():
    curves = np.array(greedy_curves(np.array([[-0.002, -0.001], [0.1, 0.05]]), (0.2, 0.6)))
    assert curves[1, 8] > curves[0, 8]
    assert np.isfinite(curves).all()


def test_the_cost_of_rounding_falls_with_depth_and_is_subtracted():
    """Two heads in each of four layers; the first layer's is sliding and was not measured."""
    costs = {2: [0.9, 0.5], 3: [0.5, 0.3], 4: [0.2, 0.12], 5: [0.9, 0.4], 6: [0.8, 0.2], 7: [0.6, 0.13]}
    assert _rounding_cost(costs, 2, 4, 0.08).tolist() == [0.24, 0.24, 0.12, 0.12]  # at most three times the least
    assert _rounding_cost(costs, 2, 4, 0.12).tolist() == [0.36, 0.3, 0.12, 0.12]
    assert _rounding_cost({0: [0.9, 0.5], 1: [0.4, 0.2]}, 1, 2, 0.05).tolist() == [0.05, 0.05]


def test_costs_are_averaged_over_contexts_of_fewer_and_fewer_texts(tmp_path):
    with solm.attach(tiny_model("llama", torch.float32), sparsity=SparsityConfig(window=16)) as lm:
        told = find_allocation(lm, tokens(8, 340), (80, 320), tmp_path / "both.json")
        turned = find_allocation(lm, tokens(8, 340), (320, 80), tmp_path / "turned.json")
        short = find_allocation(lm, tokens(8, 340)[:, :100], (80,), tmp_path / "short.json")
        long = find_allocation(lm, tokens(8, 340)[[0, 4]], (320,), tmp_path / "long.json")
    assert [row["context"] for row in told["checked"]] == [80] * 6 + [320] * 6
    for axis, units in told["costs"].items():
        for unit, costs in units.items():
            assert costs == pytest.approx(np.mean([short["costs"][axis][unit], long["costs"][axis][unit]], axis=0))
    assert told["tokens"] == 20
    assert turned["allocation"] == told["allocation"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """An allocation of a model whose second layer does nothing when its MLP is skipped."""
    out = tmp_path_factory.mktemp("allocation") / "layers.json"
    model = tiny_model("llama", torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(20)
        model.model.layers[1].mlp.down_proj.weight.zero_()
    calls: list[tuple[int, int]] = []
    with solm.attach(model, sparsity=SparsityConfig(window=16)) as lm:
        windows = tokens(4, 200)
        result = find_allocation(lm, windows, (160,), out, lambda done, total: calls.append((done, total)))
    return out, result, calls, model


def test_an_allocation_is_found_and_helps(found):
    out, result, calls, _ = found
    allocation = read_allocation(out)
    assert allocation == Allocation.model_validate(result["allocation"])
    first, second = (np.array(curve) for curve in allocation.mlp)
    assert (first[5:-3] > second[5:-3] + 0.2).all()
    worse = [row for row in result["checked"] if row["axis"] == "mlp" and row["allocation"] > row["even"] + 1e-6]
    assert not worse
    assert calls[-1] == (17, 17)  # three shares of four KV heads, two of two layers, the check
    assert not out.with_name("layers.json.partial").exists()


def test_an_interrupted_search_goes_on(found, tmp_path):
    _, result, _, model = found
    out = tmp_path / "layers.json"
    seen = []

    def stop(done, total):
        seen.append(done)
        if done == 7 and len(seen) == 7:
            raise KeyboardInterrupt

    with solm.attach(model, sparsity=SparsityConfig(window=16)) as lm:
        with pytest.raises(KeyboardInterrupt):
            find_allocation(lm, tokens(4, 200), (160,), out, stop)
        assert len(json.loads(out.with_name("layers.json.partial").read_text())["found"]) == 7
        again = find_allocation(lm, tokens(4, 200), (160,), out, stop)
    assert seen[7] == 7  # nothing was measured anew before
    assert again["allocation"] == result["allocation"]


def test_texts_are_measured_in_groups_whose_logits_fit_into_memory(found, tmp_path, monkeypatch):
    """A search that is interrupted in the second group of three goes on there, and finds what one group finds."""
    *_, model = found
    windows, seen = tokens(6, 200), []

    def stop(done, total):
        seen.append((done, total))
        if len(seen) == 20:
            raise KeyboardInterrupt

    with solm.attach(model, sparsity=SparsityConfig(window=16)) as lm:
        whole = find_allocation(lm, windows, (160,), tmp_path / "whole.json")
        monkeypatch.setattr("solm.training.unit_losses.LOGITS_AT_ONCE", 40 * lm.shapes.vocabulary + 1)
        with pytest.raises(KeyboardInterrupt):
            find_allocation(lm, windows, (160,), tmp_path / "parts.json", stop)
        parts = find_allocation(lm, windows, (160,), tmp_path / "parts.json", stop)
    again = seen[20:]
    assert again[:5] == [(20, 49)] * 4 + [(21, 49)], "nothing was measured anew"
    assert again[-1] == (49, 49)
    assert len(again) == 16 + 16 + 1
    for axis, units in whole["costs"].items():
        for unit, costs in units.items():
            assert parts["costs"][axis][unit] == pytest.approx(costs, rel=1e-4, abs=1e-9)
    for one, other in zip(whole["checked"], parts["checked"], strict=True):
        assert one.pop("axis") == other.pop("axis")
        assert one == pytest.approx(other, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("what", ["name", "dtype"])
def test_a_search_does_not_go_on_in_other_numbers(found, tmp_path, what, monkeypatch):
    *_, model = found
    seen = []

    def stop(done, total):
        seen.append(done)
        if done == 2:
            raise KeyboardInterrupt

    with solm.attach(model, sparsity=SparsityConfig(window=16)) as lm:
        for other in ("first", "second"):
            monkeypatch.setattr(type(lm.backend), what, other)
            with pytest.raises(KeyboardInterrupt):
                find_allocation(lm, tokens(4, 200), (160,), tmp_path / "layers.json", stop)
    assert seen == [1, 2, 1, 2]


def test_input_and_hidden_channels_are_dealt_out_apart(tmp_path):
    """The second layer's hidden channels do nothing: they are given up first."""
    model = tiny_model("llama", torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(20)
        model.model.layers[1].mlp.down_proj.weight.zero_()
    out, calls = tmp_path / "layers.json", []
    sparsity = SparsityConfig(window=16, hidden_power=2, input_part=0.6)
    with solm.attach(model, sparsity=sparsity) as lm:
        result = find_allocation(
            lm, tokens(4, 200), (160,), out, lambda done, total: calls.append((done, total)), ("mlp", "hidden")
        )
        allocation = read_allocation(out)
        realised = realised_mlp(np.array(EVEN), sparsity.under(allocation), lm.shapes).mean(0)
    assert calls[-1] == (7, 7)  # two shares of input channels and one of hidden ones of two layers, the check
    assert np.allclose(realised, EVEN, atol=0.02), "the keep rate is what both sites realise"
    for curves in (allocation.mlp, allocation.hidden):
        first, second = np.array(curves)
        assert (first >= second).all()
        assert (first - second).mean() > 0.2
    assert {row["axis"] for row in result["checked"]} == {"mlp"}
    uniform = {**result, "checked": [{**row, "even": 0.0, "allocation": 1.0} for row in result["checked"]]}
    assert trusted(uniform).hidden is None, "where it loses, layers and sites are alike"


def test_inputs_of_attentions_projections_are_dealt_out_with_the_mlps_channels(tmp_path):
    """The output projection of the second layer does nothing: its inputs are given up first."""
    model = tiny_model("llama", torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(8)
        model.model.layers[1].self_attn.o_proj.weight.zero_()
    sparsity = SparsityConfig(window=16, hidden_power=2, projection_part=0.3)
    with solm.attach(model, sparsity=sparsity) as lm:
        find_allocation(lm, tokens(4, 200), (160,), tmp_path / "layers.json", axes=axes_of(sparsity)[1:])
        allocation = read_allocation(tmp_path / "layers.json")
        realised = realised_mlp(np.array(EVEN), sparsity.under(allocation), lm.shapes).mean(0)
    assert np.allclose(realised, EVEN, atol=0.02), "the keep rate is what all sites realise"
    first, second = np.array(allocation.out)
    assert (first - second).mean() > 0.2
    first, second = np.array(allocation.qkv)
    assert (first - second).mean() > 0.2, "nor is anything lost of what this layer's heads would have read"


@pytest.mark.parametrize(("texts", "context", "message"), [(1, 160, "at least 2 texts"), (4, 12, "at least 21 tokens")])
def test_too_little_to_measure_on_is_refused(tmp_path, texts, context, message):
    with (
        solm.attach(tiny_model("llama"), sparsity=SparsityConfig(window=16)) as lm,
        pytest.raises(DataError, match=message),
    ):
        find_allocation(lm, tokens(texts, 200), (context,), tmp_path / "layers.json")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"allocation": {"attention": [], "mlp": []}}'])
def test_a_file_without_an_allocation_is_refused(tmp_path, content):
    path = tmp_path / "layers.json"
    path.write_text(content)
    with pytest.raises(DamagedFileError, match="does not hold an allocation"):
        read_allocation(path)


def test_a_policy_without_an_allocation_gives_none(tmp_path):
    made = network()
    with solm.attach(tiny_model("llama")) as lm:
        config = PolicyConfig(base=lm.identity, space=GRID, sparsity=PLAIN, network=made.config)
    TrainedPolicy(config, made).save_pretrained(tmp_path / "policy")
    with pytest.raises(DataError, match="has no allocation"):
        read_allocation(tmp_path / "policy")


def test_sliding_layers_and_models_without_an_mlp_axis_keep_an_even_share(tmp_path):
    """Gemma 2's first layer here reads its window whatever is dealt out: it must not be taken to give the rest away."""
    with solm.attach(tiny_model("gemma2", torch.float32), sparsity=SparsityConfig(window=16)) as lm:
        result = find_allocation(lm, tokens(4, 140), (120,), tmp_path / "layers.json")
    assert sorted(result["costs"]["attention"]) == [2, 3]  # the two heads of the other layer
    dealt = result["allocation"]["attention"]
    assert dealt[:2] == (EVEN, EVEN)
    assert np.allclose((np.array(dealt[2]) + dealt[3]) / 2, EVEN, atol=1e-8)


def test_the_halves_of_texts_share_no_token():
    streams = [TokenStream(torch.arange(first, first + 1000), str(first), "f") for first in (0, 1000)]
    windows = draw_halves(streams, 41, 50, torch.Generator().manual_seed(0))
    assert windows.shape == (41, 50)
    assert not set(windows[:20].flatten().tolist()) & set(windows[20:].flatten().tolist())
