"""The compiled engine against the torch backend: same logits, ledger and decisions.
What it refuses."""

import shutil

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType as TensorType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import solm as package
from helpers.engine import ACTIONS, SPARSITY, engine_of, pair
from helpers.engine_edges import Rows
from helpers.gguf_files import WIDE, write_gguf
from helpers.models import keep_of, tiny_model, tokens
from helpers.policies import BENDS, profile_of, with_hidden, with_projections
from helpers.weights import GRID_SIZES
from solm.backends.cpu.backend import CpuBackend
from solm.backends.cpu.engine import Engine
from solm.backends.cpu.files.repack import dequantise
from solm.backends.cpu.files.sources import GgufFile, LoadedModel
from solm.backends.cpu.files.spec import FAMILIES
from solm.backends.cpu.library import library
from solm.backends.cpu.session import CpuSession
from solm.backends.results import Scored, SplitSchedule
from solm.backends.torch.backend import TorchBackend
from solm.core.errors import ContextLengthError, DamagedFileError, DataError, SolmError, UnsupportedModelError
from solm.core.sparsity import SparsityConfig

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


SCALED = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0}
MODELS = {
    **{family: (family, {}) for family in FAMILIES},
    "smollm3": ("smollm3", {"no_rope_layers": [1, 1]}),
    "mistral with windows": ("mistral", {"sliding_window": 40}),
    "gemma3 of three kinds": (
        "gemma3_text",
        {
            "num_hidden_layers": 3, "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {"full_attention": SCALED}, "query_pre_attn_scalar": 24, "sliding_window": 33,
        },
    ),
    "phi3 with windows, partly rotated": (
        "phi3", {"sliding_window": 17, "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 10_000.0}},
    ),
    "phi3 with longrope": (
        "phi3",
        {
            "rope_parameters": {
                "rope_type": "longrope", "short_factor": [1.0 + n / 8 for n in range(8)], "long_factor": [4.0] * 8,
                "rope_theta": 10_000.0,
            },
            "original_max_position_embeddings": 256,
        },
    ),
}  # fmt: skip
"""Every family, and what else its layers can be."""


@pytest.fixture(params=MODELS)
def control(request):
    family, changes = MODELS[request.param]
    control = TorchBackend(tiny_model(family, torch.float32, **changes))
    yield control
    control.detach()


def test_every_model_is_the_one_that_transformers_has(control):
    """Its logits, the hidden states that policies read, and embeddings; in prompts, steps and what is between them."""
    model = control.model
    engine = engine_of(model)
    ids = tokens(3, 150, seed=8)
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True)
    rows = Rows(engine, 3, capacity=160)
    found = [rows.run(part) for part in ids.split([100, 1, 1, 7, 33, 8], 1)]
    scale = expected.logits.std()
    torch.testing.assert_close(torch.cat([one.logits for one in found], 1), expected.logits, atol=1e-3 * scale, rtol=0)
    stream = torch.cat([torch.from_numpy(one.stream) for one in found], 1)
    torch.testing.assert_close(stream, expected.hidden_states[-1], atol=1e-3, rtol=0)
    embedded = torch.from_numpy(engine.embed(ids.numpy()))
    torch.testing.assert_close(embedded, expected.hidden_states[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(embedded, control.embed(ids), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 80**0.5), (torch.bfloat16, 8.9375)])
def test_embeddings_are_multiplied_with_a_scale_of_their_type(dtype, scale):
    model = tiny_model("gemma3_text", dtype, hidden_size=80)
    backend = CpuBackend(LoadedModel(model), SPARSITY, "int8")
    assert backend.engine.sizes.embedding_scale == pytest.approx(scale, rel=1e-7)
    ids = tokens(1, 40)
    expected = model.get_input_embeddings()(ids).detach().float()
    torch.testing.assert_close(backend.embed(ids), expected, rtol=2**-8, atol=0)
    assert backend.capability.sliding == (0,)


@pytest.mark.parametrize("family", FAMILIES)
def test_files_of_every_family_run_at_their_own_bits(family, tmp_path):
    """No further off what their weights mean than int8, of which the weights are rounded: a prompt, dense steps, and
    steps under a budget."""
    types = {"v": TensorType.Q6_K, "out": TensorType.Q5_K, "down": TensorType.Q6_K, "up": TensorType.Q5_0}
    model = write_gguf(tmp_path / "a.gguf", family, lambda name: types.get(name, TensorType.Q4_K), **WIDE)
    source, parameters = GgufFile(tmp_path / "a.gguf"), dict(model.named_parameters())
    for layer in (None, 0, 1):
        for name, place in source.spec.places(layer).items():
            tensor, weight = source.tensor(name, layer), parameters[place.transformers].data
            if weight.dim() > 1:
                first = sum(source.spec.shape(other)[0] for other in place.fused[: (*place.fused, name).index(name)])
                weight[first : first + tensor.outputs] = torch.from_numpy(dequantise(library(), tensor))
    ids = tokens(2, 100)
    engines = Engine(source, SPARSITY), engine_of(model), engine_of(model, precision="int8")
    rows = [Rows(engine, 2) for engine in engines]
    for count, keep, most in ((80, None, 0.05), (10, (1.0, 1.0, 16), 0.05), (10, (0.5, 0.6, 16), 0.2)):
        part, ids = ids[:, :count], ids[:, count:]
        found, exact, rounded = (some.run(part, keep).stream for some in rows)
        off, usual = (np.linalg.norm(other - exact) / np.linalg.norm(exact) for other in (found, rounded))
        assert off < min(1.3 * usual, most), (count, keep, off, usual)
    assert engines[0].name.endswith("bits")
    assert set(engines[0].layout.forms()) >= {"4 bits", "6 bits"}


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_gives_the_torch_backends_logits(control, action):
    ours, native = pair(control)
    following = tokens(2, 40, seed=5)
    keep = keep_of(ACTIONS[action], 2, 40)
    expected, found = ours.extend(following, keep), native.extend(following, keep)
    # A few selections differ where values tie to the last bit; they move single tokens.
    close = (expected.logits - found.logits).abs().amax(-1) < 1e-3
    assert close.float().mean() > 0.97, (expected.logits - found.logits).abs().amax(-1)
    torch.testing.assert_close(expected.realised, found.realised)
    torch.testing.assert_close(ours.ledger.spent, native.ledger.spent)
    assert ours.lengths.tolist() == native.lengths.tolist() == [140, 140]


def test_hidden_power_gives_the_torch_backends_logits():
    control = TorchBackend(tiny_model("llama", torch.float32))
    ours, native = pair(control, SparsityConfig(window=16, hidden_power=2))
    following = tokens(2, 40, seed=5)
    keep = keep_of((0.3, 0.5, 16), 2, 40)
    expected, found = ours.extend(following, keep), native.extend(following, keep)
    close = (expected.logits - found.logits).abs().amax(-1) < 1e-3
    assert close.float().mean() > 0.97, (expected.logits - found.logits).abs().amax(-1)
    assert (found.realised[..., 1] < 0.4).all()  # (.5 + .25) / 2, not .5
    torch.testing.assert_close(expected.realised, found.realised)
    control.detach()


def test_hidden_channels_with_curves_of_their_own_give_the_torch_backends_logits():
    control = TorchBackend(tiny_model("llama", torch.float32, num_hidden_layers=4))
    allocation = with_hidden(profile_of(*BENDS), -0.9, -0.7, -0.8, -0.6)
    ours, native = pair(control, SparsityConfig(window=16, hidden_power=2, input_part=0.7, allocation=allocation))
    following = tokens(2, 40, seed=5)
    keep = keep_of((0.3, 0.5, 16), 2, 40)
    expected, found = ours.extend(following, keep), native.extend(following, keep)
    close = (expected.logits - found.logits).abs().amax(-1) < 1e-3
    assert close.float().mean() > 0.97, (expected.logits - found.logits).abs().amax(-1)
    assert (found.realised[..., 1] < 0.46).all(), "0.7 times the average of 0.5, and 0.3 times less"
    torch.testing.assert_close(expected.realised, found.realised)
    control.detach()


@pytest.mark.parametrize("count", [6, 3])
@pytest.mark.parametrize("dealt", [False, True])
def test_dropped_inputs_of_projections_give_the_torch_backends_logits(dealt, count):
    """In a stretch and in few steps: after a tie to the last bit, later steps read what another selection wrote."""
    control = TorchBackend(tiny_model("llama", torch.float32, num_hidden_layers=4))
    allocation = with_projections(with_hidden(profile_of(*BENDS), -0.9, -0.7, -0.8, -0.6), -0.5, 0.4, -0.3, -0.6)
    sparsity = SparsityConfig(window=16, hidden_power=2, input_part=0.7, projection_part=0.2)
    ours, native = pair(control, sparsity.under(allocation if dealt else None), rows=1)
    following, keep = tokens(1, count, seed=5), keep_of((0.3, 0.5, 16), 1, count)
    expected, found = ours.extend(following, keep), native.extend(following, keep)
    torch.testing.assert_close(expected.logits, found.logits, atol=1e-3, rtol=0)
    torch.testing.assert_close(expected.realised, found.realised)
    if not dealt:  # 0.8 of (0.7 of 0.5 and 0.3 of 0.25) and 0.2 of 0.5
        assert float(found.realised[0, 0, 1]) == pytest.approx(0.44, abs=0.01)
    control.detach()


@pytest.mark.parametrize("context", [1, 2, 15, 16, 17, 31, 32, 33, 64, 777])
def test_page_boundaries(context):
    """Also where every thread weighs tiles of its own."""
    control = TorchBackend(tiny_model("llama", torch.float32, max_position_embeddings=1024))
    ours, native = pair(control, context=context, rows=1)
    keep = keep_of((0.2, 1.0, 16), 1, 70)
    following = tokens(1, 70, seed=3)
    for start in range(0, 70, 7):
        some = slice(start, start + 7)
        expected, found = (s.extend(following[:, some], keep[:, some]).logits for s in (ours, native))
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    control.detach()


def test_steps_forks_and_truncation_equal_the_torch_backend():
    control = TorchBackend(tiny_model("llama", torch.float32))
    ours, native = pair(control, threads=1)
    keep = keep_of((0.3, 0.6, 16), 4, 1)[:, 0]
    sessions = [session.fork(2) for session in (ours, native)]
    for step in range(20):
        token = tokens(4, 1, seed=step)[:, 0]
        expected, found = (session.step(token, keep) for session in sessions)
        torch.testing.assert_close(found.logits, expected.logits, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.hidden, expected.hidden, atol=2e-3, rtol=0)
    for session in sessions:
        session.truncate(torch.tensor([118, 120, 119, 111]))
    with pytest.raises(DataError, match="cannot be cut"):
        sessions[1].truncate(torch.tensor([400, 1, 1, 1]))
    token = tokens(4, 1, seed=99)[:, 0]
    expected, found = (session.step(token, keep).logits for session in sessions)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    control.detach()


def test_forks_read_texts_of_different_lengths_as_they_would_alone():
    control = TorchBackend(tiny_model("llama", torch.float32))
    forks, more, lengths = pair(control, context=40), tokens(2, 30, seed=3), torch.tensor([30, 11])
    for session in forks:
        session.read_on(more, lengths)
        assert session.lengths.tolist() == [70, 51]
    theirs, ours = (session.step(torch.tensor([5, 6])).logits for session in forks)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    alone = control.session(SPARSITY)
    alone.prefill(torch.cat([tokens(2, 40)[1:], more[1:, :11]], 1))
    torch.testing.assert_close(alone.step(torch.tensor([6])).logits, theirs[1:], rtol=1e-4, atol=1e-4)
    control.detach()


def test_what_is_spent_step_by_step_and_in_stretches_is_the_same():
    control = TorchBackend(tiny_model("llama", torch.float32))
    _, parent = pair(control, context=14)  # the first steps cannot be controlled yet
    stepped, stretched = parent.fork(1), parent.fork(1)
    following, keep = tokens(2, 60, seed=4), keep_of((0.3, 0.6, 6), 2, 60)
    for step in range(39):
        last = stepped.step(following[:, step], keep[:, step])
    for first, end in ((0, 30), (30, 37), (37, 38), (38, 39)):
        known = stretched.extend(following[:, first:end], keep[:, first:end])
        if first == 30:
            stretched = stretched.fork(1)
    torch.testing.assert_close(last.hidden[:, -1], known.hidden[:, -1], atol=1e-3, rtol=0)
    assert stepped.ledger.steps.tolist() == stretched.ledger.steps.tolist()
    assert 0 < int(stepped.ledger.steps[0, 0]) < int(stepped.ledger.steps[0, 1]) == 39
    torch.testing.assert_close(stepped.ledger.spent, stretched.ledger.spent, rtol=0, atol=1e-12)
    forked, spent = stretched.fork(2), stretched.ledger.steps.tolist()
    stretched.step(following[:, 39], keep[:, 39])
    assert forked.ledger.steps.tolist() == [spent[0]] * 4
    control.detach()


@pytest.mark.parametrize("layer", [0, 1])
def test_a_split_schedule_equals_the_torch_backends(layer):
    control = TorchBackend(tiny_model("llama", torch.float32))
    sessions = pair(control)
    schedule = SplitSchedule(layer, keep_of((1.0, 0.8, 16), 2, 12), keep_of((0.3, 0.5, 6), 2, 12))
    expected, found = (session.extend(tokens(2, 12, seed=4), schedule) for session in sessions)
    torch.testing.assert_close(found.stream, expected.stream, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.logits, expected.logits, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.realised, expected.realised)
    control.detach()


@pytest.mark.parametrize(
    "precision", ["float32", "bfloat16", "int8", "packed", "nested", "packed beside a cache of bytes"]
)
@pytest.mark.parametrize(
    ("family", "rows"), [*(("llama", rows) for rows in (2, 3, 5, 16, 19)), ("gemma3_text", 5), ("phi3", 3)]
)
def test_a_rows_logits_do_not_depend_on_what_its_neighbours_do(precision, family, rows):
    """To the last bit: rows of other lengths and actions share the walk through the weights, known tokens too. A dense
    row among cheap ones gives what it gives among dense ones, and one of two rows what it gives alone."""
    windows = {"sliding_window": 40} if family == "phi3" else {}
    control = TorchBackend(tiny_model(family, torch.float32, intermediate_size=352, **GRID_SIZES, **windows))
    precision, _, bytes_ = precision.partition(" beside ")
    sparsity = SPARSITY.model_copy(update={"bits_site": "weights" if precision == "nested" else "input"})
    engine = engine_of(control.model, sparsity, precision, kv_cache_dtype="int8" if bytes_ else "auto")
    actions = [*ACTIONS.values(), (0.5, 0.6, 4)] * 4

    def opened(row):
        session = CpuSession(engine, sparsity)
        session.prefill(tokens(1, 20 + 13 * row, seed=row))
        return session

    alone, together = [opened(row) for row in range(rows)], opened(0)
    for row in range(1, rows):
        together.join(opened(row))
    for start, count in ((0, 1), (1, 3), (4, 1)):
        following = tokens(rows, 5, seed=9)[:, start : start + count]
        keep = torch.stack([keep_of(actions[row], 1, count)[0] for row in range(rows)])
        first = together.fork(1).extend(following, keep).logits
        for kept in (0, rows - 1):  # all others run dense, and then all of them
            others = keep_of(ACTIONS["dense"], rows, count).clone()
            others[kept] = keep[kept]
            assert torch.equal(together.fork(1).extend(following, others).logits[kept], first[kept]), (kept, start)
        dense = together.fork(1).extend(following, keep_of(ACTIONS["dense"], rows, count)).logits
        assert torch.equal(dense[0], first[0])  # its action is the dense one
        found = together.extend(following, keep).logits
        assert torch.equal(found, first)
        for row, session in enumerate(alone[:2] if rows == 2 and start == 0 else []):
            assert torch.equal(found[row], session.step(following[row : row + 1, 0], keep[row : row + 1, 0]).logits[0])
    control.detach()


@pytest.mark.parametrize("split", [False, True])
def test_scores_in_stretches_are_those_of_one_pass(split):
    """Stretches, because the logits of all tokens would take much memory; or the logits of a few positions alone."""
    control = TorchBackend(tiny_model("llama", torch.float32, max_position_embeddings=512))
    _, parent = pair(control, rows=3)
    ids, draw = tokens(3, 221, seed=4), torch.Generator().manual_seed(0)
    keep = torch.tensor(list(ACTIONS.values()), dtype=torch.float64)[torch.randint(5, (3, 220), generator=draw)]
    schedule = SplitSchedule(1, keep, keep.flip(1)) if split else keep
    scored, whole, some = (parent.fork(1) for _ in range(3))
    found, result = scored.score(ids, schedule), whole.extend(ids[:, :-1], schedule)
    expected = Scored.of(result, ids[:, 1:])
    torch.testing.assert_close(found.log_probabilities, expected.log_probabilities, atol=1e-4, rtol=0)
    assert torch.equal(found.hidden, expected.hidden)
    assert torch.equal(found.realised, expected.realised)
    assert split == (found.stream is not None)
    assert torch.equal(scored.ledger.spent, whole.ledger.spent)
    places = torch.tensor([[219], [70], [120]])
    last = some.extend(ids[:, :-1], schedule, keep_logits=places)
    torch.testing.assert_close(last.logits, result.logits.gather(1, places[..., None].expand(-1, -1, 259)))
    assert torch.equal(last.hidden, result.hidden.gather(1, places[..., None].expand(-1, -1, last.hidden.shape[-1])))
    with pytest.raises(ContextLengthError):
        scored.score(tokens(3, 300))
    assert scored.lengths.tolist() == [320] * 3
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
    control = TorchBackend(tiny_model("llama", torch.float32))
    session = CpuSession(engine_of(control.model, SPARSITY, "int8"), SPARSITY)
    session.prefill(tokens(2, 70))
    yield session
    control.detach()


@pytest.mark.parametrize("bad", [-1, 259, 2**31, -(2**40)])
def test_no_token_outside_the_vocabulary_reaches_the_engine(bad):
    control = TorchBackend(tiny_model("llama", torch.float32))
    _, native = pair(control)
    with pytest.raises(DataError, match=r"token ids must be in \[0, 258\]"):
        native.step(torch.tensor([5, bad]))
    with pytest.raises(ContextLengthError):
        native.extend(torch.full((2, 500), 5))
    control.detach()


def test_unsupported_models_and_options_are_refused_with_a_reason():
    with pytest.raises(UnsupportedModelError, match="family 'gpt2'"):
        engine_of(tiny_model("gpt2"), SPARSITY)
    llama = tiny_model("llama", torch.float32)
    with pytest.raises(UnsupportedModelError, match="pages of 16"):
        engine_of(llama, SparsityConfig(page_size=8))
    waiting = tiny_model("llama", torch.float32)
    waiting.model.layers[1].to("meta")
    with pytest.raises(UnsupportedModelError, match="on meta; weights must be on the CPU"):
        engine_of(waiting, SPARSITY)
    whole_numbers = tiny_model("llama", torch.float32)
    down = whole_numbers.model.layers[1].mlp.down_proj
    down.weight = torch.nn.Parameter(down.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match="quantised already"):
        engine_of(whole_numbers, SPARSITY)
    with pytest.raises(SolmError, match="threads 4096 is out of range"):
        engine_of(llama, SPARSITY, threads=4096)
    with pytest.raises(SolmError, match="unknown precision"):
        engine_of(llama, SPARSITY, "int3")
    with pytest.raises(SolmError, match="unknown KV cache dtype 'fp8'"):
        engine_of(llama, SPARSITY, "int8", kv_cache_dtype="fp8")
    with pytest.raises(SolmError, match="goes with precision auto, int8, nested, not bfloat16"):
        engine_of(llama, SPARSITY, "bfloat16", kv_cache_dtype="int8")
    with pytest.raises(SolmError, match="a KV cache in int8 needs the cpu backend"):
        package.load("builtin:smollm2-135m", backend="torch", kv_cache_dtype="int8")
    with pytest.raises(SolmError, match="precision int8 needs the cpu backend"):
        package.load("builtin:smollm2-135m", backend="torch", precision="int8")
    # A mistake, and no reason for `auto` to go on without the engine.
    with pytest.raises(SolmError, match="goes with precision auto, int8, nested, not bfloat16"):
        package.load("builtin:smollm2-135m", precision="bfloat16", kv_cache_dtype="int8")


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(
    "name", ["model.norm", "model.layers.1.input_layernorm", "model.layers.1.mlp.up_proj", "lm_head"]
)
def test_weights_that_are_not_finite_are_damage_in_every_precision(name, precision):
    """Integer products would turn them into text that looks like any other."""
    model = tiny_model("llama", torch.float32)
    with torch.no_grad():
        model.get_submodule(name).weight.view(-1)[7] = float("nan")
    with pytest.raises(DamagedFileError, match="finite"):
        engine_of(model, SPARSITY, precision)


def test_bits_that_weights_do_not_have_are_refused_before_they_are_laid_out(monkeypatch):
    monkeypatch.setattr("solm.backends.cpu.engine.repack", lambda *_: pytest.fail("weights were laid out"))
    with pytest.raises(SolmError, match="bits of weights need precision nested or a file's own 4 to 8 bits, not int8"):
        engine_of(tiny_model("llama", torch.float32), SparsityConfig(bits_site="weights", bits_group=32), "int8")


def test_a_session_whose_first_prefill_fails_takes_any_rows():
    session = CpuSession(engine_of(tiny_model("llama", torch.float32)), SPARSITY)
    with pytest.raises(DataError, match="token ids must be"):
        session.prefill(np.full((2, 5), 259))
    assert session.rows == 0
    assert session.prefill(np.ones((1, 5), np.int64)).shape == (1, 259)
    with pytest.raises(DataError, match="at least two tokens"):
        session.score(torch.ones(1, 1, dtype=torch.int64))
