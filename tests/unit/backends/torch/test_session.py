"""Sessions: shared prefixes, no leaks between passes, limits; and the real model."""

import pytest
import torch

import solm
from helpers.models import CONTEXT, STEPS, keep_of, tiny_model, tokens
from solm.backends.torch.backend import TorchBackend
from solm.backends.torch.families import probe
from solm.core.actions import ActionSpace
from solm.core.errors import ContextLengthError, DataError, UnsupportedModelError
from solm.core.sparsity import SparsityConfig

SPARSITY = SparsityConfig(page_size=8, window=8)


@pytest.fixture
def control():
    control = TorchBackend(tiny_model("llama"))
    yield control
    control.detach()


def test_forks_do_not_disturb_one_another_or_their_parent(control):
    ids = tokens(1, CONTEXT + 2 * STEPS + 1)
    session = control.session(SPARSITY)
    session.prefill(ids[:, :CONTEXT])
    keep = keep_of((0.3, 0.6, 5), 1, STEPS)
    following = ids[:, CONTEXT : CONTEXT + STEPS + 1]
    first = session.fork(1).score(following, keep)
    session.fork(4).score(tokens(4, STEPS + 1, seed=9), keep.expand(4, -1, -1))
    session.score(following, keep)
    again = control.session(SPARSITY)
    again.prefill(ids[:, :CONTEXT])
    torch.testing.assert_close(again.fork(1).score(following, keep).log_probabilities, first.log_probabilities)


def test_a_fork_of_a_fork_continues_each_row(control):
    ids = tokens(2, CONTEXT + 2 * STEPS + 1)
    keep = keep_of((0.3, 0.6, 5), 2, STEPS)
    middle = CONTEXT + STEPS
    session = control.session(SPARSITY)
    session.prefill(ids[:, :CONTEXT])
    child = session.fork(1)
    child.score(ids[:, CONTEXT : middle + 1], keep)
    grandchild = child.fork(2)
    twice = grandchild.score(ids[:, middle:].repeat_interleave(2, 0), keep.repeat_interleave(2, 0))
    once = child.score(ids[:, middle:], keep)
    torch.testing.assert_close(twice.log_probabilities[::2], once.log_probabilities)
    torch.testing.assert_close(twice.log_probabilities[1::2], once.log_probabilities)
    torch.testing.assert_close(grandchild.ledger.spent[::2], child.ledger.spent)


def test_a_row_that_decoded_densely_reads_the_same_pages_after_a_longer_one_joins(control):
    ids, sparse = tokens(1, 90), keep_of((0.4, 1, 16), 1, 1)[0]
    logits = []
    for joined in (False, True):
        session = control.session(SPARSITY)
        session.prefill(ids[:, :60])
        session.step(ids[:, 60], sparse)
        for place in range(61, 89):
            session.step(ids[:, place])
        if joined:
            other = control.session(SPARSITY)
            other.prefill(tokens(1, 120, seed=1))
            session.join(other)
        rows = session.rows
        logits.append(session.step(ids[:, 89].expand(rows), sparse.expand(rows, 3)).logits[:1])
    torch.testing.assert_close(*logits)


def test_attention_is_dense_and_not_counted_until_it_can_be_controlled(control):
    """And the other axes follow the schedule from the first step on."""
    ids = tokens(1, 60)
    prefilled = control.session(SparsityConfig(page_size=8, window=32))
    prefilled.prefill(ids[:, :20])
    pages, channels, bits = (
        prefilled.fork(1).score(ids[:, 20:], keep_of(keep, 1, 39)) for keep in ((0.1, 1, 16), (1, 0.5, 16), (1, 1, 4))
    )
    session = prefilled.fork(1)
    scored = session.score(ids[:, 20:], keep_of((0.1, 0.5, 4), 1, 39))
    assert scored.controllable[0].tolist() == [[position + 1 > 37, True, True] for position in range(20, 59)]
    assert session.ledger.steps.tolist() == [[22, 39, 39]]
    assert scored.realised[0, 0].tolist() == [1, 0.5, 0.25]
    with torch.no_grad():
        stock = torch.log_softmax(control.model(ids).logits, -1)[0, 20:59]
    expected = stock.gather(-1, ids[0, 21:60, None])[:, 0]
    off = [(some.log_probabilities[0].double() - expected).abs() for some in (pages, channels, bits)]
    assert off[0][:17].max() < 1e-5
    assert off[0][17:].max() > 1e-3
    assert min(off[1][:17].max(), off[2][:17].max()) > 1e-3


def test_limits_are_stated(control):
    session = control.session(SPARSITY)
    with pytest.raises(ContextLengthError, match="513 tokens are too many: this model's context holds 512"):
        session.prefill(tokens(1, 513))
    with pytest.raises(DataError, match="nothing to prefill"):
        session.prefill(torch.zeros(1, 0, dtype=torch.long))
    session.prefill(tokens(1, 512))
    with pytest.raises(ContextLengthError):
        session.step(torch.tensor([5]))
    forked = session.fork(2)
    with pytest.raises(DataError, match="prefill continues only rows"):
        forked.prefill(tokens(2, 3))


def test_attaching_twice_and_unsupported_families_are_refused(control):
    with pytest.raises(UnsupportedModelError, match="attached already"):
        TorchBackend(control.model)
    capability = probe(tiny_model("llama4_text", torch.float32))
    assert capability.axes == {"attention": True, "mlp": False, "bits": False}
    assert "experts" in capability.reasons["mlp"]
    bloom = tiny_model("bloom", torch.float32, n_head=4)
    assert not probe(bloom).axes["attention"]
    with pytest.raises(UnsupportedModelError, match="attention"):
        TorchBackend(bloom)


@pytest.mark.parametrize(
    ("family", "changes"),
    [("granitemoeshared", {"shared_intermediate_size": 64}), ("qwen2_moe", {"mlp_only_layers": [0]})],
)
def test_a_model_is_offered_no_savings_that_it_cannot_make(family, changes):
    """An MLP beside experts that hooks do not know, and layers without experts among others."""
    with solm.attach(tiny_model(family, torch.float32, **changes)) as lm:
        assert len(lm.space.attention) > 1
        assert (lm.space.mlp, lm.space.bits) == ((1.0,), (16,))
        with pytest.raises(UnsupportedModelError, match=f"the mlp axis is not supported on '{family}'"):
            lm.policy("static", ActionSpace.preset("joint-27"))
