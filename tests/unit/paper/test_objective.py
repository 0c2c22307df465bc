"""The GRPO objective on numbers worked out by hand."""

import pytest
import torch

from helpers.training import tiny_config
from solm.paper.grpo import advantages, budget_penalty, clipped_objective, returns_to_go


def test_returns_to_go():
    rewards = torch.tensor([1.0, 2.0, 4.0])
    assert returns_to_go(rewards, 0.5).tolist() == [3.0, 4.0, 4.0]


def test_penalty_spares_gaps_within_tolerance_and_axes_without_a_choice():
    config = tiny_config(space="mlp-40")
    realised = torch.tensor([[[0.5, 0.51, 0.5], [0.5, 0.62, 0.5]]], dtype=torch.float64)
    penalty, gap = budget_penalty(realised, torch.full_like(realised, 0.5), config)
    assert penalty[0].tolist() == pytest.approx([0.0, 100 * 0.1**2])
    assert gap[0, 1].tolist() == pytest.approx([0, 0.12, 0])


@pytest.mark.parametrize("kind", ["process", "outcome"])
def test_advantages_are_centred_within_a_text_and_whitened(kind):
    config = tiny_config(advantage=kind)
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    rewards[1] += 100  # another text may be easier; that must not matter
    value = advantages(rewards, torch.zeros(2, 4), torch.ones(2, 4, 6, dtype=torch.bool), config)
    assert value.mean(1).abs().max() < 1e-6
    assert float(value.std()) == pytest.approx(1)


def test_objective_gradient_is_reinforce_on_the_first_epoch():
    config = tiny_config(entropy=0)
    logits = torch.randn(3, 5, 8, requires_grad=True)
    actions, advantage = torch.randint(8, (3, 5)), torch.randn(3, 5)
    on = torch.ones(3, 5, dtype=torch.bool)
    chosen = logits.log_softmax(-1).gather(-1, actions[..., None])[..., 0]
    loss = clipped_objective(logits, chosen.detach(), actions, advantage, on / on.sum(), config)[0]
    expected = torch.autograd.grad(-(chosen * advantage).mean(), logits)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], expected)


def test_the_ratio_is_clipped():
    config = tiny_config(entropy=0)
    logits = torch.zeros(1, 1, 2, requires_grad=True)
    old = torch.tensor([[-3.0]])
    on = torch.ones(1, 1, dtype=torch.bool)
    loss, _ = clipped_objective(logits, old, torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1), on.float(), config)
    assert float(loss.detach()) == pytest.approx(-1.2)
    assert torch.autograd.grad(loss, logits)[0].abs().max() == 0
