"""What budgets a model can meet: the range is named, shares of bytes are met, and no axis is asked for in vain."""

import re

import pytest
import torch

import solm
from helpers.policies import SPARSITY, under_values
from helpers.timings import made_curve, made_timings
from solm.core.actions import AXES, ActionSpace
from solm.core.budget import Budget, Budgets
from solm.core.cost import MeasuredCost
from solm.core.errors import BudgetError
from solm.core.sparsity import SparsityConfig
from solm.policies.schedules import Random, Static


def read(budgets: Budgets, budget: Budget, context: int) -> float:
    return budgets.terms(budget, context)["bytes"]


def prompt(length: int = 200) -> torch.Tensor:
    return torch.randint(3, 259, (1, length), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("kind", ["value policy", "static", "random", "nested"])
def test_a_share_of_the_bytes_is_met(tiny_lm, kind):
    policy = None
    if kind == "value policy":
        lm = under_values(tiny_lm, SPARSITY)
    else:
        lm = tiny_lm.with_policy(None, SparsityConfig.preset("nested" if kind == "nested" else "cpu"))
        policy = (Random if kind == "random" else Static)(lm.space)
    offer = lm.budgets(policy)
    least = read(offer, offer.budget(0.01, 230, clamp=True), 230)
    for share in (least + 0.05, (least + 1) / 2):
        reply = lm.generate(prompt(), budget=share, policy=policy, max_new_tokens=60, min_new_tokens=60)
        assert reply.compute.requested["bytes"] == pytest.approx(share, abs=1e-3)
        assert reply.compute.bytes == pytest.approx(share, abs=0.02)
        if kind != "nested":
            assert reply.compute.realised["bits"] == 1, "bits save no bytes"


@pytest.mark.parametrize("context", [20, 100, 500, 5000])
@pytest.mark.parametrize("preset", ["default", "cpu", "nested"])
def test_what_is_out_of_reach_is_refused_with_the_range(tiny_lm, preset, context):
    offer = Budgets(ActionSpace.preset("nested"), SparsityConfig.preset(preset), tiny_lm.shapes)
    seen = max(context, offer.sparsity.always_read + 1)
    with pytest.raises(BudgetError, match=f"budget 0.02 is unreachable: at {seen} tokens this model reads") as refused:
        offer.budget(0.02, context)
    least = float(str(refused.value).split(" to 1 of")[0].split()[-1])
    lowest = offer.budget(0.02, context, clamp=True)
    assert read(offer, lowest, context) == pytest.approx(least, abs=0.01)
    assert read(offer, offer.budget(least + 0.05, context), context) == pytest.approx(least + 0.05, abs=1e-3)
    assert offer.budget(1, context) == solm.Budget()


def test_below_the_least_there_is_that_is_met_axis_by_axis_too(tiny_lm):
    offer = Budgets(ActionSpace.preset("nested"), SparsityConfig.preset("nested"), tiny_lm.shapes)
    low = offer.budget(Budget(attention=0.001, mlp=0.001, bits=2), 500, clamp=True)
    assert offer.budget(low, 500) == low
    for axis in AXES:
        with pytest.raises(BudgetError, match=f"budget {axis}="):
            offer.budget(low.model_copy(update={axis: 0.99 * getattr(low, axis)}), 500)
    half = Budget(attention=0.001, mlp=0.7, bits=12)
    assert offer.budget(half, 500, clamp=True) == half.model_copy(update={"attention": low.attention})
    assert offer.budget("keep=0.001", 500, clamp=True) == offer.of_net(offer.lowest_net)


def test_the_reachable_range_widens_with_the_context(tiny_lm):
    offer = Budgets(ActionSpace.preset("cpu"), SparsityConfig.preset("cpu"), tiny_lm.shapes)
    found = [read(offer, offer.budget(0.01, context, clamp=True), context) for context in (80, 200, 1000, 8000)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1] + 0.1


def test_without_a_policy_every_axis_is_at_the_same_fraction_of_what_it_realises(tiny_lm):
    offer = Budgets(ActionSpace.preset("cpu"), SparsityConfig.preset("cpu"), tiny_lm.shapes)
    budget, least = offer.budget(0.8, 2000), offer.budget(0.01, 2000, clamp=True)
    fractions = [(share - low) / (1 - low) for share, low in zip(budget.shares[:2], least.shares, strict=False)]
    assert fractions[0] == pytest.approx(fractions[1], abs=0.05)
    assert budget.bits == 16


def test_net_keep_follows_the_price_split_of_a_value_policy(value_lm):
    assert value_lm.budget("keep=0.6") == value_lm.trained.budget(0.6) == value_lm.trained.policy().split(0.6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keep=0.1", "budget 0.1 is unreachable: net keeps of this space are 0.3375 to 1"),
        ("attention=0.05", "attention=0.05 is unreachable: this action space offers 0.1 to 1"),
        ("bits=4", "bits=4 is unreachable: this action space offers 5 to 16"),
    ],
)
def test_axes_out_of_reach_are_named(policy_lm, text, message):
    with pytest.raises(BudgetError, match=message):
        policy_lm.budget(text)


def test_the_policys_own_weights_are_charged(value_lm):
    decides, static = value_lm.budgets(), value_lm.budgets(value_lm.policy("static"))
    assert decides.overhead > 0 == static.overhead
    assert decides.budget(0.9, 300).mlp < static.budget(0.9, 300).mlp


def test_a_policy_is_charged_its_own_weights_whatever_is_loaded(value_lm, tiny_lm):
    decides = value_lm.trained.policy()
    assert tiny_lm.overhead(decides) == value_lm.overhead(decides) == decides.weights.size


def timed(lm, **changes) -> Budgets:
    """The offer of a model whose steps take known times; with a curve where it has a policy."""
    timings = made_timings(lm.sparsity, lm.shapes, (100, 4000), **changes)
    if lm.trained is not None:
        lm.trained.curve = made_curve(lm.sparsity, lm.shapes, **changes)
    return Budgets(lm.space, lm.sparsity, lm.shapes, lm.trained, timings=timings)


@pytest.mark.parametrize("kind", ["value policy", "static"])
@pytest.mark.parametrize("context", [150, 1000, 4000])
def test_a_share_of_the_time_is_met_in_all_its_words(tiny_lm, kind, context):
    lm = {"value policy": lambda: under_values(tiny_lm, SPARSITY)}.get(
        kind, lambda: tiny_lm.with_policy(None, SparsityConfig.preset("cpu"))
    )()
    offer = timed(lm)
    known = MeasuredCost(offer.timings, lm.sparsity, lm.shapes)
    floor = offer.time_floor(context)
    for share in ((floor + 1) / 2, floor + 0.05):
        for words in (share, f"speed={1 / share}", f"ms={10 * share}"):
            assert known.share(offer.budget(words, context).shares, context) == pytest.approx(share, abs=2e-3)
    assert offer.budget("ms=11", context) == offer.budget(1, context) == solm.Budget()
    for kind, beyond, least in (("", "0.01", 0), ("speed=", "90", 1), ("ms=", "0.1", 0)):
        words = kind + beyond
        with pytest.raises(BudgetError, match=f"budget {words} is unreachable: at {context} tokens") as refused:
            offer.budget(words, context)
        ends = re.findall(r"[0-9.]+", str(refused.value).partition(" tokens ")[2])
        met = offer.budget(kind + ends[least], context)
        assert known.share(met.shares, context) == pytest.approx(floor, abs=6e-3), "the range is told in what was asked"
        assert known.share(offer.budget(words, context, clamp=True).shares, context) == pytest.approx(floor)


def test_pages_are_left_out_only_where_they_save_time(value_lm):
    """One price for a millisecond: what saves nothing is not given up, whatever net keep it would bring."""
    offer = timed(value_lm, attention=(0.0, 0.45))
    short, long = offer.budget(0.8, 100), offer.budget(0.8, 4000)
    assert short.attention == 1
    assert long.attention < 0.9
    assert long.mlp > short.mlp + 0.05
    assert value_lm.budget("keep=0.8").attention < 1, "net keep gives them up all the same"


def test_a_loss_is_what_the_curve_says(value_lm):
    offer = timed(value_lm)
    assert offer.budget("loss=0.05", 500) == offer.budget(0.85, 500)
    value_lm.trained.curve = None
    with pytest.raises(BudgetError, match="needs a policy with a measured curve"):
        offer.budget("loss=0.05", 500)
