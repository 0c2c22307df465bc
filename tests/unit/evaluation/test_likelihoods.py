"""Likelihoods of continuations against the stock model, whoever shares a batch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import solm
from helpers.models import tiny_model
from solm.core.actions import ActionSpace
from solm.core.budget import Budget
from solm.core.cost import relative_bytes
from solm.core.sparsity import SparsityConfig
from solm.evaluation.likelihoods import Scorer
from solm.policies.schedules import Dense, Static

SPACE = ActionSpace(attention=(0.2, 1.0), mlp=(0.4, 1.0), bits=(5, 16))
DENSE = torch.ones(3, dtype=torch.float64)


def likelihoods(lm, pairs, policy, target, batch=16):
    """Log-probabilities of pairs, whether they are greedy, and what their steps spent."""
    scorer = Scorer(lm, policy, target, batch)
    scores, greedy = zip(*scorer.score(pairs), strict=True)
    return SimpleNamespace(log_probabilities=list(scores), greedy=list(greedy), spent=scorer.spent)


def words(seed: int, count: int) -> list[int]:
    return torch.randint(3, 259, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def varied_pairs() -> list[tuple[list[int], list[int]]]:
    """Contexts of many lengths, one of a single token, options of one and of several tokens, a shared beginning."""
    pairs = [([7], words(1, 5)), ([7], [9]), (words(2, 90), [11]), (words(2, 90), [12]), (words(3, 30), words(4, 40))]
    start = words(5, 50)
    for index in range(6):
        context = start + words(10 + index, 3 + 5 * index)
        pairs += [(context, words(20 + index, 2)), (context, words(30 + index, 7))]
    return pairs


@pytest.fixture
def lm(byte_tokenizer):
    sparsity = SparsityConfig(page_size=8, window=8)
    with solm.attach(tiny_model("llama"), tokenizer=byte_tokenizer, sparsity=sparsity) as lm:
        yield lm


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_dense_likelihoods_are_the_stock_models(lm, batch):
    pairs = varied_pairs()
    found = likelihoods(lm, pairs, Dense(SPACE), DENSE, batch)
    for (context, continuation), got, greedy in zip(pairs, found.log_probabilities, found.greedy, strict=True):
        logits = lm.model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1].detach()
        scores = logits.log_softmax(-1)[torch.arange(len(continuation)), torch.tensor(continuation)]
        assert got == pytest.approx(float(scores.sum()), abs=1e-5)
        assert greedy == bool((logits.argmax(-1) == torch.tensor(continuation)).all())


def test_a_constant_schedule_equals_single_steps(lm):
    context, continuation = words(2, 90), words(3, 6)
    keep = torch.tensor([0.2, 0.4, 5.0], dtype=torch.float64)
    target = keep / torch.tensor([1, 1, 16])
    target[0] = 0.2
    session = lm.session()
    session.prefill(torch.tensor([context[:-1]]))
    steps = session.fork(1)
    expected = 0.0
    for token, following in zip([context[-1], *continuation[:-1]], continuation, strict=True):
        logits = steps.step(torch.tensor([token]), keep[None]).logits
        expected += float(logits[0, 0].log_softmax(-1)[following])
    found = likelihoods(lm, [(context, continuation), *varied_pairs()], Static(SPACE), target)
    assert found.log_probabilities[0] == pytest.approx(expected, abs=1e-5)


def test_a_budget_holds_over_questions_of_one_step_each(lm):
    pairs = [(words(index, 60), [5]) for index in range(256)]
    target = torch.tensor(Budget(attention=0.7, mlp=0.63, bits=9).shares, dtype=torch.float64)
    spent = likelihoods(lm, pairs, Static(SPACE), target).spent
    assert spent.ledger.steps.tolist() == [spent.steps] * 3 == [256] * 3
    assert spent.ledger.average.tolist() == pytest.approx(target.tolist(), abs=0.012)


class Heavy(Dense):
    """Dense, and reads as many weights as ten layers."""

    size = 10**6


def test_bytes_include_the_weights_of_the_policy(lm):
    pairs = [(words(1, 60), words(2, 8))]
    dense, heavy = (likelihoods(lm, pairs, policy(SPACE), DENSE).spent for policy in (Dense, Heavy))
    assert dense.bytes == pytest.approx(8)
    expected = relative_bytes(DENSE.expand(8, 3).numpy(), 60 + np.arange(8), lm.shapes, lm.sparsity, Heavy.size)
    assert heavy.bytes == pytest.approx(float(expected.sum()))


def test_a_pair_longer_than_the_context_loses_its_beginning(lm):
    context, continuation = words(1, 600), words(2, 4)
    found = likelihoods(lm, [(context, continuation)], Dense(SPACE), DENSE)
    logits = lm.model(torch.tensor([(context + continuation)[-513:-1]])).logits[0, -4:].detach()
    expected = float(logits.log_softmax(-1)[torch.arange(4), torch.tensor(continuation)].sum())
    assert found.log_probabilities[0] == pytest.approx(expected, abs=1e-5)
