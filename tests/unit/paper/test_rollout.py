"""Rollouts: what those of one text share, and what is recorded."""

import torch

from helpers.training import tiny_config
from solm.data.windows import stream_of
from solm.paper.ranks import Ranks
from solm.paper.rollout import collect


def test_rollouts_of_a_text_share_tokens_and_budget_and_are_recorded(tiny_lm):
    config = tiny_config()
    tiny_lm.sparsity = config.sparsity
    stream = stream_of(["a quick brown fox " * 200], tiny_lm.tokenizer, "fox")
    from solm.policies.learned import LearnedPolicy
    from solm.policies.network import NetworkConfig, PolicyNetwork

    network = PolicyNetwork(NetworkConfig(base_hidden=64, actions=8, width=16, heads=2)).eval()
    batch = collect(tiny_lm, LearnedPolicy(network, config.space, clamp=False), [stream], config, 1, Ranks())
    target = batch.target.unflatten(0, (2, 4))
    assert torch.equal(target, target[:, :1].expand_as(target))
    embedding = batch.features.embedding.unflatten(0, (2, 4))
    assert torch.equal(embedding, embedding[:, :1].expand_as(embedding))
    assert len({tuple(row) for row in batch.episode.actions.tolist()}) > 2
    again = collect(tiny_lm, LearnedPolicy(network, config.space, clamp=False), [stream], config, 1, Ranks())
    assert torch.equal(again.episode.actions, batch.episode.actions)
