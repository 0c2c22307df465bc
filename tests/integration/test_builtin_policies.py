"""The policies that ship with solm, on the real model and real text."""

from pathlib import Path

import pytest
import torch

import solm
from helpers.sessions import scored_under
from solm.evaluation.texts import token_stream
from solm.policies.artifact import TrainedPolicy, shipped

NAME = "builtin:smollm2-135m-cpu"


@pytest.mark.parametrize("name", shipped())
def test_each_is_small_and_brings_its_allocation_and_a_curve(name):
    trained = TrainedPolicy.from_pretrained(name)
    allocation, base = trained.config.sparsity.allocation, trained.config.base
    assert allocation.layers == base.layers
    for context in trained.curve.contexts:
        losses = [max(point.nats, 0.006) for point in trained.curve.points if point.context == context]
        assert losses == sorted(losses, reverse=True), "a higher budget loses less, but for the noise near none"
    folder = Path(solm.__file__).parent / "policies/builtin" / name.removeprefix("builtin:")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1e6


def test_auto_is_the_policy_that_ships_for_the_model(real_model):
    model, tokenizer = real_model
    shipped = TrainedPolicy.from_pretrained(NAME)
    with solm.attach(model, "auto", tokenizer) as lm:
        assert lm.trained.config == shipped.config
    with solm.load("builtin:smollm2-135m", "auto") as lm:
        assert lm.backend.name.endswith(", int8 KV cache"), "without a loss that could be measured"
        assert lm.trained.config == shipped.config


def test_it_keeps_its_budgets_under_its_allocation(real_model):
    model, tokenizer = real_model
    with solm.attach(model, TrainedPolicy.from_pretrained(NAME), tokenizer) as lm:
        windows = token_stream("pydoc:heldout", tokenizer).spaced(3, 1025 + 128, torch.Generator().manual_seed(0))
        session = lm.session(capacity=1024)
        session.prefill(windows[:, :1024])
        targets = torch.tensor([[0.15, 0.5, 1.0], [0.3, 0.6, 1.0], [0.6, 0.8, 1.0]], dtype=torch.float64)
        spent = scored_under(session, lm.policy(), windows[:, 1024:], targets).realised.mean(1)
    assert (spent - targets).abs().max() <= 0.015
