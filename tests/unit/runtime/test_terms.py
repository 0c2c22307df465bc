"""What was asked for and what was met, in all the words that are known."""

import json
import math

import numpy as np
import pytest
import torch

from helpers.policies import SPARSITY, under_values
from helpers.timings import made_curve
from solm.core.actions import AXES
from solm.core.budget import mean_terms
from solm.core.cost import MeasuredCost

SHARES = {"attention", "mlp", "bits", "net", "bytes"}
TIME = {"time", "speed", "ms"}


@pytest.fixture
def fitted_lm(tiny_lm):
    """The tiny model with a policy that brings a curve."""
    policy = under_values(tiny_lm, SPARSITY).trained
    policy.curve = made_curve(SPARSITY, tiny_lm.shapes)
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
    known = MeasuredCost(fitted_lm.timings, fitted_lm.sparsity, fitted_lm.shapes)
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


def test_a_reply_of_one_token_has_taken_no_step(fitted_lm):
    reply = fitted_lm.generate(torch.full((1, 90), 5), budget=0.8, max_new_tokens=1)
    assert reply.compute.realised["time"] == reply.compute.realised["speed"] == 1


def test_a_mean_keeps_speed_and_time_one_thing():
    terms = [{"net": 0.5, "time": 0.5, "speed": 2.0, "loss": 0.2, "perplexity": math.exp(0.2)},
             {"net": 1.0, "time": 1.0, "speed": 1.0, "loss": 0.0, "perplexity": 1.0, "ms": 1.0}]  # fmt: skip
    found = mean_terms(terms, [3, 1])
    assert found.keys() == terms[0].keys()
    assert found["time"] == pytest.approx(0.625)
    assert found["speed"] == pytest.approx(1.6)
    assert found["perplexity"] == pytest.approx(math.exp(0.15))
