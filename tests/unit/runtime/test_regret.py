"""Budgets as a loss without a policy: what guesses may give up is measured, and stays within what was asked for."""

import math

import numpy as np
import pytest
import torch

import solm
from helpers.models import disturbed, tiny_model
from solm.core.errors import BudgetError
from solm.runtime.batch import decode
from solm.runtime.grammars import Grammar
from solm.runtime.guess import MOST_REGRET, Allowance
from solm.runtime.sampling import MOST_EXACT, MOST_NOISE, Plain, Sampler, noise

ENDLESS = {"eos_token_id": -1}
SAMPLING = [{}, {"temperature": 0.8}, {"temperature": 1.0, "top_k": 0, "min_p": 0.01}, {"repetition_penalty": 1.2}]


def prompt(seed: int, length: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 259, (1, length))


def test_an_allowance_is_kept_over_every_beginning_of_a_reply():
    allowance = Allowance(0.1)
    assert allowance.next == pytest.approx(0.1)
    for regret in (0.0, 0.0, 0.3, 0.0):
        assert regret <= allowance.next + 1e-12
        allowance.take(regret)
    assert allowance.next == pytest.approx(0.2)
    assert allowance.average == pytest.approx(0.075)
    assert Allowance(100.0).next == MOST_REGRET


@pytest.mark.parametrize("sampling", SAMPLING)
def test_what_was_given_up_is_what_a_dense_model_says(cpu_lm, sampling):
    """By the logits of single steps along the reply, without anything that guesses."""
    lost = 0.0
    model = disturbed(tiny_model("llama", torch.float32), 0.01)
    cpu_lm.draft = solm.attach(model, tokenizer=cpu_lm.tokenizer, backend="cpu", precision="int8")
    for seed in range(12):
        given = prompt(seed)
        plain = cpu_lm.generate(
            given, guess="off", budget="loss=1e-9", max_new_tokens=60, seed=seed, **ENDLESS, **sampling
        )
        assert plain.compute.realised["loss"] == 0
        row = cpu_lm._rows([given], {
            "budget": "loss=0.1", "max_new_tokens": 60, "seed": seed, "guess": 4, **ENDLESS, **sampling,
        })[0].row  # fmt: skip
        assert len(list(decode(cpu_lm, [row], 1))) == len(row.ids) == 60
        told = row.sampler.allowance
        assert 0 <= told.average <= 0.1

        # The same again by single steps: the regret of every token against what noise and logits choose.
        judge = Sampler.of(cpu_lm, given, seed, ENDLESS | sampling)
        judge.allowance = Allowance(math.inf)
        session = cpu_lm.session()
        logits = session.prefill(given)[0]
        worst = 0.0
        for token in row.ids:
            before = judge.allowance.regret
            judge.choose(judge.possible(logits), token)
            regret = judge.allowance.regret - before
            assert regret <= MOST_REGRET
            worst = max(worst, regret)
            logits = session.step(np.array([token])).logits[0, 0]
        assert judge.allowance.regret == pytest.approx(told.regret, abs=1e-4)
        lost += worst
    assert lost > 0, "nothing was ever given up"


def test_the_reply_says_what_was_lost_and_that_it_was_measured(cpu_lm):
    lm = cpu_lm.with_policy(None)
    reply = lm.generate(prompt(1), budget="loss=0.02", max_new_tokens=40, **ENDLESS)
    assert reply.compute.requested["loss"] == 0.02
    assert 0 <= reply.compute.realised["loss"] <= 0.02
    assert reply.compute.realised["perplexity"] == pytest.approx(math.exp(reply.compute.realised["loss"]))
    assert reply.compute.realised["net"] == 1
    assert reply.compute.verified
    assert reply.as_dict()["loss_verified"] is True
    assert not lm.generate(prompt(1), max_new_tokens=9).compute.verified
    exact = lm.generate(prompt(1), max_new_tokens=40, guess="off", **ENDLESS)
    assert lm.generate(prompt(1), budget="loss=1e-9", max_new_tokens=40, **ENDLESS).trace.ids == exact.trace.ids
    lm.detach()


def test_a_loss_without_a_curve_is_refused_where_passes_are_not_exact(tiny_lm):
    with pytest.raises(
        BudgetError,
        match=r"a budget as a loss needs a policy with a measured curve|a budget in time needs step timings",
    ):
        tiny_lm.generate(prompt(1), budget="loss=0.02")


def test_a_grammar_and_an_end_are_never_given_up(cpu_lm):
    """A guess that the grammar forbids is not kept, nor one that ends the reply or goes on beyond its end."""
    sampler = Sampler(0, stops=frozenset({7}))
    sampler.allowance = Allowance(math.inf)
    logits = np.zeros(20, np.float32)
    for best, guess, kept in ((3, 4, True), (3, 7, False), (7, 3, False)):
        logits[:], logits[best], logits[guess] = 0, 5.0, 4.9
        assert sampler.choose(logits, guess) == (guess if kept else best)
    grammar = Grammar.regex("[ab]{30}")
    row = cpu_lm._rows([prompt(1)], {"budget": "loss=5", "max_new_tokens": 30, "guess": 5, "grammar": grammar})[0].row
    row.predicted = cpu_lm.tokenizer.encode("abcabbbaabab?aabbabab")
    list(decode(cpu_lm, [row], 1))
    assert set(cpu_lm.tokenizer.decode(row.ids)) <= {"a", "b"}


def test_a_guess_beyond_the_exact_logits_is_not_kept():
    sampler = Sampler(0)
    sampler.allowance = Allowance(math.inf)
    logits = np.full(200, -9, np.float32)
    logits[:MOST_EXACT] = np.linspace(1, 0.99, MOST_EXACT)
    logits[150] = 0.98
    assert sampler.choose(logits, 150) == 0
    assert sampler.choose(logits, MOST_EXACT - 1) == MOST_EXACT - 1


def test_noise_is_a_function_of_seed_position_and_token():
    every = noise(5, 3, np.arange(1000))
    assert (noise(5, 3, np.array([17, 4])) == every[[17, 4]]).all()
    assert every.max() <= MOST_NOISE
    for other in (noise(6, 3, np.arange(1000)), noise(5, 4, np.arange(1000))):
        assert abs(np.corrcoef(every, other)[0, 1]) < 0.1
    many = noise(1 << 70, 0, np.arange(200_000))
    assert many.mean() == pytest.approx(0.5772, abs=0.01)
    assert many.var() == pytest.approx(math.pi**2 / 6, abs=0.03)


def test_noisy_choices_have_the_distribution_of_the_logits():
    weights = np.array([0.5, 0.3, 0.15, 0.049, 0.001])
    counts = np.zeros(5)
    for seed in range(4000):
        sampler = Sampler(seed, plain=Plain())
        sampler.allowance = Allowance(0.1)
        counts[sampler.choose(np.log(weights).astype(np.float32))] += 1
    assert np.abs(counts / 4000 - weights).max() < 0.03
