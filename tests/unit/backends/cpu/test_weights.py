"""Packed and low-precision weights of the engine, and its output head."""

import shutil

import numpy as np
import pytest
import torch

from helpers.engine import SPARSITY, engine_of
from helpers.models import keep_of, tiny_model, tokens
from solm.backends.cpu.session import CpuSession
from solm.backends.torch.backend import TorchBackend
from solm.runtime.sampling import Plain

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.2), ("int8", 0.35)])
def test_low_precision_weights_stay_close(precision, tolerance):
    control = TorchBackend(tiny_model("llama", torch.float32))
    ids = tokens(2, 100)
    ours, native = control.session(SPARSITY), None
    native = CpuSession(engine_of(control.model, SPARSITY, precision), SPARSITY)
    for session in (ours, native):
        session.prefill(ids)
    following = tokens(2, 30, seed=5)
    expected, found = (s.fork(1).extend(following, keep_of((1.0, 1.0, 16), 2, 30)).logits for s in (ours, native))
    scale = expected.std()
    assert ((expected - found).abs().mean() / scale) < tolerance
    control.detach()


@pytest.mark.parametrize("hidden", [48, 64, 192])
def test_an_approximate_tail_is_exact_at_the_top_and_unbiased_elsewhere(hidden):
    sizes = {"hidden_size": hidden, "vocab_size": 2000}
    control = TorchBackend(tiny_model("llama", torch.float32, **sizes))
    control.model.get_output_embeddings().weight.data *= 20 / hidden**0.5  # logits spread like a real model's
    ids, following = tokens(5, 40), tokens(5, 12, seed=5)
    found = []
    for exact_largest in (0, 1, 4):
        session = CpuSession(engine_of(control.model, SPARSITY, "int8"), SPARSITY)
        session.prefill(ids)
        steps = [session.step(token, exact_largest=exact_largest).logits for token in following.T]
        found.append(torch.cat(steps, 1))
    exact, short, several = found
    assert torch.equal(exact.argmax(-1), short.argmax(-1))
    assert torch.equal(exact.amax(-1), short.amax(-1))
    assert not torch.equal(exact, several)
    top = Plain(temperature=0.9, top_k=4, top_p=0.95)
    for whole, some in zip(exact.flatten(0, 1), several.flatten(0, 1), strict=True):
        assert np.array_equal(top.scores(whole), top.scores(some)), "what is drawn from the largest is the same"
    off = (exact - short)[exact < exact.amax(-1, keepdim=True) - 9]
    assert 0 < off.abs().mean() < 0.5
    torch.testing.assert_close(exact.logsumexp(-1), short.logsumexp(-1), atol=0.04, rtol=0)
    control.detach()


@pytest.mark.parametrize(
    ("precision", "cache", "weight", "number", "bound"),
    [
        ("float32", "auto", 32, 32, 32),
        ("bfloat16", "auto", 16, 16, 16),
        ("int8", "auto", 8.5, 16, 16),  # with a scale of 4 bytes for the 64 inputs of an output
        ("int8", "int8", 8.5, 10, 16),  # with one for the 16 numbers of a head
    ],
)
def test_costs_know_in_how_many_bits_a_number_is_stored(precision, cache, weight, number, bound):
    shapes = engine_of(tiny_model("llama", torch.float32), precision=precision, kv_cache_dtype=cache).shapes
    assert (shapes.head_dim, shapes.hidden) == (16, 64)
    assert shapes.weight_bits == pytest.approx(weight, rel=0.02)
    assert shapes.head_bits == pytest.approx(weight, rel=0.12)  # whole strips of 32 outputs
    assert (shapes.cache_bits, shapes.bound_bits) == (number, bound)
