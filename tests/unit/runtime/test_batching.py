"""Continuous batching: a row decides and says what it would alone, whoever comes and goes beside it."""

import pytest
import torch

from helpers.policies import under_values
from solm.core.budget import Budget
from solm.core.errors import DataError
from solm.core.sparsity import SparsityConfig
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
    (3, 180, "random", "keep=0.7", 3, 20),
    (5, 75, "dense", None, 4, 30),
    (30, 100, "policy", "keep=0.8", 5, 25),
    (31, 120, "static", "keep=0.5", 6, 50),
]


def run_together(lm, requests, changed=None):
    """Every request's tokens and actions, decoded in one batch that they join and leave."""
    batch, rows, said = None, [], {}
    policies = {name: lm.policy(name) for name in ("policy", "static", "random", "dense")}
    step = 0
    while rows or any(joins >= step for joins, *_ in requests):
        for number, (joins, length, name, budget, seed, tokens) in enumerate(requests):
            if joins != step:
                continue
            ids = prompt(seed, length)
            sampler = Sampler.of(lm, ids, seed, {"temperature": 1.5})
            session = lm.session(capacity=length)
            first = sampler.choose(session.prefill(ids)[0])
            generator = sampler.schedule_generator if name == "random" else sampler.generator
            session.control(policies[name], lm.budget(budget).tensor(1), tokens, generator)
            if batch is None:
                batch = session
            else:
                batch.join(session)
            rows.append(number)
            said[number] = (sampler, [first], [])
        if rows:
            stepped = batch.step(torch.tensor([said[number][1][-1] for number in rows]))
            for row in reversed(range(len(rows))):
                sampler, ids, actions = said[rows[row]]
                ids.append(sampler.choose(stepped.logits[row, 0]))
                actions.append(int(stepped.actions[row, 0]))
                if len(ids) == requests[rows[row]][5]:
                    rows[row] = rows[-1]
                    rows.pop()
                    if rows:
                        batch.leave(row)
                    else:
                        batch = None
        step += 1
    assert batch is None
    return said


@pytest.mark.parametrize("kind", ["value_lm", "policy_lm", "cpu_lm"])
def test_a_row_generates_and_spends_what_it_would_alone(kind, request):
    lm = request.getfixturevalue(kind)
    said = run_together(lm, REQUESTS)
    for number, (_, length, name, budget, seed, tokens) in enumerate(REQUESTS):
        alone = lm.generate(
            prompt(seed, length), budget=budget, policy=name, seed=seed, max_new_tokens=tokens, temperature=1.5,
            min_new_tokens=0, eos_token_id=-1,
        )  # fmt: skip
        _, ids, actions = said[number]
        space = lm.policy(name).space
        assert ids == [token.id for token in alone.tokens], number
        assert [space.actions[action].tag for action in actions] == [token.action for token in alone.tokens[1:]]
    assert len({action for _, _, actions in said.values() for action in actions}) > 2


def test_a_changed_target_holds_from_then_on(value_lm):
    lm, policy = value_lm, value_lm.policy("static")
    ids = prompt(1, 120)
    session = lm.session(capacity=400)
    session.prefill(ids)
    session.control(policy, Budget.from_net(0.9, policy.space).tensor(1), 200)
    token = torch.tensor([5])
    first = torch.stack([session.step(token).realised[0] for _ in range(100)]).mean()
    session.aim(Budget.from_net(0.6, policy.space).tensor(1))
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


def test_every_logit_of_a_prefill(tiny_lm):
    ids = prompt(1, 50)
    session = tiny_lm.session()
    logits = session.prefill(ids, every_logit=True)
    assert logits.shape[:2] == (1, 50)
    torch.testing.assert_close(logits, tiny_lm.model(ids).logits)


def test_forks_do_not_join(tiny_lm):
    session, other = tiny_lm.session(), tiny_lm.session()
    session.prefill(prompt(1, 40))
    other.prefill(prompt(2, 40))
    with pytest.raises(DataError, match="share a prefix"):
        session.join(other.fork(2))
