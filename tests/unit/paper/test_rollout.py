"""Episodes: what those of one text share, what they record, and what scoring their schedule in one pass gives."""

import pytest
import torch

from helpers.training import tiny_config
from solm.core.sparsity import SparsityConfig
from solm.evaluation.texts import stream_of
from solm.paper.config import GRIDS, SPARSITY
from solm.paper.network import NetworkConfig, PolicyNetwork
from solm.paper.policy import PaperPolicy, PolicyConfig
from solm.paper.rollout import collect, compare, play, read_context, step_generator


def policy_of(lm, space="joint-8", clamp=False):
    space = GRIDS[space]
    sizes = NetworkConfig(base_hidden=64, actions=len(space), width=16, heads=2)
    config = PolicyConfig(base=lm.identity, space=space, sparsity=lm.sparsity, network=sizes)
    return PaperPolicy(config, PolicyNetwork(sizes).eval(), clamp)


def test_rollouts_of_a_text_share_tokens_and_budget_and_are_recorded(tiny_lm):
    config = tiny_config()
    tiny_lm.sparsity = config.sparsity
    stream = stream_of(["a quick brown fox " * 200], tiny_lm.tokenizer, "fox")
    policy = policy_of(tiny_lm)
    episode = collect(tiny_lm, policy, [stream], config, 1)
    for values in (episode.target, episode.features.embedding):
        per_text = values.unflatten(0, (2, 4))
        assert torch.equal(per_text, per_text[:, :1].expand_as(per_text))
    assert len({tuple(row) for row in episode.actions.tolist()}) > 2
    again = collect(tiny_lm, policy, [stream], config, 1)
    assert torch.equal(again.actions, episode.actions)


@pytest.mark.parametrize("sparsity", [SPARSITY, SparsityConfig()], ids=["paper", "default"])
def test_an_episode_is_what_scoring_its_schedule_in_one_pass_gives(tiny_lm, sparsity):
    tiny_lm.sparsity = sparsity
    ids = torch.randint(3, 259, (2, 117), generator=torch.Generator().manual_seed(1))
    session, hidden = read_context(tiny_lm, ids[:, :100])
    policy, target = policy_of(tiny_lm, "joint-27", clamp=True), torch.full((2, 3), 0.7, dtype=torch.float64)
    episode = play(tiny_lm, policy, session.fork(1), hidden, ids[:, 100:], target, step_generator(0, 0, 0))
    scored = session.fork(1).score(ids[:, 100:], policy.config.space.table[episode.actions])
    torch.testing.assert_close(scored.log_probabilities, episode.log_probabilities, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scored.realised, episode.realised)
    assert len(episode.actions.unique()) > 3
    seen = episode.features
    assert torch.equal(seen.previous[:, 1:], episode.actions[:, :-1])
    torch.testing.assert_close(seen.hidden[:, 1:], scored.hidden[:, :-1], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(episode.averages, episode.target, atol=0.05, rtol=0)


def test_policy_and_static_schedule_spend_the_same_in_an_evaluation(tiny_lm, tmp_path):
    tiny_lm.sparsity = SparsityConfig(window=16, page_size=8)
    path = tmp_path / "text.txt"
    path.write_text("a quick brown fox jumps over the lazy dog " * 60)
    points = compare(tiny_lm, policy_of(tiny_lm, clamp=True), str(path), [0.8, 0.6], 3, 100, 16, 0)
    for point, net in zip(points, (0.8, 0.6), strict=True):
        assert point["realised"] == pytest.approx(net, abs=0.03)
        assert point["difference"]["value"] == pytest.approx(point["policy"] - point["static"])
        assert point["difference"]["low"] <= point["difference"]["value"] <= point["difference"]["high"]
