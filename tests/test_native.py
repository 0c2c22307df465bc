"""The compiled engine against the torch backend: same logits, ledger and selections, for every action."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import solm as package
from conftest import tiny_model
from solm.backends.cpu.engine import FAMILIES, Engine
from solm.backends.cpu.session import CpuSession
from solm.backends.cpu.weights import pack
from solm.backends.passes import Turn
from solm.backends.torch.hooks import ModelControl
from solm.backends.torch.session import Session
from solm.core.errors import ContextLengthError, DataError, SolmError, UnsupportedModelError
from solm.core.sparsity import SparsityConfig
from solm.data.windows import token_stream
from test_families import keep_of, tokens

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
SPARSITY = SparsityConfig(window=16)
ACTIONS = {
    "dense": (1.0, 1.0, 16), "attention": (0.3, 1.0, 16), "mlp": (1.0, 0.5, 16), "bits": (1.0, 1.0, 5),
    "joint": (0.25, 0.4, 6),
}  # fmt: skip


@pytest.fixture(params=FAMILIES)
def control(request):
    family = request.param
    changes = {"no_rope_layers": [1, 1]} if family == "smollm3" else {}
    control = ModelControl(tiny_model(family, torch.float32, **changes))
    yield control
    control.detach()


def pair(control, sparsity=SPARSITY, context=100, rows=2, **options):
    """A reference and a native session over the same prompts."""
    engine = Engine(control.model, sparsity, "float32", **options)
    ids = tokens(rows, context)
    sessions = Session(control, sparsity), CpuSession(control, sparsity, engine)
    for session in sessions:
        session.prefill(ids)
    forks = [session.fork(1) for session in sessions]
    assert isinstance(forks[1], CpuSession)
    return forks


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_gives_the_reference_backends_logits(control, action):
    ours, native = pair(control)
    following = tokens(2, 40, seed=5)
    keep = keep_of(ACTIONS[action], 2, 40)
    expected, found = ours.extend(following, keep), native.extend(following, keep)
    # A few selections differ where values tie to the last bit; they move single tokens.
    close = (expected.logits - found.logits).abs().amax(-1) < 1e-3
    assert close.float().mean() > 0.97, (expected.logits - found.logits).abs().amax(-1)
    torch.testing.assert_close(expected.realised, found.realised)
    torch.testing.assert_close(ours.ledger.spent, native.ledger.spent)
    for session in (ours, native):
        torch.testing.assert_close(session.realised, expected.realised[:, -1])
    assert ours.lengths.tolist() == native.lengths.tolist() == [140, 140]


def test_a_hidden_site_that_keeps_less_equals_the_references():
    control = ModelControl(tiny_model("llama", torch.float32))
    ours, native = pair(control, SparsityConfig(window=16, hidden_power=2))
    following = tokens(2, 40, seed=5)
    keep = keep_of((0.3, 0.5, 16), 2, 40)
    expected, found = ours.extend(following, keep), native.extend(following, keep)
    close = (expected.logits - found.logits).abs().amax(-1) < 1e-3
    assert close.float().mean() > 0.97, (expected.logits - found.logits).abs().amax(-1)
    assert (found.realised[..., 1] < 0.4).all()  # (.5 + .25) / 2, not .5
    torch.testing.assert_close(expected.realised, found.realised)
    control.detach()


@pytest.mark.parametrize("context", [1, 2, 15, 16, 17, 31, 32, 33, 64, 777])
def test_page_boundaries(context):
    """Also where every thread weighs tiles of its own."""
    control = ModelControl(tiny_model("llama", torch.float32, max_position_embeddings=1024))
    ours, native = pair(control, context=context, rows=1)
    keep = keep_of((0.2, 1.0, 16), 1, 70)
    following = tokens(1, 70, seed=3)
    for start in range(0, 70, 7):
        some = slice(start, start + 7)
        expected, found = (s.extend(following[:, some], keep[:, some]).logits for s in (ours, native))
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    control.detach()


def test_steps_forks_and_cuts_equal_the_references():
    control = ModelControl(tiny_model("llama", torch.float32))
    ours, native = pair(control, threads=1)
    keep = keep_of((0.3, 0.6, 16), 4, 1)[:, 0]
    sessions = [session.fork(2) for session in (ours, native)]
    for step in range(20):
        token = tokens(4, 1, seed=step)[:, 0]
        expected, found = (session.step(token, keep) for session in sessions)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(sessions[0].hidden, sessions[1].hidden, atol=2e-3, rtol=0)
    for session in sessions:
        session.truncate(torch.tensor([118, 120, 119, 111]))
    with pytest.raises(DataError, match="cannot be cut"):
        sessions[1].truncate(torch.tensor([400, 1, 1, 1]))
    token = tokens(4, 1, seed=99)[:, 0]
    expected, found = (session.step(token, keep) for session in sessions)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    control.detach()


def test_books_and_states_are_those_of_a_session_that_is_asked_after_every_step():
    control = ModelControl(tiny_model("llama", torch.float32))
    _, parent = pair(control, context=14)  # the first steps cannot be controlled yet
    asked, left = parent.fork(1), parent.fork(1)
    following, keep = tokens(2, 60, seed=4), keep_of((0.3, 0.6, 6), 2, 60)
    for first, last in [*((step, step + 1) for step in range(30)), (30, 37), (37, 38), (38, 39)]:
        for session in (asked, left):
            if last - first == 1:
                session.step(following[:, first], keep[:, first])
            else:
                session.extend(following[:, first:last], keep[:, first:last])
        told = asked.ledger.steps.tolist(), asked.hidden
        if first == 37:
            asked, left = asked.fork(1), left.fork(1)
    assert told[0] == left.ledger.steps.tolist()
    assert 0 < told[0][0] < 39
    torch.testing.assert_close(asked.ledger.spent, left.ledger.spent, rtol=0, atol=1e-12)
    forked = left.fork(2)
    assert torch.equal(told[1], left.hidden)
    assert torch.equal(told[1].repeat_interleave(2, 0), forked.hidden)
    left.step(following[:, 39], keep[:, 39])
    assert forked.ledger.steps.tolist() == [told[0][0]] * 4
    control.detach()


@pytest.mark.parametrize("layer", [0, 1])
def test_a_turn_in_mid_pass_equals_the_references(layer):
    control = ModelControl(tiny_model("llama", torch.float32))
    sessions = pair(control)
    first, second = keep_of((1.0, 0.8, 16), 2, 12), keep_of((0.3, 0.5, 6), 2, 12)
    seen = []

    def choose(hidden):
        seen.append(hidden)
        return second

    found = [session.extend(tokens(2, 12, seed=4), first, Turn(layer, choose)) for session in sessions]
    torch.testing.assert_close(seen[1], seen[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(found[1].logits, found[0].logits, atol=2e-3, rtol=0)
    torch.testing.assert_close(found[1].realised, found[0].realised)
    control.detach()


# Outputs in 64s and inputs in 32s, with a last 64 outside of the 128s.
GRID_SIZES = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2}


def on_grid(model, steps=15):
    """The model with every matrix but its embedding rounded to 4 bits, in groups of 32, as in a Q4_1 file."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = rounded(module.weight.data, steps)
    return model


def rounded(weight, steps=15):
    groups = weight.unflatten(1, (-1, 32))
    low = groups.amin(-1, keepdim=True).half().float()
    step = ((groups.amax(-1, keepdim=True) - low) / steps).half().float()
    return (low + step * ((groups - low) / step).round().clamp(0, steps)).flatten(1)


@pytest.mark.parametrize("shape", [(64, 32), (128, 96), (192, 64), (960, 576)])
@pytest.mark.parametrize("steps", [15, 9])
def test_weights_on_a_grid_are_packed_exactly(shape, steps):
    weight = rounded(torch.randn(shape, generator=torch.Generator().manual_seed(1)), steps)
    weight[3, :32] = 0.5
    data, grid = pack(weight)
    assert data.shape == (shape[1], shape[0] // 2)
    # As dot_integer.h says: halves of bytes are blocks of 64 outputs, or the two halves of a last one.
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
    control = ModelControl(on_grid(tiny_model("llama", torch.float32, intermediate_size=352, **GRID_SIZES)))
    ids, following, keep = tokens(2, 100), tokens(2, 30, seed=5), keep_of((1.0, 1.0, 16), 2, 30)
    found = {}
    for precision in ("float32", "int8", "int4"):
        engine = Engine(control.model, SPARSITY, precision)
        assert sum(matrix.grid is not None for matrix in engine._matrices_kept) == (9 if precision == "int4" else 0)
        session = CpuSession(control, SPARSITY, engine)
        session.prefill(ids)
        found[precision] = session.extend(following, keep).hidden
    off = {name: (found[name] - found["float32"]).abs().mean() for name in ("int8", "int4")}
    assert off["int4"] < off["int8"] * 0.9
    assert off["int4"] / found["float32"].abs().mean() < 0.03
    control.detach()


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.2), ("int8", 0.35)])
def test_low_precision_weights_stay_close(precision, tolerance):
    control = ModelControl(tiny_model("llama", torch.float32))
    ids = tokens(2, 100)
    ours, native = Session(control, SPARSITY), None
    native = CpuSession(control, SPARSITY, Engine(control.model, SPARSITY, precision))
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
    control = ModelControl(tiny_model("llama", torch.float32, **sizes))
    control.model.get_output_embeddings().weight.data *= 20 / hidden**0.5  # logits spread like a real model's
    ids, following = tokens(5, 40), tokens(5, 12, seed=5)
    found = []
    for approximate_tail in (False, True):
        session = CpuSession(control, SPARSITY, Engine(control.model, SPARSITY, "int8"))
        session.prefill(ids)
        session.approximate_tail = approximate_tail
        found.append(session.extend(following).logits)
    exact, short = found
    near = exact > exact.amax(-1, keepdim=True) - 6  # EXACT_RANGE less what an approximate logit may be off
    assert torch.equal(exact[near], short[near])
    assert torch.equal(exact.argmax(-1), short.argmax(-1))
    off = (exact - short)[exact < exact.amax(-1, keepdim=True) - 9]
    assert 0 < off.abs().mean() < 0.5
    torch.testing.assert_close(exact.logsumexp(-1), short.logsumexp(-1), atol=0.02, rtol=0)
    control.detach()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_head_of_integers_gives_what_its_weights_in_float_give(precision):
    """int4: of weights on a grid, whose head is packed too. Odd sizes: strips and halves that are not full."""
    control = ModelControl(on_grid(tiny_model("llama", torch.float32, vocab_size=1003, **GRID_SIZES)))
    engine = Engine(control.model, SPARSITY, precision)
    head = engine._matrices_kept[-1]
    assert (head.grid is not None) == (precision == "int4")
    assert (head.low is not None) == (precision == "int8")
    session = CpuSession(control, SPARSITY, engine)
    session.prefill(tokens(3, 40))
    found = session.extend(tokens(3, 7, seed=5))
    weight = control.model.get_output_embeddings().weight
    expected = found.hidden @ weight.T
    assert (found.logits - expected).abs().max() / expected.std() < 0.05
    control.detach()


@pytest.mark.parametrize("context", [1, 15, 16, 17, 33, 64, 777])
@pytest.mark.parametrize("group", [1, 3, 5])
def test_a_cache_of_bytes_stays_close_to_bfloat16(context, group):
    """At page boundaries, in forks, after cuts, where rows outgrow their room and where a thread reads more pages than
    it sums up in whole numbers, for 1, 3 and 5 queries a KV head."""
    heads = {"num_attention_heads": 2 * group, "num_key_value_heads": 2, "head_dim": 32}
    sizes = {"hidden_size": 64 * group, "max_position_embeddings": 1024, **heads}
    control = ModelControl(tiny_model("llama", torch.float32, **sizes))
    found = []
    for precision, dtype in (("float32", "auto"), ("int8", "auto"), ("int8", "int8")):
        session = CpuSession(control, SPARSITY, Engine(control.model, SPARSITY, precision, kv_cache_dtype=dtype))
        session.prefill(tokens(2, context))
        session = session.fork(2)
        hidden = [session.extend(tokens(4, 90, seed=3), keep_of((1.0, 1.0, 16), 4, 90)).hidden]
        session.truncate(torch.tensor([context + cut for cut in (90, 71, 64, 40)]))
        hidden.append(session.extend(tokens(4, 40, seed=4)).hidden)
        found.append(torch.cat(hidden, 1))
    pairs, bytes_ = ((found[0] - other).norm(dim=-1) / found[0].norm(dim=-1) for other in found[1:])
    assert bytes_.mean() < 1.2 * pairs.mean()
    assert bytes_.max() < 2 * pairs.max()
    control.detach()


def test_a_cache_of_bytes_chooses_the_same_pages():
    """But for near ties: what a step reads moves its output far more than bytes do."""
    control = ModelControl(tiny_model("llama", torch.float32))
    found = []
    for dtype, pages in (("auto", 0.2), ("int8", 0.2), ("auto", 0.3)):
        session = CpuSession(control, SPARSITY, Engine(control.model, SPARSITY, "int8", kv_cache_dtype=dtype))
        session.prefill(tokens(2, 300))
        found.append(session.extend(tokens(2, 40, seed=5), keep_of((pages, 1.0, 16), 2, 40)).hidden)
    same, other = ((found[0] - off).norm(dim=-1).median() for off in found[1:])
    assert same < 0.2 * other, (same, other)
    control.detach()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4", "nested", "int4 beside a cache of bytes"])
@pytest.mark.parametrize("rows", [2, 3, 5, 16, 19])
def test_a_rows_logits_do_not_depend_on_who_goes_with_it(precision, rows):
    """To the last bit: rows of other lengths and actions share the walk through the weights, known tokens too."""
    control = ModelControl(on_grid(tiny_model("llama", torch.float32, intermediate_size=352, **GRID_SIZES)))
    precision, _, bytes_ = precision.partition(" beside ")
    sparsity = SPARSITY.model_copy(update={"bits_site": "weights" if precision == "nested" else "input"})
    engine = Engine(control.model, sparsity, precision, kv_cache_dtype="int8" if bytes_ else "auto")
    actions = [*ACTIONS.values(), (0.5, 0.6, 4)] * 4

    def opened(row):
        session = CpuSession(control, sparsity, engine)
        session.prefill(tokens(1, 20 + 13 * row, seed=row))
        return session

    alone, together = [opened(row) for row in range(rows)], opened(0)
    for row in range(1, rows):
        together.join(opened(row))
    for start, count in ((0, 1), (1, 3), (4, 1)):
        following = tokens(rows, 5, seed=9)[:, start : start + count]
        keep = torch.stack([keep_of(actions[row], 1, count)[0] for row in range(rows)])
        found = together.extend(following, keep).logits
        for row, session in enumerate(alone):
            steps = [session.step(following[row : row + 1, q], keep[row : row + 1, q]) for q in range(count)]
            assert torch.equal(found[row], torch.cat(steps)), (row, start)
    together.leave(0)
    alone[0] = alone.pop()
    last = torch.cat([session.step(torch.tensor([5])) for session in alone])
    assert torch.equal(together.step(torch.full((rows - 1,), 5)), last)
    control.detach()


ODD = st.floats() | st.sampled_from([0.0, 1.0, 2.0, 16.0, 17.0, -1.0])


@given(
    rows=st.integers(0, 3), count=st.integers(0, 40), ids=st.lists(st.integers(-3, 262), min_size=4, max_size=4),
    keep=st.tuples(ODD, ODD, ODD), dtype=st.sampled_from([torch.int64, torch.int32, torch.float32]),
    shape=st.sampled_from(["right", "short", "flat"]),
)  # fmt: skip
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_it_is_given_the_engine_computes_or_refuses(opened, rows, count, ids, keep, dtype, shape):
    """Never a crash, and never a row that was changed by what was refused."""
    session = opened.fork(1)
    given_tokens = torch.tensor((ids * (rows * count))[: rows * count]).view(rows, count).to(dtype)
    plan = torch.tensor(keep, dtype=torch.float64).expand(rows, count, 3)
    plan = {"right": plan, "short": plan[:, 1:], "flat": plan.flatten(0, 1)}[shape]
    before = session.lengths.tolist()
    try:
        found = session.extend(given_tokens, plan)
    except (DataError, ContextLengthError):
        assert session.lengths.tolist() == before
    else:
        assert bool(found.logits.isfinite().all())
        assert session.lengths.tolist() == [length + count for length in before]


@pytest.fixture(scope="module")
def opened():
    control = ModelControl(tiny_model("llama", torch.float32))
    session = CpuSession(control, SPARSITY, Engine(control.model, SPARSITY, "int8"))
    session.prefill(tokens(2, 70))
    yield session
    control.detach()


@pytest.mark.parametrize("bad", [-1, 259, 2**31, -(2**40)])
def test_no_token_outside_the_vocabulary_reaches_the_engine(bad):
    control = ModelControl(tiny_model("llama", torch.float32))
    _, native = pair(control)
    with pytest.raises(DataError, match=r"token ids must be in \[0, 258\]"):
        native.step(torch.tensor([5, bad]))
    with pytest.raises(ContextLengthError):
        native.extend(torch.full((2, 500), 5))
    control.detach()


def test_rows_outgrow_what_was_reserved_and_keep_what_they_held():
    control = ModelControl(tiny_model("llama", torch.float32))
    ours, native = pair(control, context=20)
    following, keep = tokens(2, 200, seed=8), keep_of((0.3, 1.0, 16), 2, 200)
    for start in range(0, 200, 50):
        some = slice(start, start + 50)
        expected, found = (s.extend(following[:, some], keep[:, some]).logits for s in (ours, native))
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    control.detach()


@pytest.mark.parametrize("dtype", ["auto", "int8"])
@pytest.mark.parametrize("context", [15, 16, 40, 300, 530])
def test_rows_share_pages_and_go_on_as_if_they_did_not(context, dtype):
    """Forks, forks of forks, and whoever is cut back into what it shares, all after one another."""
    control = ModelControl(tiny_model("llama", torch.float32, max_position_embeddings=1024))
    engine = Engine(control.model, SPARSITY, "int8", kv_cache_dtype=dtype)
    ids = tokens(1, context)

    def going_on(session, cut, seed):
        rows = session.rows
        session.truncate(torch.full((rows,), context - cut))
        keep = keep_of((0.3, 1.0, 16), rows, 70)
        return session.extend(tokens(1, 70, seed=seed).expand(rows, -1), keep).logits

    def alone(cut, seed):
        session = CpuSession(control, SPARSITY, engine)
        session.prefill(ids)
        return going_on(session, cut, seed)

    parent = CpuSession(control, SPARSITY, engine)
    parent.prefill(ids)
    forks = parent.fork(2)
    grown, cut = forks.fork(2), forks.fork(1)
    for session, back, seed in ((parent, 9, 1), (forks, 0, 2), (cut, 12, 3), (grown, 0, 4)):
        found, expected = going_on(session, back, seed), alone(back, seed)
        assert torch.equal(found, expected.expand_as(found)), (back, seed)
    again, session = forks.fork(2), CpuSession(control, SPARSITY, engine)
    session.prefill(ids)
    going_on(session, 0, 2)
    found, expected = going_on(again, -70, 5), going_on(session, -70, 5)  # after what the forks went on with
    assert torch.equal(found, expected.expand_as(found))
    control.detach()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_shortlist_chooses_the_same_token_on_real_text(real_model, precision):
    """5,120 tokens: the largest logit is the exact head's, and so is all that is likely."""
    model, tokenizer = real_model
    control = ModelControl(model)
    ids = token_stream("pydoc:heldout", tokenizer).spaced(40, 193, torch.Generator().manual_seed(0))
    session = CpuSession(control, SparsityConfig(), Engine(model, SparsityConfig(), precision))
    session.prefill(ids[:, :64])
    found = []
    for approximate_tail in (False, True):
        fork = session.fork(1)
        fork.approximate_tail = approximate_tail
        found.append(fork.extend(ids[:, 64:192]).logits)
    exact, short = found
    control.detach()
    assert torch.equal(exact.argmax(-1), short.argmax(-1))
    likely = exact.softmax(-1) > 0.1
    assert torch.equal(exact[likely], short[likely])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "agreement"),
    [("float32", 1.0), ("bfloat16", 0.98), ("int8", 0.95), ("int4", 0.95), ("int4 beside a cache of bytes", 0.95)],
)
def test_real_text_gets_the_reference_backends_predictions(real_model, precision, agreement):
    model, tokenizer = real_model
    control = ModelControl(model)
    ids = token_stream("pydoc:heldout", tokenizer).spaced(6, 385, torch.Generator().manual_seed(0))
    precision, _, bytes_ = precision.partition(" beside ")
    engine = Engine(model, SparsityConfig(), precision, kv_cache_dtype="int8" if bytes_ else "auto")
    sessions = Session(control, SparsityConfig()), CpuSession(control, SparsityConfig(), engine)
    for session in sessions:
        session.prefill(ids[:, :256])
    keep = keep_of((0.4, 1.0, 16), 6, 128)
    expected, found = (session.fork(1).extend(ids[:, 256:384], keep).logits for session in sessions)
    control.detach()
    if precision == "float32":
        # Where two pages tie but for rounding, either may be read, and what follows in that row sees it.
        assert ((expected - found).abs().amax(-1) < 1e-3).float().mean() > 0.98
    assert (expected.argmax(-1) == found.argmax(-1)).float().mean() >= agreement


def test_generation_is_the_same_on_both_backends(tiny_folder):
    replies = [
        package.load(str(tiny_folder), dtype="float32", backend=backend, precision=precision).generate(
            "A long enough prompt to read from. " * 4, max_new_tokens=12
        )
        for backend, precision in (("torch", None), ("cpu", "float32"))
    ]
    assert [token.id for token in replies[0].tokens] == [token.id for token in replies[1].tokens]


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_bfloat16_model_generates_on_the_engine(tiny_folder, precision):
    """Whose prefill gives logits that the engine never does."""
    lm = package.load(str(tiny_folder), dtype="bfloat16", backend="cpu", precision=precision)
    said = [lm.generate("A long enough prompt. " * 4, max_new_tokens=6, **how).tokens for how in ({}, {"top_k": 5})]
    assert all(said)


def test_auto_says_why_it_goes_on_without(tiny_folder, caplog, monkeypatch):
    monkeypatch.setattr(
        "solm.runtime.language_model.Engine", lambda *_: (_ for _ in ()).throw(SolmError("no compiler"))
    )
    lm = package.load(str(tiny_folder), dtype="float32", backend="auto")
    assert lm.engine is None
    assert "no compiler; going on with the torch backend" in caplog.text
    with pytest.raises(SolmError, match="unknown backend 'fast'"):
        package.load(str(tiny_folder), backend="fast")


def test_what_it_cannot_run_is_said():
    with pytest.raises(UnsupportedModelError, match="family 'gpt2'"):
        Engine(tiny_model("gpt2"), SPARSITY)
    llama = tiny_model("llama", torch.float32)
    with pytest.raises(UnsupportedModelError, match="pages of 16"):
        Engine(llama, SparsityConfig(page_size=8))
    waiting = tiny_model("llama", torch.float32)
    waiting.model.layers[1].to("meta")
    with pytest.raises(UnsupportedModelError, match="with all weights in memory"):
        Engine(waiting, SPARSITY)
    whole_numbers = tiny_model("llama", torch.float32)
    down = whole_numbers.model.layers[1].mlp.down_proj
    down.weight = torch.nn.Parameter(down.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match="quantised already"):
        Engine(whole_numbers, SPARSITY)
    with pytest.raises(SolmError, match="threads 4096 is out of range"):
        Engine(llama, SPARSITY, threads=4096)
    with pytest.raises(SolmError, match="unknown precision"):
        Engine(llama, SPARSITY, "int3")
    with pytest.raises(SolmError, match="unknown KV cache dtype 'fp8'"):
        Engine(llama, SPARSITY, "int8", kv_cache_dtype="fp8")
    with pytest.raises(SolmError, match="goes with precision int8, int4, nested, not bfloat16"):
        Engine(llama, SPARSITY, "bfloat16", kv_cache_dtype="int8")
    with pytest.raises(SolmError, match="a KV cache in int8 needs the cpu backend"):
        package.load("builtin:smollm2-135m", kv_cache_dtype="int8")
    with pytest.raises(SolmError, match="precision int8 needs the cpu backend"):
        package.load("builtin:smollm2-135m", precision="int8")
    # A mistake, and no reason for `auto` to go on without the engine.
    with pytest.raises(SolmError, match="goes with precision int8, int4, nested, not bfloat16"):
        package.load("builtin:smollm2-135m", backend="auto", kv_cache_dtype="int8")


@pytest.mark.parametrize("flags", [["-march=native"], []], ids=["this processor", "any"])
def test_selection_takes_the_largest_and_of_equal_ones_the_first(tmp_path, flags):
    source = Path(package.__file__).parent / "backends/cpu/csrc"
    (tmp_path / "chosen.cpp").write_text(
        '#include "select.h"\nextern "C" int chosen(const float* x, int n, int count, int32_t* index, float* values)'
        " { return solm::select(x, n, count, index, values); }"
    )
    built = tmp_path / "chosen.so"
    command = [
        "g++",
        "-std=c++20",
        "-O2",
        "-shared",
        "-fPIC",
        *flags,
        f"-I{source}",
        tmp_path / "chosen.cpp",
        "-o",
        built,
    ]
    subprocess.run(command, check=True)
    chosen, spare = ctypes.CDLL(str(built)).chosen, 16
    rng = np.random.default_rng(0)
    for n in (1, 15, 16, 17, 33, 64, 100, 576, 1536):
        for x in (rng.standard_normal(n), rng.integers(-3, 4, n), np.zeros(n), rng.integers(0, 2, n) * 1e-40):
            x = x.astype(np.float32)
            for count in sorted({0, 1, n // 3, n // 2, n - 1, n}):
                index, values = np.full(n + spare, -1, np.int32), np.zeros(n + spare, np.float32)
                where = [ctypes.c_void_p(array.ctypes.data) for array in (x, index, values)]
                found = chosen(where[0], n, count, *where[1:])
                expected = np.sort(np.argsort(-np.abs(x), kind="stable")[:count])
                assert found == count
                assert index[:count].tolist() == expected.tolist(), (n, count)
                assert np.array_equal(values[:count], x[expected])
