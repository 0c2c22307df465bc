"""Guesses: how far they pay, and that a reply is the one of dense steps whatever was guessed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from solm.core.errors import SolmError
from solm.runtime.batch import Row, decode
from solm.runtime.guess import Guesser, Pace
from solm.runtime.sampling import Sampler
from solm.runtime.sources import Lookup


def prompt(seed: int, length: int = 40) -> torch.Tensor:
    ids = torch.randint(3, 259, (1, length), generator=torch.Generator().manual_seed(seed))
    return torch.cat([ids, ids], 1)  # so that something is found in it


def test_the_pace_is_that_of_recent_passes_and_disturbed_ones_count_less():
    """The first guess takes more than each after it."""
    pace = Pace()
    assert 1 < pace.seconds(2) < pace.seconds(8)
    for tokens in [1, 4, 2, 8, 1, 16] * 60:
        pace.add(tokens, 0.010 if tokens == 1 else 0.014 + 0.002 * tokens)
    assert np.allclose([pace.seconds(tokens) for tokens in (1, 2, 8, 15)], [0.010, 0.018, 0.030, 0.044], rtol=0.02)
    pace.add(4, 5.0)
    assert pace.seconds(4) < 0.025


def row(text: Lookup | None, most: int = 15, guess: int | None = None) -> SimpleNamespace:
    sources = [] if text is None else [text]
    return SimpleNamespace(sources=sources, most=most, guess=guess, left=100, drawn=False, drafting=False)


def test_guesses_are_made_where_they_pay():
    guesser, text = Guesser(), Lookup([1, 2, 3, 4] * 20)

    def count() -> int:
        return len(guesser.choose([row(text)])[0].tokens)

    def learn(accepted: int) -> None:
        guesser.learn(row(text), guesser.choose([row(text, guess=10)])[0], accepted)

    for _ in range(60):
        learn(10)
    assert count() == 15
    for _ in range(200):
        learn(0)
    assert count() == 0  # always wrong
    made = guesser.choose([row(text, guess=3), row(text, 2, 15), row(None)])
    assert [guess.tokens for guess in made] == [[1, 2, 3], [1, 2], []]
    for _ in range(2000):
        count()
    assert count() > 0  # tried again after a while


def test_how_many_guesses_pay_follows_from_what_tokens_take():
    cheap, dear = Guesser(), Guesser()
    for tokens in [1, 2, 8, 16] * 60:
        cheap.passed(tokens, 1 + 0.02 * (tokens - 1))
        dear.passed(tokens, 0.95 * tokens + 0.05)
    assert cheap.paying(0.95) == 15 > cheap.paying(0.6) > 1
    assert dear.paying(0.8) == 0 < dear.paying(1.0)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_k": 5}, {"temperature": 1.0, "top_k": 0}])
def test_a_reply_is_the_one_of_dense_steps(cpu_lm, sampling):
    guessed = accepted = 0
    for seed in range(4):
        for longest in (1, 2, 17, 90):
            options = {"max_new_tokens": longest, "seed": seed, "eos_token_id": -1, **sampling}
            expected = cpu_lm.generate(prompt(seed), guess="off", **options)
            assert expected.trace.guessed == 0
            for guess in ("auto", 3, 15):
                found = cpu_lm.generate(prompt(seed), guess=guess, **options)
                assert found.trace.ids == expected.trace.ids
                assert found.compute.realised == expected.compute.realised
                assert len(found.trace.actions) == longest - 1
                guessed, accepted = guessed + found.trace.guessed, accepted + found.trace.accepted
    assert guessed > 0
    assert sampling or 0 < accepted < guessed


def test_stops_and_penalties_hold_inside_a_guess(cpu_lm):
    for options in ({"stop_strings": ["a", "e"]}, {"repetition_penalty": 1.3}, {"eos_token_id": list(range(40))}):
        options = {"max_new_tokens": 80, "eos_token_id": -1, **options}
        found, expected = (cpu_lm.generate(prompt(1), guess=guess, **options) for guess in (15, "off"))
        assert found.trace.ids == expected.trace.ids
        assert found.text == expected.text


def test_rows_guess_beside_others(cpu_lm):
    """Of all lengths, that end at other times; beside a row under a budget nobody guesses."""
    lengths = [20 + 9 * seed for seed in range(5)]
    alone = [
        cpu_lm.generate(prompt(seed), guess="off", max_new_tokens=longest, eos_token_id=-1)
        for seed, longest in enumerate(lengths)
    ]
    dense = cpu_lm.policy("dense")

    def rows():
        for seed, longest in enumerate(lengths):
            sampler = Sampler.of(cpu_lm, prompt(seed), 0, {"eos_token_id": -1})
            row = Row(prompt(seed)[0].numpy(), dense, (1.0, 1.0, 1.0), longest, sampler)
            row.guess = 7
            yield row

    together = list(rows())
    taken = [id(row) for row in decode(cpu_lm, together, 3)]
    for row, expected in zip(together, alone, strict=True):
        assert row.ids == expected.trace.ids
        assert taken.count(id(row)) == len(row.ids)
    assert sum(row.trace.guessed for row in together) > 0
    mixed = list(rows())[:1]
    sampler = Sampler.of(cpu_lm, prompt(9), 0, {"eos_token_id": -1})
    mixed.append(Row(prompt(9)[0].numpy(), cpu_lm.policy(), (0.5, 0.7, 1.0), 60, sampler))
    list(decode(cpu_lm, mixed, 2))
    assert mixed[0].trace.guessed == 0


def test_nothing_is_guessed_where_passes_are_not_exact_unless_a_number_is_given(tiny_lm):
    assert tiny_lm.generate(prompt(1), max_new_tokens=60, eos_token_id=-1).trace.guessed == 0
    assert tiny_lm.generate(prompt(1), max_new_tokens=60, eos_token_id=-1, guess=4).trace.guessed > 0


@pytest.mark.parametrize("guess", [16, -1, "some", True, 1.5])
def test_what_is_no_number_of_guesses_is_refused(tiny_lm, guess):
    with pytest.raises(SolmError, match=rf"guess must be auto, off or a number in \[0, 15\], got {guess!r}"):
        tiny_lm.generate(prompt(1), guess=guess)
