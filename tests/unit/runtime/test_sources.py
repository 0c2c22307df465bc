"""What a row's text, a prediction and a grammar propose as its next tokens."""

import numpy as np
import pytest

import solm
from solm.runtime.grammars import Grammar
from solm.runtime.sources import Forced, Lookup, Memory, Prediction, Recalled


def test_what_followed_the_last_passage_like_the_end_is_proposed():
    text = Lookup([7, 1, 2, 3, 4, 9, 1, 2, 5, 6, 8, 1, 2])
    assert text.propose(3) == ([5, 6, 8], 0)
    for token in (3, 4):
        text.add(token)
    assert text.propose(2) == ([9, 1], 2)  # a longer passage before a later, shorter one
    assert text.propose(0) == ([], 0)
    assert Lookup([1]).propose(5) == Lookup([1, 2, 3]).propose(5) == ([], 0)


def test_a_text_that_repeats_itself_is_continued_beyond_its_end():
    assert Lookup([5, 1, 2, 3, 1, 2, 3, 1, 2]).propose(7) == ([3, 1, 2, 3, 1, 2, 3], 2)


def test_a_prediction_is_followed_from_its_beginning_and_taken_up_again_where_the_reply_is_like_it():
    source = Prediction([5, 6, 7, 8, 9, 10])
    assert source.propose(3) == ([5, 6, 7], 0)
    for token in (5, 6):
        source.add(token)
    assert source.propose(9) == ([7, 8, 9, 10], 2)  # no further than it goes
    source.add(99)
    assert source.propose(9) == ([], 0)
    for token in (7, 8):
        source.add(token)
    assert source.propose(9) == ([9, 10], 0)
    assert Prediction([]).propose(4)[0] == []


def test_a_grammar_proposes_the_text_that_must_come(cpu_lm):
    constraint = cpu_lm.compiler.compile(Grammar.regex("(a|b)cde[0-9]"))
    source = Forced(constraint)
    assert source.propose(9) == ([], 0)
    constraint.add(cpu_lm.tokenizer.encode("a")[0])
    assert source.propose(9)[0] == cpu_lm.tokenizer.encode("cde")
    assert source.propose(2)[0] == cpu_lm.tokenizer.encode("cd")
    assert source.propose(-1)[0] == []


@pytest.mark.parametrize("guess", ["auto", 4])
def test_predictions_and_grammars_change_no_reply(cpu_lm, guess):
    ids = np.arange(30, 60)[None]
    letters = Grammar.regex("[a-z]{40}")
    plain = cpu_lm.generate(ids, guess="off", max_new_tokens=40, grammar=letters)
    for prediction in (plain.text, plain.text[:15] + "?" + plain.text[16:], "other text, other text"):
        found = cpu_lm.generate(ids, guess=guess, max_new_tokens=40, grammar=letters, prediction=prediction)
        assert found.trace.ids == plain.trace.ids
        if prediction != "other text, other text" and guess != "auto":  # which guesses as far as it pays here
            assert found.trace.guesses["prediction"][1] >= 20
            assert found.trace.per_pass > 2
    grammar = Grammar.regex("(yes|no), because it is as it is and was as it was")
    free, held = (cpu_lm.generate(ids, guess=each, grammar=grammar, max_new_tokens=80) for each in ("off", guess))
    assert free.text == held.text
    assert held.trace.guesses["grammar"][1] > 20


def test_a_prediction_that_is_no_text_is_refused(cpu_lm):
    with pytest.raises(solm.SolmError, match="prediction must be a text, got 3"):
        cpu_lm.generate("Hello", prediction=3)


def test_phrases_of_recent_replies_are_recalled():
    memory = Memory(most=5)
    first = Recalled(memory, [1])
    for token in (2, 3, 4, 5):
        first.add(token)
    second = Recalled(memory, [9, 1, 2])
    assert second.propose(9) == ([3, 4, 5], 0)
    assert second.propose(1) == ([3], 0)
    second.add(3)
    second.add(4)
    assert Recalled(memory, [1, 2]).propose(2) == ([3, 4], 1)  # the same twice
    second.add(6)
    assert Recalled(memory, [2, 3]).propose(5) == ([4, 6], 1)
    assert Recalled(memory, [1, 2]).propose(9)[0][:2] == [3, 4]
    for token in (50, 51, 52, 53, 54):
        second.add(token)
    assert Recalled(memory, [1, 2]).propose(9) == ([], 0)  # forgotten
    assert Recalled(memory, []).propose(9) == ([], 0)


def test_a_reply_is_the_same_whatever_is_recalled(cpu_lm):
    ids = np.arange(30, 60)[None]
    expected = cpu_lm.generate(ids, guess="off", max_new_tokens=60, eos_token_id=-1)
    for _ in range(3):
        found = cpu_lm.generate(ids, guess=4, max_new_tokens=60, eos_token_id=-1)
        assert found.trace.ids == expected.trace.ids
    assert found.trace.guesses["recalled"][1] > 10
