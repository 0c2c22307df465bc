"""Continuous batching: a row decides and says what it would alone, whoever comes and goes beside it."""

import numpy as np
import pytest
import torch

from helpers.policies import under_values
from solm.core.budget import Budget
from solm.core.errors import DataError
from solm.core.sparsity import SparsityConfig
from solm.runtime.batch import Batch, Row, decode
from solm.runtime.reply import TextStream
from solm.runtime.sampling import Sampler


@pytest.fixture
def value_lm(tiny_lm):
    return under_values(tiny_lm, SparsityConfig(window=32, page_size=8))


def prompt(seed: int, length: int) -> torch.Tensor:
    return torch.randint(3, 259, (1, length), generator=torch.Generator().manual_seed(seed))


REQUESTS = [
    # joins at, prompt length, policy, budget, seed, tokens
    (0, 100, "policy", "keep=0.6", 1, 40),
    (0, 30, "static", "keep=0.8", 2, 70),
    (3, 180, "static", "keep=0.7", 3, 20),
    (5, 75, "dense", None, 4, 30),
    (30, 100, "policy", "keep=0.8", 5, 25),
    (31, 120, "static", "keep=0.5", 6, 50),
]


def run_together(lm, requests):
    """Every request's row, decoded in one batch that they join and leave."""
    batch, rows = Batch(lm), []
    for step in range(1 + max(joins + tokens for joins, *_, tokens in requests)):
        for joins, length, name, budget, seed, tokens in requests:
            if joins == step:
                ids = prompt(seed, length).numpy()
                sampler = Sampler.of(lm, ids, seed, {"temperature": 1.5, "eos_token_id": -1})
                rows.append(Row(ids[0], lm.policy(name), lm.budget(budget).shares, tokens, sampler))
                batch.read(rows[-1])
        if batch.rows:
            list(batch.step())
    assert batch.session is None
    return rows


@pytest.mark.parametrize("kind", ["value_lm", "policy_lm", "cpu_lm"])
def test_a_row_generates_and_spends_what_it_would_alone(kind, request):
    lm = request.getfixturevalue(kind)
    rows = run_together(lm, REQUESTS)
    for row, (_, length, name, budget, seed, tokens) in zip(rows, REQUESTS, strict=True):
        alone = lm.generate(
            prompt(seed, length), budget=budget, policy=name, seed=seed, max_new_tokens=tokens, temperature=1.5,
            eos_token_id=-1,
        )  # fmt: skip
        assert row.reason == "length"
        assert row.ids == [token.id for token in alone.tokens]
        assert row.trace.actions == alone.trace.actions
        assert row.trace.realised == alone.trace.realised
    assert len({action for row in rows for action in row.trace.actions}) > 2


def test_a_row_that_is_dropped_or_fails_leaves_the_others_alone(value_lm):
    ids = [prompt(seed, 60).numpy() for seed in range(3)]

    policy, shares, batch = value_lm.policy("static"), value_lm.budget("keep=0.8").shares, Batch(value_lm)
    first, second, third = rows = [Row(each[0], policy, shares, 12, Sampler(0)) for each in ids]
    for row in rows:
        batch.read(row)
    list(batch.step())
    batch.leave(first)
    second.sampler = None
    assert set(batch.step()) == {second, third}
    assert (first.reason, second.reason) == ("cancelled", "error")
    assert isinstance(second.error, AttributeError)
    while batch.rows:
        list(batch.step())
    alone = value_lm.generate(ids[2], budget="keep=0.8", policy="static", max_new_tokens=12, eos_token_id=-1)
    assert third.ids == alone.trace.ids
    assert (third.left, third.reason) == (0, "length")


def test_text_is_held_back_while_it_may_become_a_stop_string(tiny_lm):
    """Of text that the rows' samplers write letter by letter."""

    class Written:
        largest, seed, allowance = 1, 0, None

        def __init__(self, text):
            self.left = [*tiny_lm.tokenizer.encode(text)]

        def possible(self, logits):
            return logits

        def choose(self, logits, guess):
            return self.left.pop(0)

        def ended(self, token):
            return False

    def shown(text, *stops):
        row = Row(
            prompt(1, 40).numpy()[0], tiny_lm.policy("dense"), (1.0,) * 3, len(text), Written(text),
            text=TextStream(tiny_lm.tokenizer), stops=stops,
        )  # fmt: skip
        return [row.shown for _ in decode(tiny_lm, [row], 1)], row.reason

    assert shown("abcd", "xy") == (["a", "b", "c", "d"], "length")
    assert shown("abcd", "bcx") == (["a", "", "", "bcd"], "length")
    assert shown("abcdef", "cd") == (["a", "b", "", ""], "stop")
    assert shown("ababac", "abac") == (["", "", "", "ab", "", ""], "stop")


def test_a_changed_target_holds_from_then_on(value_lm):
    lm, policy = value_lm, value_lm.policy("static")
    ids = prompt(1, 120)
    session = lm.session(capacity=400)
    session.prefill(ids)
    session.control(policy, np.array([Budget.from_net(0.9, policy.space).shares]), 200)
    token = torch.tensor([5])
    first = torch.stack([session.step(token).realised[0] for _ in range(100)]).mean()
    session.aim(np.array([Budget.from_net(0.6, policy.space).shares]))
    then = torch.stack([session.step(token).realised[0] for _ in range(100)]).mean()
    assert float(first) == pytest.approx(0.9, abs=0.02)
    assert float(then) == pytest.approx(0.6, abs=0.02)


def test_page_bounds_follow_rows_of_unequal_length(tiny_lm):
    """What a joined session reads of its pages is what every row would read alone: dense steps in between included."""
    from solm.core.actions import ActionSpace

    lm = tiny_lm
    low, dense = ActionSpace(attention=(0.2, 1.0)).table
    lengths, sessions = [(150), (40), (95)], []
    alone = []
    for seed, length in enumerate(lengths):
        for group in (sessions, alone):
            session = lm.session(capacity=length)
            session.prefill(prompt(seed, length))
            group.append(session)
    together = sessions[0]
    for session in sessions[1:]:
        together.join(session)
    for step in range(90):
        keep = low if step % 40 > 20 or step < 3 else dense
        tokens = prompt(step, 3)[0, : len(alone)]
        got = together.step(tokens, keep.expand(len(alone), 3))
        for row, session in enumerate(alone):
            expected = session.step(tokens[row : row + 1], keep[None])
            torch.testing.assert_close(got.logits[row], expected.logits[0], atol=2e-4, rtol=2e-3)
        if step == 50:
            together.leave(0)
            alone[0] = alone.pop()
    torch.testing.assert_close(together.ledger.spent, torch.cat([session.ledger.spent for session in alone]))


def test_a_copy_continues_from_where_it_was_taken(tiny_lm):
    ids = prompt(1, 90)
    whole = tiny_lm.session()
    expected = whole.prefill(ids)
    part = whole.copy(64, capacity=100)
    torch.testing.assert_close(part.prefill(ids[:, 64:]), expected)
    again = whole.copy(90)
    torch.testing.assert_close(again.step(torch.tensor([7])).logits, whole.step(torch.tensor([7])).logits)
    with pytest.raises(DataError, match="cannot copy 91 tokens"):
        part.copy(91)
