"""Intervals of paired differences."""

import numpy as np
import pytest
import torch

import solm
from helpers.models import tiny_model
from helpers.policies import SPACE, SPARSITY
from solm.core.sparsity import Allocation
from solm.evaluation.perplexity import EvaluationSettings, evaluate
from solm.evaluation.result import Difference, paired_difference
from solm.evaluation.texts import token_stream


def test_interval_of_a_known_case():
    rng = np.random.default_rng(0)
    theirs = rng.normal(3, 1, 400)
    ours = theirs - 0.1 + rng.normal(0, 0.2, 400)
    found = paired_difference(ours, theirs)
    assert found.low < found.value < found.high < 0
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.2 / 20, rel=0.15)
    assert paired_difference(ours, ours) == Difference(value=0, low=0, high=0)
    alone = paired_difference(ours[:1], theirs[:1])
    assert (alone.low, alone.high) == (-np.inf, np.inf)


def test_interval_covers_at_its_nominal_rate():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        sample = rng.normal(0.3, 1, 50)
        found = paired_difference(sample, np.zeros(50), resamples=500)
        covered += found.low <= 0.3 <= found.high
    assert 180 <= covered <= 198


@pytest.mark.parametrize("bend", [0.0, 0.3], ids=["even", "bent"])
def test_uniform_ignores_the_allocation_and_spends_the_same(byte_tokenizer, bend):
    line = tuple(round(knot / 20, 9) for knot in range(21))
    more, less = (tuple(min(1.0, max(0.0, s + sign * bend * s * (1 - s))) for s in line) for sign in (1, -1))
    sparsity = SPARSITY.under(Allocation(attention=(more, less), mlp=(less, more), hidden=(less, more)))
    with solm.attach(tiny_model("llama", torch.float32), tokenizer=byte_tokenizer, sparsity=sparsity) as lm:
        settings = EvaluationSettings(budgets=(0.6,), texts=3, context=60, length=16)
        stream = token_stream("pydoc:heldout", byte_tokenizer)
        result = evaluate(lm, [stream], settings, SPACE)
        plain = {point.arm: point for point in result.points}
        lm.sparsity = SPARSITY
        assert evaluate(lm, [stream], settings, SPACE).arm("allocated", 0.6) is None
    even, allocated = plain["uniform"], plain["allocated"]
    assert even.realised == pytest.approx(allocated.realised, abs=0.03)
    assert (even.nats == pytest.approx(allocated.nats, abs=1e-6)) is (bend == 0)
