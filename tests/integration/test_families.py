"""Every family on every axis: dense is exact, detaching restores, rows are independent, one pass equals steps."""

import pytest
import torch

import solm
from helpers.models import CONTEXT, STEPS, keep_of, tiny_model, tokens
from solm.backends.logits import log_probabilities
from solm.backends.torch.backend import TorchBackend
from solm.core.actions import ActionSpace
from solm.core.sparsity import ChannelThresholds, SparsityConfig
from solm.paper.config import SPARSITY as PAPER

SPARSITY = {
    "default": SparsityConfig(page_size=8, sinks=4, window=8, bits_group=32),
    "paper": PAPER.model_copy(update={"page_size": 8}),
    "nested": SparsityConfig(page_size=8, window=8, bits_site="weights"),
    "thresholds": SparsityConfig(
        page_size=8,
        window=8,
        thresholds=ChannelThresholds(limits=((tuple(0.02 * (100 - percent) for percent in range(101)),) * 2,) * 2),
    ),
}
AXES = {"attention": (0.3, 1.0, 16), "mlp": (1.0, 0.5, 16), "bits": (1.0, 1.0, 4), "joint": (0.3, 0.5, 5)}


def mixed_keep(rows: int, seed: int = 0) -> torch.Tensor:
    space = ActionSpace.preset("joint-27")
    return space.table[torch.randint(27, (rows, STEPS), generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_action_equals_the_untouched_model_bit_for_bit(family, dtype):
    model, ids = tiny_model(family, dtype), tokens(2, CONTEXT + STEPS)
    with torch.no_grad():
        stock = model(ids[:, :CONTEXT], use_cache=True, logits_to_keep=1)
        steps = []
        for step in range(CONTEXT, CONTEXT + STEPS):
            output = model(ids[:, step : step + 1], cache=stock.cache, use_cache=True)
            steps.append(output.logits[:, -1])
    with solm.attach(model, sparsity=SPARSITY["default"]) as lm:
        session = lm.session(capacity=32)
        assert torch.equal(session.prefill(ids[:, :CONTEXT]), stock.logits[:, -1])
        dense = torch.tensor((1.0, 1.0, 16.0), dtype=torch.float64).expand(2, 3)
        for index, expected in enumerate(steps):
            assert torch.equal(session.step(ids[:, CONTEXT + index], dense).logits[:, 0], expected), index


def test_detach_restores_outputs_and_modules_bit_for_bit(family):
    model, ids = tiny_model(family, torch.float32), tokens(2, 40)
    before = model(ids).logits
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    implementation = model.config._attn_implementation
    with solm.attach(model, sparsity=SPARSITY["default"]) as lm:
        session = lm.session()
        session.prefill(ids)
        session.score(tokens(2, STEPS + 1), keep_of(AXES["joint"], 2, STEPS))
    assert torch.equal(model(ids).logits, before)
    assert model.config._attn_implementation == implementation
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("axis", AXES)
def test_every_axis_changes_the_output_and_one_pass_equals_steps(family, axis):
    control = TorchBackend(tiny_model(family))
    ids = tokens(2, CONTEXT + STEPS + 1)
    parent = control.session(SPARSITY["default"])
    parent.prefill(ids[:, :CONTEXT])
    following, keep = ids[:, CONTEXT:], keep_of(AXES[axis], 2, STEPS)
    scored = parent.fork(1).score(following, keep)
    dense = parent.fork(1).score(following, keep_of((1, 1, 16), 2, STEPS))
    assert (scored.log_probabilities - dense.log_probabilities).abs().max() > 1e-4
    stepwise = parent.fork(1)
    steps = [
        log_probabilities(stepwise.step(following[:, t], keep[:, t]).logits[:, 0], following[:, t + 1])
        for t in range(STEPS)
    ]
    torch.testing.assert_close(torch.stack(steps, 1), scored.log_probabilities, atol=1e-5, rtol=0)
    torch.testing.assert_close(stepwise.ledger.spent, scored.realised.sum(1))
    control.detach()


def test_padded_rows_and_rows_with_other_actions_equal_each_row_alone(family):
    control = TorchBackend(tiny_model(family))
    lengths = torch.tensor([37, 61, 50])
    ids, keep = tokens(3, 61 + STEPS + 1), mixed_keep(3)
    prompt = torch.zeros(3, 61, dtype=torch.long)
    following = torch.stack([ids[row, n : n + STEPS + 1] for row, n in enumerate(lengths.tolist())])
    for row, length in enumerate(lengths.tolist()):
        prompt[row, :length] = ids[row, :length]
    together = control.session(SPARSITY["default"])
    logits = together.prefill(prompt, lengths)
    scored = together.score(following, keep)
    for row, length in enumerate(lengths.tolist()):
        alone = control.session(SPARSITY["default"])
        torch.testing.assert_close(alone.prefill(ids[row : row + 1, :length])[0], logits[row], atol=1e-9, rtol=0)
        single = alone.score(following[row : row + 1], keep[row : row + 1])
        torch.testing.assert_close(single.log_probabilities[0], scored.log_probabilities[row], atol=1e-5, rtol=0)
        torch.testing.assert_close(single.realised[0], scored.realised[row])
    control.detach()
