"""The output head alone: every form, exact and approximate, from float weights and from GGUF tensors."""

import ctypes
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from helpers.head import FORMS, HeadEngine, random_head, rounded_states
from solm.backends.cpu.files.layout import HeadForm
from solm.backends.cpu.files.repack import head_at, repack_head
from solm.backends.cpu.files.sources import Tensor
from solm.backends.cpu.library import library
from solm.core.errors import DamagedFileError, DataError

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
VOCABULARY, HIDDEN = 1003, 96  # a last strip that is not full


def states(count: int, hidden: int = HIDDEN) -> torch.Tensor:
    return torch.randn(count, hidden, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: "{} bits, groups of {}, centre {}".format(*form))
def opened(request):
    head, weight = random_head(request.param, VOCABULARY, HIDDEN)
    engine = HeadEngine(head.struct, VOCABULARY, HIDDEN, states(48), library())
    return engine, head, weight


@pytest.mark.parametrize("largest", [1, 7, 64])
def test_the_largest_approximate_logits_are_exact(opened, largest):
    """To the last bit what they are in a call of as many rows whose logits are all exact, but for many rows of a head
    without grids. Approximate ones depend on how many rows are multiplied together in their last bits alone."""
    engine, head, _ = opened
    for rows in (1, 3, 16):
        exact, found = engine.logits(5, rows), engine.logits(5, rows, largest)
        top = exact.topk(largest).indices
        same = (
            torch.equal if head.group or rows < 8 else partial(torch.allclose, rtol=0, atol=2e-5 * float(exact.std()))
        )
        assert same(exact.gather(1, top), found.gather(1, top))
        assert torch.equal(exact.argmax(-1), found.argmax(-1))
        alone = torch.cat([engine.logits(5 + row, 1, largest) for row in range(rows)])
        if rows < 8:
            assert torch.equal(found, alone)
        else:
            torch.testing.assert_close(found, alone, rtol=0, atol=2e-5 * float(exact.std()))
    off = (exact - found).abs()
    if head.bits == 4:
        assert not off.any()
    elif largest == 1:
        assert off.mean() > 0
        torch.testing.assert_close(exact.logsumexp(-1), found.logsumexp(-1), atol=0.1, rtol=0)


@pytest.mark.parametrize("outputs", [1, 32, 95, 640, VOCABULARY])
def test_logits_of_the_first_tokens_alone_are_those_of_all(opened, outputs):
    engine, *_ = opened
    for rows in (1, 3):
        exact = engine.logits(5, rows)[:, :outputs]
        assert torch.equal(engine.logits(5, rows, outputs=outputs), exact)
        found = engine.logits(5, rows, min(7, outputs), outputs=outputs)
        top = exact.topk(min(7, outputs)).indices
        assert torch.equal(exact.gather(1, top), found.gather(1, top))
    for wrong in (-1, VOCABULARY + 1):
        with pytest.raises(DataError, match=rf"outputs must be in \[1, {VOCABULARY}\], got {wrong}"):
            engine.logits(5, outputs=wrong)


@pytest.mark.parametrize("rows", [1, 16])
def test_an_adaptive_head_pauses_where_most_of_it_is_read_whole(rows):
    """With logits that lie close together; with one that stands out it does not pause."""
    head, weight = random_head((8, 32, 128), VOCABULARY, HIDDEN)
    flat = torch.eye(48, HIDDEN)  # of one channel, whose lower bits decide
    clear = 3 * weight[:48].float()
    for given, pauses in ((flat, True), (clear, False)):
        engine = HeadEngine(head.struct, VOCABULARY, HIDDEN, given, library())
        exact = engine.logits(0, rows)
        found = [engine.logits(0, rows, 1, adaptive_head=True) for _ in range(34)]
        approximate = [not torch.equal(one, exact) for one in found]
        assert approximate == ([True] + 31 * [False] + [True, False] if pauses else 34 * [True])
        assert all(torch.equal(one.max(-1).values, exact.max(-1).values) for one in found)


TYPES = {
    GGMLQuantizationType.Q4_0: (4, 32, 8), GGMLQuantizationType.Q4_1: (4, 32, -1),
    GGMLQuantizationType.Q5_0: (5, 32, 16), GGMLQuantizationType.Q5_1: (5, 32, -1),
    GGMLQuantizationType.Q8_0: (8, 32, 128), GGMLQuantizationType.Q4_K: (4, 32, -1),
    GGMLQuantizationType.Q5_K: (5, 32, -1), GGMLQuantizationType.Q6_K: (6, 16, 32),
    GGMLQuantizationType.F32: (8, 0, 128), GGMLQuantizationType.F16: (8, 0, 128),
    GGMLQuantizationType.BF16: (8, 0, 128),
}  # fmt: skip
K_TYPES = (GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q5_K, GGMLQuantizationType.Q6_K)


def raw_rows(kind: GGMLQuantizationType, vocabulary: int, hidden: int) -> np.ndarray:
    """Rows of a tensor of this type [V, bytes of a row] uint8."""
    draw = np.random.default_rng(7)
    if kind not in K_TYPES:
        return quants.quantize(draw.standard_normal((vocabulary, hidden), np.float32), kind).view(np.uint8)
    values, size = GGML_QUANT_SIZES[kind]
    blocks = draw.integers(0, 256, (vocabulary, hidden // values, size), np.uint8)
    places = (208,) if kind is GGMLQuantizationType.Q6_K else (0, 2)
    for place in places:
        scales = draw.uniform(0.001, 0.002, blocks.shape[:2]).astype(np.float16)
        blocks[..., place : place + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(vocabulary, -1)


@pytest.mark.parametrize("precision", ["auto", "int4"])
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_a_gguf_tensor_becomes_a_head(kind, precision):
    """With any number of threads; K-quants' steps are rounded to float16, weights in floats to int8, or all to 4 bits
    that have more."""
    hidden, states_ = 512, states(3, 512)
    rows, own = raw_rows(kind, VOCABULARY, hidden), HeadForm(VOCABULARY, hidden, *TYPES[kind])
    tensor = Tensor("head", kind, (VOCABULARY, hidden), rows.reshape(-1))
    form = HeadForm.of(tensor, precision)
    assert form == (own if precision == "auto" or own.bits == 4 else HeadForm(VOCABULARY, hidden, 4, 32, 8))
    room = form.places()["end"]
    found = []
    for threads in (1, 2, 64):
        memory = torch.full((room // 64 + 1, 64), 85, dtype=torch.uint8)
        at = -(-memory.data_ptr() // 64) * 64
        repack_head(library(), tensor, form, at, threads)
        found.append(bytes((ctypes.c_char * room).from_address(at)))
        engine = HeadEngine(head_at(form, at), VOCABULARY, hidden, states_, library())
        logits = engine.logits(0, 3)
    assert found[0] == found[1] == found[2]
    weight = torch.from_numpy(quants.dequantize(rows, kind))
    if not form.group:
        scale = weight.abs().amax(1, keepdim=True) / 127
        weight = (weight / scale).round() * scale
    elif form != own:
        groups = weight.view(VOCABULARY, -1, 32)
        step = (groups.gather(2, groups.abs().argmax(2, keepdim=True)) / -8).half().float()
        weight = ((groups / step).nan_to_num().round().clamp(-8, 7) * step).view(VOCABULARY, -1)
    expected = rounded_states(states_) @ weight.double().T
    # Of floats, single weights half-way between two numbers may become either.
    within = 5e-3 if not form.group else 2e-3 if kind in K_TYPES else 2e-5
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=within * expected.std())


@pytest.mark.parametrize("kind", [GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0")])
def test_a_head_with_values_that_are_not_finite_is_refused(kind):
    rows, form = raw_rows(kind, 70, 512), HeadForm(70, 512, *TYPES[kind])
    memory = torch.empty(form.places()["end"] + 64, dtype=torch.uint8)
    at = -(-memory.data_ptr() // 64) * 64
    infinite = {GGMLQuantizationType.F32: b"\0\0\x80\x7f", GGMLQuantizationType.BF16: b"\x80\x7f"}.get(kind, b"\0\x7c")
    rows[66, : len(infinite)] = np.frombuffer(infinite, np.uint8)
    tensor = Tensor("head", kind, (70, 512), rows.reshape(-1))
    with pytest.raises(DamagedFileError, match="the file is damaged: head: row 66 has values that are not finite"):
        repack_head(library(), tensor, form, at, 2)
