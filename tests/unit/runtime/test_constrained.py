"""Replies under a grammar through the Python API, and rows beside them."""

import re

import numpy as np
import pytest

pytest.importorskip("llguidance")

import solm
from helpers.texts import FOX
from solm.backends.session import Session
from solm.runtime.batch import Row, decode
from solm.runtime.sampling import Sampler


def test_a_reply_matches_and_ends(tiny_lm):
    grammar = solm.Grammar.regex("[a-c]{5}")
    for options in (
        {},
        {"temperature": 1.3},
        {"temperature": 1.0, "top_p": 0.5, "top_k": 3},
        {"repetition_penalty": 1.5},
    ):
        reply = tiny_lm.generate("The fox", grammar=grammar, **options)
        assert re.fullmatch("[a-c]{5}", reply.text), options
        assert len(reply.tokens) == 5
    two = tiny_lm.generate(["The fox", "other"], grammar=solm.Grammar.choice(["yes", "no"]), budget="keep=0.8")
    assert all(reply.text in ("yes", "no") for reply in two)
    with pytest.raises(solm.SolmError, match="invalid regex"):
        tiny_lm.generate("The fox", grammar=solm.Grammar.regex("(a"))
    tiny_lm.tokenizer = None
    with pytest.raises(solm.SolmError, match="a grammar needs a tokenizer"):
        tiny_lm.with_policy(None).generate(np.ones((1, 4), np.int64), grammar=grammar)


def test_rows_beside_one_under_a_grammar_are_the_same_to_the_last_bit(cpu_lm, monkeypatch):
    """Of the compiled engine: tokens and logits; those that count, where others are approximate."""
    approximate, step = [], Session.step
    monkeypatch.setattr(
        Session, "step", lambda session, *known, **how: approximate.append(how) or step(session, *known, **how)
    )

    def told(constrained):
        grammar = cpu_lm.compiler.compile(solm.Grammar.regex("[ab]{40}"))
        rows, logits = [], []
        for number in range(6):
            ids = np.array([cpu_lm.tokenizer.encode(FOX)[number : number + 90]])
            options = {"temperature": 1.1} if number % 2 else {}
            constraint = grammar.copy() if constrained and number > 3 else None
            policy = cpu_lm.policy("policy" if number % 3 else "dense")
            sampler = Sampler.of(cpu_lm, ids, number, options, constraint)
            budget = cpu_lm.budget("keep=0.7" if number % 3 else None, 100, policy)
            rows.append(Row(ids[0], policy, budget.shares, 20, sampler))
        for row in decode(cpu_lm, rows, 6):
            number = rows.index(row)
            if number < 4:
                logits.append(np.sort(row.possible)[-50 if number % 2 else -1 :])
        return [row.ids for row in rows[:4]], logits, rows

    alone, logits, _ = told(False)
    assert approximate[-1]["exact_largest"].tolist() == [1, 50] * 3
    beside, same, rows = told(True)
    assert approximate[-1]["exact_largest"].tolist() == [1, 50, 1, 50, 0, 0]
    assert beside == alone
    assert all(map(np.array_equal, logits, same))
    assert all(re.fullmatch("[ab]{20}", cpu_lm.tokenizer.decode(row.ids)) for row in rows[4:])
