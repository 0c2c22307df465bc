"""Packed and low-precision weights of the engine, and its output head."""

import shutil

import pytest
import torch

from helpers.engine import SPARSITY
from helpers.models import keep_of, tiny_model, tokens
from helpers.weights import GRID_SIZES, on_grid
from solm.backends.cpu.engine import Engine
from solm.backends.cpu.session import CpuSession
from solm.backends.cpu.weights import Matrix
from solm.backends.torch.backend import TorchBackend

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


@pytest.mark.parametrize("shape", [(64, 32), (128, 96), (192, 64), (960, 576)])
@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_rows_of_packed_weights_are_laid_out_as_the_engine_reads_them(shape, bits):
    out, low_bits = shape[0], bits - 4
    numbers = torch.randint(0, 1 << bits, shape, generator=torch.Generator().manual_seed(bits)).to(torch.uint8)
    step = torch.rand(out, shape[1] // 16)
    matrix = Matrix.packed(numbers, step, -step, bits=bits, group=16)
    data = matrix.data.long()
    assert torch.equal(matrix.grid, torch.stack([step.T, -step.T], 1).half())
    found = torch.empty(shape[1], out, dtype=torch.long)
    for output in range(out):
        # As structs.h says: two blocks of 64 outputs share bytes, or the two halves of a last one.
        block, place = output // 64, output % 64
        byte = (
            place % 16 // 4 * 16 + place // 16 * 4 + place % 4
        )  # dot_integer.h: output 16 k + 4 L + m at 16 L + 4 k + m
        if output < out // 128 * 128:
            upper = data[:, block // 2 * 64 + byte] >> block % 2 * 4
        else:
            upper = data[:, block * 32 + byte % 32] >> byte // 32 * 4
        found[:, output] = (upper & 15) << low_bits
        if low_bits:
            of_chunk = 8 // low_bits
            lower = data[:, out // 2 + block // of_chunk * 64 + byte] >> block % of_chunk * low_bits
            found[:, output] += lower & (1 << low_bits) - 1
    assert torch.equal(found.T, numbers.long())


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
def test_a_shortlist_is_exact_where_it_matters_and_unbiased_elsewhere(hidden):
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
    near = exact > exact.amax(-1, keepdim=True) - 6  # REACH less what a screened logit may be off
    assert torch.equal(exact[near], short[near])
    assert torch.equal(exact.argmax(-1), short.argmax(-1))
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
