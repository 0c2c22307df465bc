"""What budgets a model can meet, and what is said of them and of what steps spent in all units that are measured."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import solm
from helpers.policies import SPARSITY, under_values
from helpers.timings import made_curve, made_timings
from solm.core.actions import AXES, ActionSpace
from solm.core.budget import NET_RATES, Budget, Budgets, mean_terms
from solm.core.errors import BudgetError
from solm.core.sparsity import SparsityConfig
from solm.policies.schedules import Static

SHARES = {"attention", "mlp", "bits", "net", "bytes"}
TIME = {"time", "speed", "ms", "dense_ms"}


def read(budgets: Budgets, budget: Budget, context: int) -> float:
    return budgets.terms(budget, context)["bytes"]


def prompt(length: int = 200) -> torch.Tensor:
    return torch.randint(3, 259, (1, length), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("kind", ["value policy", "static", "nested"])
def test_a_share_of_the_bytes_is_met(tiny_lm, kind):
    policy = None
    if kind == "value policy":
        lm = under_values(tiny_lm, SPARSITY)
    else:
        lm = tiny_lm.with_policy(None, SparsityConfig.preset("nested" if kind == "nested" else "cpu"))
        policy = Static(lm.space)
    budgets = lm.budgets(policy)
    least = read(budgets, budgets.budget(0.01, 230, clamp=True), 230)
    for share in (least + 0.05, (least + 1) / 2):
        reply = lm.generate(prompt(), budget=share, policy=policy, max_new_tokens=60, min_new_tokens=60)
        assert reply.compute.requested["bytes"] == pytest.approx(share, abs=1e-3)
        assert reply.compute.bytes == pytest.approx(share, abs=0.02)
        if kind != "nested":
            assert reply.compute.realised["bits"] == 1, "bits save no bytes"


@pytest.mark.parametrize("context", [20, 100, 500, 5000])
@pytest.mark.parametrize("preset", ["default", "cpu", "nested"])
def test_what_is_out_of_reach_is_refused_with_the_range(tiny_lm, preset, context):
    budgets = Budgets(ActionSpace.preset("nested"), SparsityConfig.preset(preset), tiny_lm.shapes)
    seen = max(context, budgets.sparsity.always_read + 1)
    with pytest.raises(BudgetError, match=f"budget 0.02 is unreachable: at {seen} tokens this model reads") as refused:
        budgets.budget(0.02, context)
    least = float(str(refused.value).split(" to 1 of")[0].split()[-1])
    lowest = budgets.budget(0.02, context, clamp=True)
    assert read(budgets, lowest, context) == pytest.approx(least, abs=0.01)
    assert read(budgets, budgets.budget(least + 0.05, context), context) == pytest.approx(least + 0.05, abs=1e-3)
    assert budgets.budget(1, context) == solm.Budget()


def test_below_the_least_there_is_that_is_met_axis_by_axis_too(tiny_lm):
    budgets = Budgets(ActionSpace.preset("nested"), SparsityConfig.preset("nested"), tiny_lm.shapes)
    low = budgets.budget(Budget(attention=0.001, mlp=0.001, bits=2), 500, clamp=True)
    assert budgets.budget(low, 500) == low
    for axis in AXES:
        with pytest.raises(BudgetError, match=f"budget {axis}="):
            budgets.budget(low.model_copy(update={axis: 0.99 * getattr(low, axis)}), 500)
    half = Budget(attention=0.001, mlp=0.7, bits=12)
    assert budgets.budget(half, 500, clamp=True) == half.model_copy(update={"attention": low.attention})
    assert budgets.budget("keep=0.001", 500, clamp=True) == budgets.of_net(budgets.lowest_net)


def test_without_a_policy_every_axis_is_at_the_same_fraction_of_what_it_realises(tiny_lm):
    budgets = Budgets(ActionSpace.preset("cpu"), SparsityConfig.preset("cpu"), tiny_lm.shapes)
    budget, least = budgets.budget(0.8, 2000), budgets.budget(0.01, 2000, clamp=True)
    fractions = [(share - low) / (1 - low) for share, low in zip(budget.shares[:2], least.shares, strict=False)]
    assert fractions[0] == pytest.approx(fractions[1], abs=0.05)
    assert budget.bits == 16


def test_net_keep_follows_the_price_split_of_a_value_policy(value_lm):
    policy = value_lm.policy()
    assert value_lm.budget("keep=0.6") == policy.split(0.6, NET_RATES, policy.space.shares)


def test_the_policys_own_weights_are_charged(value_lm):
    decides, static = value_lm.budgets(), value_lm.budgets(value_lm.policy("static"))
    assert decides.overhead > 0 == static.overhead
    assert decides.budget(0.9, 300).mlp < static.budget(0.9, 300).mlp


def timed(lm, **changes) -> Budgets:
    """The budgets of a model whose steps take known times; with a curve where it has a policy."""
    timings = made_timings(0.04, **changes)
    if lm.trained is not None:
        lm.trained.curve = made_curve(**changes)
    return Budgets(lm.space, lm.sparsity, lm.shapes, lm.trained, timings=timings)


@pytest.mark.parametrize("kind", ["value policy", "static"])
@pytest.mark.parametrize("context", [150, 1000, 4000])
def test_a_share_of_the_time_is_met_in_all_its_words(tiny_lm, kind, context):
    lm = {"value policy": lambda: under_values(tiny_lm, SPARSITY)}.get(
        kind, lambda: tiny_lm.with_policy(None, SparsityConfig.preset("cpu"))
    )()
    budgets = timed(lm)
    known = budgets.timings
    floor = budgets.time_floor(context)
    for share in ((floor + 1) / 2, floor + 0.05):
        for words in (share, f"speed={1 / share}", f"ms={10 * share}"):
            assert known.share(budgets.budget(words, context).shares, context) == pytest.approx(share, abs=2e-3)
    assert budgets.budget("ms=11", context) == budgets.budget(1, context) == solm.Budget()
    for kind, beyond, least in (("", "0.01", 0), ("speed=", "90", 1), ("ms=", "0.1", 0)):
        words = kind + beyond
        with pytest.raises(BudgetError, match=f"budget {words} is unreachable: at {context} tokens") as refused:
            budgets.budget(words, context)
        ends = re.findall(r"[0-9.]+", str(refused.value).partition(" tokens ")[2])
        met = budgets.budget(kind + ends[least], context)
        assert known.share(met.shares, context) == pytest.approx(floor, abs=6e-3), "the range is told in what was asked"
        assert known.share(budgets.budget(words, context, clamp=True).shares, context) == pytest.approx(floor)


def test_pages_are_left_out_only_where_they_save_time(value_lm):
    """One price for a millisecond: what saves nothing is not given up, whatever net keep it would bring."""
    budgets = timed(value_lm, page_ms=4.5 / 4000)
    short, long = budgets.budget(0.8, 100), budgets.budget(0.8, 4000)
    assert short.attention == 1
    assert long.attention < 0.9
    assert long.mlp > short.mlp + 0.05
    assert value_lm.budget("keep=0.8").attention < 1, "net keep gives them up all the same"


def test_a_loss_is_what_the_curve_says(value_lm):
    budgets = timed(value_lm)
    assert budgets.budget("loss=0.05", 500) == budgets.budget(0.85, 500)
    value_lm.trained.curve = None
    with pytest.raises(BudgetError, match="needs a policy with a measured curve"):
        replace(budgets).budget("loss=0.05", 500)


@pytest.fixture
def fitted_lm(tiny_lm):
    """The tiny model with a policy that brings a curve."""
    policy = under_values(tiny_lm, SPARSITY).trained
    policy.curve = made_curve()
    return tiny_lm.with_policy(policy)


def words(lm, budget, context=500, policy="policy"):
    chosen = lm.policy(policy)
    return lm.budgets(chosen).resolve(budget, context).terms


def test_forms_of_one_budget_come_to_the_same_words(fitted_lm):
    found = [words(fitted_lm, budget) for budget in (0.8, "speed=1.25", "ms=8", f"loss={0.1 * 2 / 3}")]
    for terms in found:
        assert terms == pytest.approx(found[0], abs=1e-3)
    assert found[0].keys() == SHARES | TIME | {"loss", "perplexity"}
    assert found[0]["time"] == pytest.approx(0.8, abs=2e-3)
    assert found[0]["speed"] == pytest.approx(1.25, abs=3e-3)
    assert found[0]["ms"] == pytest.approx(8, abs=0.02)
    assert found[0]["loss"] == pytest.approx(0.1 * 2 / 3, abs=1e-3), "between the point at 0.7 and none at 1"
    assert found[0]["perplexity"] == pytest.approx(math.exp(found[0]["loss"]))


def test_a_loss_is_told_only_where_the_curve_knows_it(fitted_lm, tiny_lm):
    below = words(fitted_lm, 0.66)
    assert below["loss_above"] == pytest.approx(0.1)
    assert not below.keys() & {"loss", "perplexity"}
    assert words(fitted_lm, "keep=0.8").keys() == SHARES | TIME, "another split than the curve was measured with"
    assert words(fitted_lm, "mlp=0.6").keys() == SHARES | TIME
    assert words(fitted_lm, 0.8, policy="static").keys() == SHARES | TIME, "another policy"
    assert words(tiny_lm, "mlp=0.6", policy="static").keys() == SHARES, "nothing was measured"


def test_a_reply_says_what_its_steps_come_to(fitted_lm):
    ids = torch.randint(3, 259, (1, 200), generator=torch.Generator().manual_seed(4))
    reply = fitted_lm.generate(ids, budget="speed=1.25", max_new_tokens=60, min_new_tokens=60)
    asked, met = reply.compute.requested, reply.compute.realised
    assert met.keys() == asked.keys()
    known = fitted_lm.timings
    times = [
        float(known.milliseconds(np.array([token.realised[axis] for axis in AXES]), 200 + place))
        for place, token in enumerate(reply.tokens)
        if place > 0  # the first one comes from the prompt
    ]
    assert met["ms"] == pytest.approx(sum(times) / len(times))
    assert met["time"] == pytest.approx(asked["time"], abs=0.02)
    assert met["speed"] == pytest.approx(1 / met["time"])
    assert met["loss"] == pytest.approx(fitted_lm.trained.curve.loss(met["time"], 230)[0])
    assert json.loads(json.dumps(reply.as_dict()))["realised"] == met


def test_a_mean_keeps_speed_and_time_one_thing():
    terms = [{"net": 0.5, "time": 0.5, "speed": 2.0, "loss": 0.2, "perplexity": math.exp(0.2)},
             {"net": 1.0, "time": 1.0, "speed": 1.0, "loss": 0.0, "perplexity": 1.0, "ms": 1.0}]  # fmt: skip
    found = mean_terms(terms, [3, 1])
    assert found.keys() == terms[0].keys()
    assert found["time"] == pytest.approx(0.625)
    assert found["speed"] == pytest.approx(1.6)
    assert found["perplexity"] == pytest.approx(math.exp(0.15))
