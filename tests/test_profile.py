"""What layers keep of an action: dealt out alike by both backends, booked exactly, found where it helps."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

import solm
from conftest import tiny_model
from solm.backends.cpu.engine import Engine
from solm.backends.cpu.session import CpuSession
from solm.backends.passes import Turn
from solm.backends.torch.hooks import ModelControl
from solm.backends.torch.layout import Layout
from solm.backends.torch.pages import PageBounds, select_pages
from solm.backends.torch.plan import make_plan
from solm.backends.torch.session import Session
from solm.cli.main import app
from solm.core.actions import ActionSpace
from solm.core.allocation import KNOTS, Allocation
from solm.core.errors import DamagedFileError, DataError, PolicyMismatchError, SolmError
from solm.core.sparsity import SparsityConfig
from solm.policies.artifact import PolicyConfig, TrainedPolicy
from solm.policies.schedules import Static
from solm.runtime.drive import teacher_forced
from solm.training.allocate import _rounding, deal, find_allocation, read_allocation
from test_families import keep_of, tokens
from test_values import SPACE as GRID
from test_values import SPARSITY as PLAIN
from test_values import network

EVEN = tuple((np.arange(KNOTS) / (KNOTS - 1)).tolist())
SPACE = ActionSpace(attention=(0.1, 0.4, 1.0), mlp=(0.4, 0.7, 1.0), bits=(4, 16))


def profile_of(*bends: float) -> Allocation:
    """Layers that keep s + bend · s (1 - s) where the average keeps s; bends should add up to 0."""
    s = np.array(EVEN)
    curves = tuple(tuple((s + bend * s * (1 - s)).round(12).tolist()) for bend in bends)
    return Allocation(attention=curves, mlp=tuple(reversed(curves)))


def sparsity_of(*bends: float, **options) -> SparsityConfig:
    return SparsityConfig(window=16, allocation=profile_of(*bends), **options)


def by_head(allocation: Allocation) -> Allocation:
    """Two KV heads of every layer, the first of which reads more than the layer did and the other less."""
    pairs = [(np.sqrt(curve), 2 * np.array(curve) - np.sqrt(curve)) for curve in allocation.attention]
    curves = (tuple(np.maximum.accumulate(head.clip(0, 1)).tolist()) for pair in pairs for head in pair)
    return Allocation(attention=tuple(curves), mlp=allocation.mlp)


@pytest.fixture(scope="module")
def control():
    control = ModelControl(tiny_model("llama", torch.float32, num_hidden_layers=4))
    yield control
    control.detach()


BENDS = (0.9, -0.6, -0.7, 0.4)


def test_an_even_profile_changes_nothing_but_rounding(control):
    ids, keep = tokens(2, 100), keep_of((0.3, 0.5, 16), 2, 40)
    found = []
    for sparsity in (SparsityConfig(window=16), sparsity_of(0, 0, 0, 0)):
        session = Session(control, sparsity)
        session.prefill(ids)
        found.append(session.fork(1).extend(tokens(2, 40, seed=5), keep))
    torch.testing.assert_close(found[0].realised, found[1].realised, rtol=0, atol=16 / 100)
    torch.testing.assert_close(found[0].realised[..., 1:], found[1].realised[..., 1:])


def test_layers_read_what_the_profile_deals_out(control):
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
        assert int(own.channels(control.shapes.intermediate)) == pytest.approx(
            kept * control.shapes.intermediate, abs=1.05
        )
    realised = torch.stack([plan.realised_by(layer, layer + 1, 4) for layer in range(4)]).sum(0)
    torch.testing.assert_close(realised, plan.realised)
    assert plan.realised[0, 0, 1] == pytest.approx(0.6, abs=0.02)


def test_heads_read_what_the_profile_deals_out_to_them(control):
    """What the masks let every head read is what is booked."""
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


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
@pytest.mark.parametrize(("power", "heads"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("action", [(0.3, 1.0, 16), (1.0, 0.5, 16), (0.25, 0.4, 6), (1.0, 1.0, 16)])
def test_the_engine_deals_as_the_reference_does(control, action, power, heads):
    sparsity = sparsity_of(*BENDS, hidden_power=power)
    if heads > 1:
        sparsity = sparsity.under(by_head(sparsity.allocation))
    sessions = (
        Session(control, sparsity),
        CpuSession(control, sparsity, Engine(control.model, sparsity, "float32")),
    )
    found = []
    for session in sessions:
        session.prefill(tokens(2, 150))
        rows = session.fork(1)
        found.append((rows, rows.extend(tokens(2, 40, seed=5), keep_of(action, 2, 40))))
    (ours, expected), (native, given_) = found
    close = (expected.logits - given_.logits).abs().amax(-1) < 1e-3
    assert close.float().mean() > 0.97
    torch.testing.assert_close(expected.realised, given_.realised)
    torch.testing.assert_close(ours.ledger.spent, native.ledger.spent)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_a_turn_in_mid_pass_books_what_each_part_spent(control):
    sparsity = sparsity_of(*BENDS)
    low, high = keep_of((0.2, 0.4, 16), 2, 30), keep_of((0.6, 0.9, 16), 2, 30)
    parts = [make_plan(keep, 101 + torch.arange(30).expand(2, 30), sparsity, control.shapes) for keep in (low, high)]
    expected = parts[0].realised_by(0, 1, 4) + parts[1].realised_by(1, 4, 4)
    for session in (
        Session(control, sparsity), CpuSession(control, sparsity, Engine(control.model, sparsity, "float32"))
    ):  # fmt: skip
        session.prefill(tokens(2, 100))
        found = session.fork(1).extend(tokens(2, 30, seed=5), low, Turn(1, lambda hidden: high))
        torch.testing.assert_close(found.realised, expected)


@given(st.floats(0.05, 0.95), st.integers(16, 120))
def test_static_keeps_the_budget_under_a_profile(part, steps):
    with solm.attach(tiny_model("llama"), sparsity=sparsity_of(0.8, -0.8)) as lm:
        ids = tokens(1, 200 + steps + 1)
        session = lm.session()
        session.prefill(ids[:, :200])
        lows = torch.tensor([low for low, _ in SPACE.ranges], dtype=torch.float64)
        target = (lows + part * (1 - lows))[None]
        spent = teacher_forced(session.fork(1), Static(SPACE), ids[:, 200:], target).realised.mean(1)
        # Levels in between realise their number to within a page in every layer; the lowest may read more than it says.
        assert (spent - target.clamp(min=0.2)).abs().max() < 0.5 / steps + 0.06


def test_dealing_gives_more_to_layers_that_lose_more():
    shares = (0.2, 0.6)
    costs = np.array([[0.01, 0.001], [0.08, 0.01], [0.01, 0.001], [0.02, 0.002]])
    curves = np.array(deal(costs, shares))
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


def test_a_layer_without_any_cost_is_served_last_and_noise_below_zero_is_none():
    curves = np.array(deal(np.array([[-0.002, -0.001], [0.1, 0.05]]), (0.2, 0.6)))
    assert curves[1, 8] > curves[0, 8]
    assert np.isfinite(curves).all()


def test_what_rounding_costs_falls_with_depth_and_is_not_taken_for_a_loss():
    """Two heads in each of four layers; the first layer's is sliding and was not measured."""
    costs = {2: [0.9, 0.5], 3: [0.5, 0.3], 4: [0.2, 0.12], 5: [0.9, 0.4], 6: [0.8, 0.2], 7: [0.6, 0.13]}
    assert _rounding(costs, 2, 4, 0.08).tolist() == [0.24, 0.24, 0.12, 0.12]  # at most three times the least
    assert _rounding(costs, 2, 4, 0.12).tolist() == [0.36, 0.3, 0.12, 0.12]
    assert _rounding({0: [0.9, 0.5], 1: [0.4, 0.2]}, 1, 2, 0.05).tolist() == [0.05, 0.05]


def test_costs_are_averaged_over_contexts_of_fewer_and_fewer_texts(tmp_path):
    with solm.attach(tiny_model("llama", torch.float32), sparsity=SparsityConfig(window=16)) as lm:
        told = find_allocation(lm, tokens(8, 340), (80, 320), tmp_path / "both.json")
        turned = find_allocation(lm, tokens(8, 340), (320, 80), tmp_path / "turned.json")
        short = find_allocation(lm, tokens(8, 340)[:, :100], (80,), tmp_path / "short.json")
        long = find_allocation(lm, tokens(8, 340)[[0, 4]], (320,), tmp_path / "long.json")
    assert [row["context"] for row in told["checked"]] == [80] * 7 + [320] * 7
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


def test_a_profile_is_found_and_helps(found):
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


@pytest.mark.parametrize(("texts", "context", "message"), [(1, 160, "at least 2 texts"), (4, 12, "at least 21 tokens")])
def test_too_little_to_measure_on_is_refused(tmp_path, texts, context, message):
    with (
        solm.attach(tiny_model("llama"), sparsity=SparsityConfig(window=16)) as lm,
        pytest.raises(DataError, match=message),
    ):
        find_allocation(lm, tokens(texts, 200), (context,), tmp_path / "layers.json")


@pytest.mark.parametrize("context", ["abc", "1024,", "64;128"])
def test_contexts_that_are_no_numbers_are_named(context, tmp_path):
    done = CliRunner().invoke(app, ["allocation", "--out", str(tmp_path / "layers.json"), "--context", context])
    assert isinstance(done.exception, DataError)
    assert str(done.exception) == f"context must be whole numbers of tokens, such as 1024,4096, got {context!r}"


def test_an_interrupted_command_says_how_to_go_on(tiny_folder, tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("solm.training.allocate.find_allocation", interrupted)
    done = CliRunner().invoke(
        app, ["allocation", "--model", str(tiny_folder), "--out", str(tmp_path / "l.json"), "--context", "64"]
    )
    assert done.exit_code == 130
    assert "goes on from there" in done.output


def test_a_policy_keeps_its_profile_and_another_model_is_refused(found):
    with pytest.raises(PolicyMismatchError, match="4 layers, this one has 2"):
        solm.attach(tiny_model("llama"), sparsity=sparsity_of(*BENDS))
    three = Allocation(attention=(EVEN,) * 6, mlp=(EVEN,) * 2)
    with pytest.raises(PolicyMismatchError, match="3 KV heads, this one has 2"):
        solm.attach(tiny_model("llama"), sparsity=SparsityConfig(window=16, allocation=three))
    model = tiny_model("llama")
    solm.attach(model).detach()  # the refusal left no hooks behind elsewhere, and this model is free


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlp": ((0.5,) * KNOTS,) * 2}, "rise from at least 0 to 1"),
        ({"attention": (EVEN,)}, "points for every layer"),
        ({"attention": (EVEN,) * 3}, "points for every layer"),
        ({"attention": (EVEN[:-1], EVEN[:-1])}, "points for every layer"),
        ({"mlp": ((*EVEN[:3], 0.05, *EVEN[4:]), EVEN)}, "rise from at least 0 to 1"),
    ],
)
def test_wrong_profiles_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        Allocation(**{"attention": (EVEN, EVEN), "mlp": (EVEN, EVEN), **change})


def test_a_sparsity_without_a_window_has_no_allocation(tmp_path):
    sparsity = SparsityConfig.preset("paper")
    with pytest.raises(SolmError, match="an allocation needs a window"):
        sparsity.under(profile_of(0, 0))
    with (
        solm.attach(tiny_model("llama"), sparsity=sparsity) as lm,
        pytest.raises(SolmError, match="needs a window"),
    ):
        find_allocation(lm, tokens(4, 200), (160,), tmp_path / "layers.json")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"allocation": {"attention": [], "mlp": []}}'])
def test_a_file_without_a_profile_is_told_apart(tmp_path, content):
    path = tmp_path / "layers.json"
    path.write_text(content)
    with pytest.raises(DamagedFileError, match="does not hold an allocation"):
        read_allocation(path)


def test_a_policy_without_a_profile_has_none_to_give(tmp_path):
    made = network()
    with solm.attach(tiny_model("llama")) as lm:
        config = PolicyConfig(base=lm.identity, space=GRID, sparsity=PLAIN, network=made.config)
    TrainedPolicy(config, made).save_pretrained(tmp_path / "policy")
    with pytest.raises(DataError, match="carries no allocation"):
        read_allocation(tmp_path / "policy")


def test_the_commands_work_together(tiny_folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("All that glisters is not gold, often have you heard that told. " * 60)
    layers, run = tmp_path / "layers.json", tmp_path / "run"
    common = ["--model", str(tiny_folder), "--data", str(text)]
    done = CliRunner().invoke(
        app, ["allocation", *common, "--out", str(layers), "--texts", "2", "--context", "128", "--tokens", "16"]
    )
    assert done.exit_code == 0, done.output
    assert done.output.count("evenly") == 7
    done = CliRunner().invoke(
        app,
        ["train", *common, "--out", str(run), "--allocation", str(layers), "--batches", "1", "--context", "128",
         "--horizon", "8", "--set", "schedules=1", "--set", "layer=1", "--set", "calibration_texts=2",
         "--set", "calibration_horizon=8", "--set", "calibration_context=128"],
    )  # fmt: skip
    assert done.exit_code == 0, (done.output, done.exception)
    lm = solm.load(str(tiny_folder), str(run / "policy"))
    assert lm.sparsity.allocation == read_allocation(layers) == read_allocation(run / "policy")
    reply = lm.generate(tokens(1, 120), budget=solm.Budget(attention=0.5, mlp=0.6, bits=8), max_new_tokens=24)
    assert reply.compute.realised["mlp"] == pytest.approx(0.6, abs=0.04)


def test_sliding_layers_and_models_without_an_mlp_axis_keep_an_even_share(tmp_path):
    """Gemma 2's first layer here reads its window whatever is dealt out: it must not be taken to give the rest away."""
    with solm.attach(tiny_model("gemma2", torch.float32), sparsity=SparsityConfig(window=16)) as lm:
        result = find_allocation(lm, tokens(4, 140), (120,), tmp_path / "layers.json")
    assert sorted(result["costs"]["attention"]) == [2, 3]  # the two heads of the other layer
    dealt = result["allocation"]["attention"]
    assert dealt[:2] == (EVEN, EVEN)
    assert np.allclose((np.array(dealt[2]) + dealt[3]) / 2, EVEN, atol=1e-8)
