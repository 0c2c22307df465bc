"""The baselines that are measured: tuned static, oracle, rivals, and the estimated best of many random trials."""

import pytest
import torch

import solm
from helpers.models import CONTEXT, STEPS, tiny_model, tokens
from helpers.policies import SPACE, SPARSITY, network
from helpers.sessions import scored_under
from solm.core.actions import ActionSpace
from solm.data.windows import stream_of
from solm.evaluation.arms import Oracle, Tuned, lower_hull, tuned_nats
from solm.evaluation.perplexity import EvaluationSettings, evaluate
from solm.evaluation.show import verdict
from solm.policies.artifact import PolicyConfig, TrainedPolicy
from solm.policies.schedules import Static
from solm.policies.value_policy import ValuePolicy
from solm.runtime.level_costs import expected_costs, measured_costs


def test_the_hull_holds_the_points_that_no_mixture_beats():
    cost = torch.tensor([0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 0.6], dtype=torch.float64)
    nats = torch.tensor([1.0, 0.8, 0.3, 0.28, 0.1, 0.0, 0.9], dtype=torch.float64)
    assert lower_hull(cost, nats).tolist() == [0, 2, 4, 5]
    assert lower_hull(cost, torch.zeros(7)).tolist() == [0]


def test_tuned_static_spends_the_same_net_keep_where_it_costs_least():
    with solm.attach(tiny_model("llama"), sparsity=SPARSITY) as lm:
        # Bits are free, attention is dear: all savings should come from bits first.
        attention, mlp, bits = (torch.tensor(x).double() for x in ([2.0, 1.0, 0.0], [1.0, 0.2, 0.0], [0.0, 0.0, 0.0]))
        nats = (attention[:, None, None] + mlp[:, None] + bits).flatten()
        session = lm.session()
        ids = tokens(2, CONTEXT + STEPS + 1)
        session.prefill(ids[:, :CONTEXT])
        target = torch.tensor([[0.9, 0.9, 0.6]] * 2, dtype=torch.float64)
        episode = scored_under(session.fork(1), Tuned(SPACE, nats), ids[:, CONTEXT:], target)
        spent = episode.realised.mean(1)
        torch.testing.assert_close(spent.mean(1), target.mean(1), rtol=0, atol=0.03)
        assert (spent[:, 0] == 1).all()
        assert (spent[:, 2] < 0.4).all()


def test_the_oracle_beats_static_at_the_same_spending():
    with solm.attach(tiny_model("llama"), sparsity=SPARSITY) as lm:
        space = ActionSpace(mlp=(0.2, 1.0))
        ids = tokens(6, CONTEXT + STEPS + 1)
        session = lm.session()
        session.prefill(ids[:, :CONTEXT])
        costs = measured_costs(session, ids[:, CONTEXT:], space)
        assert [axis.shape[-1] for axis in costs] == [1, 2, 1]
        low = torch.tensor((1.0, 0.2, 16)).expand(6, STEPS, 3)
        direct = session.fork(1).score(ids[:, CONTEXT:], low).log_probabilities
        dense = session.fork(1).score(ids[:, CONTEXT:], torch.ones(6, STEPS, 3) * torch.tensor([1, 1, 16]))
        torch.testing.assert_close(costs.mlp[..., 0].float(), dense.log_probabilities - direct)
        assert tuned_nats(costs)[1] == 0
        target = torch.tensor([[1.0, 0.6, 1.0]] * 6, dtype=torch.float64)
        ours, static = (
            scored_under(session.fork(1), policy, ids[:, CONTEXT:], target)
            for policy in (Oracle(space, costs), Static(space))
        )
        torch.testing.assert_close(ours.realised.mean(1), static.realised.mean(1), rtol=0, atol=0.05)
        assert ours.log_probabilities.mean() > static.log_probabilities.mean()
        # Decided some steps at a time, as under thresholds and on the cpu backend, every step has its own costs.
        rows, oracle = session.fork(1), Oracle(space, costs)
        rows.control(oracle, target, STEPS)
        actions = [rows.extend(some).actions for some in ids[:, CONTEXT:-1].split(5, 1)]
        assert torch.equal(torch.cat(actions, 1), ours.actions)


def test_expected_costs_are_the_mean_of_measured_ones_over_what_the_dense_run_predicts():
    with solm.attach(tiny_model("llama"), sparsity=SPARSITY) as lm:
        space = ActionSpace(mlp=(0.2, 1.0))
        ids = tokens(2, CONTEXT + 2)
        session = lm.session()
        session.prefill(ids[:, :CONTEXT])
        expected = expected_costs(session, ids[:, CONTEXT:], space)[1]
        dense, low = (
            session.fork(1).extend(ids[:, CONTEXT:-1], torch.tensor((1.0, keep, 16)).expand(2, 1, 3)).logits.softmax(-1)
            for keep in (1.0, 0.2)
        )
        every = [
            measured_costs(session, torch.cat([ids[:, CONTEXT:-1], torch.full((2, 1), token)], 1), space)[1]
            for token in range(dense.shape[-1])
        ]
        mean = (torch.stack(every, -1) * dense[:, :, None].double()).sum(-1)
        torch.testing.assert_close(expected, mean, rtol=1e-3, atol=1e-6)
        assert (expected[..., 0] > 0).all()
        assert (low != dense).any()


def test_every_arm_is_matched_to_a_value_policy(byte_tokenizer):
    from solm.data.text import documents

    with solm.attach(tiny_model("llama", torch.float32), tokenizer=byte_tokenizer) as lm:
        made = network().float()
        config = PolicyConfig(base=lm.identity, space=SPACE, sparsity=SPARSITY, network=made.config)
        lm = lm.with_policy(TrainedPolicy(config, made))
        settings = EvaluationSettings(budgets=(0.6, 0.8), texts=6, context=60, length=24, trials=2, oracle=True)
        text = documents("pydoc:heldout")
        streams = [stream_of(text[i : i + 1], byte_tokenizer, str(i)) for i in range(2)]
        result = evaluate(
            lm, streams, settings, tuning=stream_of(text[3:5], byte_tokenizer, "tuning"),
            rivals={
                name: ValuePolicy(network(layer=0, seed=seed).float(), SPACE)
                for name, seed in {"token-table": 1, "token-table@again": 2}.items()
            },
        )  # fmt: skip
    assert all("of the oracle's gain over uniform" in line and "oracle," not in line for line in verdict(result))
    for budget in settings.budgets:
        arms = {point.arm: point for point in result.points if point.budget == budget}
        assert set(arms) == {
            "policy", "uniform", "token-table", "token-table@again", "tuned", "oracle", "random",
            "best-of-2", "best-of-500-estimated",
        }  # fmt: skip
        assert arms["policy"].realised == pytest.approx(budget, abs=0.03)
        for name, point in arms.items():
            # A random model may be no worse for spending less: then so does the tuned schedule.
            assert point.realised <= arms["policy"].realised + 0.03, name
            if name not in ("tuned", "policy"):
                for axis, share in arms["policy"].axes.items():
                    assert point.axes[axis] == pytest.approx(share, abs=0.04), (name, axis)
        assert arms["oracle"].nats < arms["random"].nats
        assert arms["best-of-500-estimated"].nats < arms["random"].nats
