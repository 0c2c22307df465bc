"""Packed and low-precision weights of the engine, and its output head."""

import shutil

import pytest
import torch

from helpers.engine import SPARSITY
from helpers.models import keep_of, tiny_model, tokens
from helpers.weights import GRID_SIZES, on_grid, rounded
from solm.backends.cpu.engine import Engine
from solm.backends.cpu.session import CpuSession
from solm.backends.cpu.weights import pack
from solm.backends.torch.backend import TorchBackend

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


@pytest.mark.parametrize("shape", [(64, 32), (128, 96), (192, 64), (960, 576)])
@pytest.mark.parametrize("steps", [15, 9])
def test_weights_on_a_grid_are_packed_exactly(shape, steps):
    weight = rounded(torch.randn(shape, generator=torch.Generator().manual_seed(1)), steps)
    weight[3, :32] = 0.5
    data, grid = pack(weight)
    assert data.shape == (shape[1], shape[0] // 2)
    # As integers.h says: halves of bytes are blocks of 64 outputs, or the two halves of a last one.
    stored = torch.empty(shape[1], shape[0], dtype=torch.int64)
    for byte in range(shape[0] // 2):
        first = byte // 64 * 128 + byte % 64 if byte < shape[0] // 128 * 64 else shape[0] - 64 + byte % 64
        second = first + (64 if byte < shape[0] // 128 * 64 else 32)
        stored[:, first], stored[:, second] = data[:, byte].long() & 15, data[:, byte].long() >> 4
    found = torch.empty(shape[1], shape[0])
    for output in range(shape[0]):
        quad, lane, place = output % 64 // 16, output % 16 // 4, output % 4
        found[:, output] = stored[:, output // 64 * 64 + 16 * lane + 4 * quad + place]
    step, low = (grid[:, place].float().repeat_interleave(32, 0) for place in (0, 1))
    torch.testing.assert_close((found * step + low).T, weight, atol=1e-6, rtol=1e-6)


def test_other_weights_are_not_packed():
    weight = torch.randn(128, 64, generator=torch.Generator().manual_seed(1))
    assert pack(weight) is None
    assert pack(rounded(weight)[:, :31]) is None
    assert pack(rounded(weight)[:100]) is None
    off = rounded(weight)
    off[5, 7] += 0.01
    assert pack(off) is None
    assert pack(rounded(weight).bfloat16()) is not None


def test_packed_weights_give_what_the_same_weights_in_float_give():
    """But for the cache in bfloat16: nearer than int8 is."""
    control = TorchBackend(on_grid(tiny_model("llama", torch.float32, intermediate_size=352, **GRID_SIZES)))
    ids, following, keep = tokens(2, 100), tokens(2, 30, seed=5), keep_of((1.0, 1.0, 16), 2, 30)
    found = {}
    for precision in ("float32", "int8", "int4"):
        engine = Engine(control.model, SPARSITY, precision)
        assert sum(matrix.grid is not None for matrix in engine._matrices_kept) == (9 if precision == "int4" else 0)
        session = CpuSession(control, engine, SPARSITY)
        session.prefill(ids)
        found[precision] = session.extend(following, keep).hidden
    off = {name: (found[name] - found["float32"]).abs().mean() for name in ("int8", "int4")}
    assert off["int4"] < off["int8"] * 0.9
    assert off["int4"] / found["float32"].abs().mean() < 0.03
    control.detach()


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.2), ("int8", 0.35)])
def test_low_precision_weights_stay_close(precision, tolerance):
    control = TorchBackend(tiny_model("llama", torch.float32))
    ids = tokens(2, 100)
    ours, native = control.session(SPARSITY), None
    native = CpuSession(control, Engine(control.model, SPARSITY, precision), SPARSITY)
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
    for approximate_tail in (False, True):
        session = CpuSession(control, Engine(control.model, SPARSITY, "int8"), SPARSITY)
        session.prefill(ids)
        steps = [session.step(token, approximate_tail=approximate_tail).logits for token in following.T]
        found.append(torch.cat(steps, 1))
    exact, short = found
    assert torch.equal(exact.argmax(-1), short.argmax(-1))
    assert torch.equal(exact.amax(-1), short.amax(-1))
    off = (exact - short)[exact < exact.amax(-1, keepdim=True) - 9]
    assert 0 < off.abs().mean() < 0.5
    torch.testing.assert_close(exact.logsumexp(-1), short.logsumexp(-1), atol=0.02, rtol=0)
    control.detach()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_head_of_integers_gives_what_its_weights_in_float_give(precision):
    """int4: of weights on a grid, whose head is packed too. Odd sizes: strips and halves that are not full."""
    control = TorchBackend(on_grid(tiny_model("llama", torch.float32, vocab_size=1003, **GRID_SIZES)))
    engine = Engine(control.model, SPARSITY, precision)
    head = engine._matrices_kept[-1]
    assert (head.grid is not None) == (precision == "int4")
    assert (head.low is not None) == (precision == "int8")
    session = CpuSession(control, engine, SPARSITY)
    session.prefill(tokens(3, 40))
    found = session.extend(tokens(3, 7, seed=5))
    weight = control.model.get_output_embeddings().weight
    expected = found.hidden @ weight.T
    assert (found.logits - expected).abs().max() / expected.std() < 0.05
    control.detach()
