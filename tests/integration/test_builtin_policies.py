"""The policy that ships with solm, on the real model and real text."""

from pathlib import Path

import pytest
import torch

import solm
from helpers.sessions import scored_under
from solm.core.actions import ActionSpace
from solm.core.cost import axis_levels
from solm.core.errors import SolmError
from solm.evaluation.texts import token_stream
from solm.policies.artifact import TrainedPolicy
from solm.policies.schedules import Static

NAME = "builtin:smollm2-135m"


def test_it_is_small_names_its_space_and_refuses_unknown_ones():
    trained = TrainedPolicy.from_pretrained(f"{NAME}-joint-27")
    assert trained.config.space == ActionSpace.preset("joint-27")
    folder = Path(solm.__file__).parent / "policies/builtin/smollm2-135m"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 8e6
    with pytest.raises(SolmError, match="unknown action space 'joint-9'"):
        TrainedPolicy.from_pretrained(f"{NAME}-joint-9")
    with pytest.raises(SolmError, match=r"no policy builtin:llama ships with solm; choose .*builtin:smollm2-135m"):
        TrainedPolicy.from_pretrained("builtin:llama")


def test_the_policy_for_a_larger_model_brings_its_curve_and_hidden_channels_of_their_own():
    trained = TrainedPolicy.from_pretrained("builtin:qwen2.5-coder-0.5b-instruct")
    allocation, base = trained.config.sparsity.allocation, trained.config.base
    assert (base.family, base.layers, allocation.layers) == ("qwen2", 24, 24)
    assert allocation.hidden is not None
    assert trained.config.space == ActionSpace.preset("sites-fine")
    assert trained.curve.contexts == [64, 1024, 8192]
    for context in trained.curve.contexts:
        losses = [max(point.nats, 0.006) for point in trained.curve.points if point.context == context]
        assert losses == sorted(losses, reverse=True), "a higher budget loses less, but for the noise near none"
    folder = Path(solm.__file__).parent / "policies/builtin/qwen2.5-coder-0.5b-instruct"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1e6


def test_auto_is_the_policy_that_ships_for_the_model(real_model):
    model, tokenizer = real_model
    shipped = TrainedPolicy.from_pretrained(f"{NAME}-cpu")
    with solm.attach(model, "auto", tokenizer) as lm:
        assert lm.trained.config == shipped.config
    with solm.load(NAME, "auto") as lm:
        assert lm.trained.config == shipped.config


@pytest.mark.parametrize(("steps", "tolerance"), [pytest.param(128, 0.01, marks=pytest.mark.slow), (16, 0.025)])
def test_it_holds_every_budget_and_beats_static_at_the_same_spending(real_model, steps, tolerance):
    model, tokenizer = real_model
    trained = TrainedPolicy.from_pretrained(f"{NAME}-joint-27")
    with solm.attach(model, trained, tokenizer) as lm:
        windows = token_stream("pydoc:heldout", tokenizer).spaced(4, 513 + steps, torch.Generator().manual_seed(0))
        session = lm.session(capacity=512)
        session.prefill(windows[:, :512])
        targets = torch.tensor([lm.budget(f"keep={net}").shares for net in (0.45, 0.6, 0.8)], dtype=torch.float64)
        rows = targets.repeat(len(windows), 1)
        tokens = windows[:, 512:].repeat_interleave(3, 0)
        ours = scored_under(session.fork(3, capacity=steps + 16), lm.policy(), tokens, rows)
        spent = ours.realised.mean(1)
        kv_length = session.lengths.repeat_interleave(3)[:, None] + 1
        floor = torch.cat([levels[..., 0] for levels in axis_levels(lm.space, kv_length, lm.sparsity, lm.shapes)], 1)
        reachable = rows >= floor + 0.01
        assert (spent - rows).abs()[reachable].max() <= tolerance
        if steps == 128:
            static = scored_under(session.fork(3, capacity=steps + 16), Static(lm.space), tokens, spent)
            assert ours.log_probabilities.mean() > static.log_probabilities.mean()


def test_the_policy_for_the_cpu_backend_keeps_its_budgets_under_its_allocation(real_model):
    model, tokenizer = real_model
    trained = TrainedPolicy.from_pretrained(f"{NAME}-cpu")
    allocation = trained.config.sparsity.allocation
    assert allocation is not None
    assert (allocation.layers, allocation.heads) == (30, 3)
    assert trained.config.space == ActionSpace.preset("cpu-fine")
    coarse = TrainedPolicy.from_pretrained(f"{NAME}-cpu-cpu").config
    assert (coarse.space, coarse.sparsity) == (ActionSpace.preset("cpu"), trained.config.sparsity)
    with solm.attach(model, trained, tokenizer) as lm:
        windows = token_stream("pydoc:heldout", tokenizer).spaced(3, 1025 + 128, torch.Generator().manual_seed(0))
        session = lm.session(capacity=1024)
        session.prefill(windows[:, :1024])
        targets = torch.tensor([[0.15, 0.5, 1.0], [0.3, 0.6, 1.0], [0.6, 0.8, 1.0]], dtype=torch.float64)
        spent = scored_under(session, lm.policy(), windows[:, 1024:], targets).realised.mean(1)
    assert (spent - targets).abs().max() <= 0.01
