"""The compiled engine against the torch backend: same logits, ledger and decisions.
What it refuses."""

import shutil

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType as TensorType

import solm as package
from helpers.engine import ACTIONS, SPARSITY, engine_of, pair
from helpers.engine_edges import Rows
from helpers.gguf_files import WIDE, write_gguf
from helpers.models import keep_of, tiny_model, tokens
from helpers.policies import BENDS, profile_of, with_hidden, with_projections
from solm.backends.cpu.engine import Engine
from solm.backends.cpu.files.repack import dequantise
from solm.backends.cpu.files.sources import ROTATED, GgufFile
from solm.backends.cpu.files.spec import FAMILIES
from solm.backends.cpu.library import library
from solm.backends.results import Scored, SplitSchedule
from solm.backends.torch.backend import TorchBackend
from solm.core.errors import ContextLengthError, DataError, SolmError, UnsupportedModelError
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
    "gpt_neox with an MLP after attention": ("gpt_neox", {"use_parallel_residual": False}),
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


@pytest.mark.parametrize("family", FAMILIES)
def test_files_of_every_family_run_at_their_own_bits(family, tmp_path):
    """No further off what their weights mean than int8, of which the weights are rounded: a prompt, dense steps, and
    steps under a budget."""
    types = {"v": TensorType.Q6_K, "out": TensorType.Q5_K, "down": TensorType.Q6_K, "up": TensorType.Q5_0}
    model = write_gguf(tmp_path / "a.gguf", family, lambda name: types.get(name, TensorType.Q4_K), **WIDE)
    source, parameters = GgufFile(tmp_path / "a.gguf"), dict(model.named_parameters())
    for layer in (None, 0, 1):
        for name, place in source.spec.places(layer).items():
            whole = parameters[place.transformers].data
            for expert, weight in enumerate(whole) if place.of_experts else [(None, whole)]:
                if len(source.spec.shape(name)) == 1:
                    continue
                tensor, before = source.tensor(name, layer, expert), place.fused[: (*place.fused, name).index(name)]
                first = sum(source.spec.shape(other)[0] for other in before)
                values = torch.from_numpy(dequantise(library(), tensor))
                if FAMILIES[family].neighbours and name in ROTATED:  # the file of helium is one of llama
                    values[tensor.row_order] = values.clone()
                if place.by_heads:
                    weight.view(4, 3, 64, -1)[:, len(before)] = values.view(4, 64, -1)
                elif place.transposed:
                    weight[:, len(before) :: max(len(place.fused), 1)] = values.T
                else:
                    weight[first : first + tensor.outputs] = values
    ids = tokens(2, 100)
    engines = Engine(source, SPARSITY), engine_of(model), engine_of(model, precision="int8")
    rows = [Rows(engine, 2) for engine in engines]
    for count, keep, most in ((80, None, 0.06), (10, (1.0, 1.0, 16), 0.06), (10, (0.5, 0.6, 16), 0.2)):
        part, ids = ids[:, :count], ids[:, count:]
        found, exact, rounded = (some.run(part, keep).stream for some in rows)
        # Of the median token: one that rounding sends to another expert is far off.
        far, size = (np.linalg.norm(one, axis=-1) for one in (np.stack([found, rounded]) - exact, exact))
        off, usual = np.median((far / size).reshape(2, -1), -1)
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


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe", "olmoe", "mixtral", "granitemoe", "gpt_oss"])
def test_a_share_of_the_experts_is_the_model_with_fewer_for_a_token(family):
    """On both backends, in prompts and steps; rows of one call visit as many as each keeps."""
    control, sparsity = TorchBackend(tiny_model(family, torch.float32)), SPARSITY.changed(mlp_site="experts")
    sessions, ids = pair(control, sparsity), tokens(2, 12, seed=5)
    used = control.shapes.experts_used
    keep = keep_of((1.0, 0.6, 16), 2, 12).clone()
    keep[1, :, 1] = 1.0
    for part in range(2):  # at once, and step by step
        forks = [session.fork(1) for session in sessions]
        steps = [[slice(0, 12)], [slice(q, q + 1) for q in range(12)]][part]
        expected, found = ([fork.extend(ids[:, some], keep[:, some]) for some in steps] for fork in forks)
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other.logits, one.logits, atol=1e-3, rtol=0)
            torch.testing.assert_close(other.realised, one.realised)
    visited = -(-3 * used // 5)
    assert found[0].realised[:, 0, 1].tolist() == [visited / used, 1.0]
    control.detach()
    fewer = tiny_model(family, torch.float32, num_experts_per_tok=visited)
    rows = Rows(engine_of(control.model, sparsity), 2, sparsity)
    with torch.no_grad():
        for keep, model in ((0.6, fewer), (1.0, control.model)):
            found = rows.fork().run(ids, (1.0, keep, 16)).logits
            torch.testing.assert_close(found, model(ids).logits, atol=1e-3, rtol=0)


def test_dense_models_have_no_share_of_experts():
    control, sparsity = TorchBackend(tiny_model("llama", torch.float32)), SPARSITY.changed(mlp_site="experts")
    for session in (lambda: control.session(sparsity), lambda: engine_of(control.model, sparsity)):
        with pytest.raises(UnsupportedModelError, match="a share of the experts needs a mixture of them"):
            session()
    control.detach()
    with pytest.raises(SolmError, match="hidden_power 2 needs mlp_site 'input\\+hidden', got 'experts'"):
        sparsity.changed(hidden_power=2)


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
    counts, known = torch.tensor([3, 1, 7, 2]), tokens(4, 7, seed=98)
    expected, found = (session.extend(known, counts=counts) for session in sessions)
    for row, count in enumerate(counts):
        torch.testing.assert_close(found.logits[row, :count], expected.logits[row, :count], atol=2e-3, rtol=0)
    assert sessions[0].lengths.tolist() == sessions[1].lengths.tolist() == [121, 121, 126, 113]
    assert sessions[0].ledger.steps.tolist() == sessions[1].ledger.steps.tolist()
    with pytest.raises(DataError, match=r"counts must be 4 numbers in \[1, 7\], got \[0, 1, 1, 8\]"):
        sessions[1].extend(known, counts=np.array([0, 1, 1, 8]))
    token = tokens(4, 1, seed=99)[:, 0]
    expected, found = (session.step(token, keep).logits for session in sessions)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
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
    with pytest.raises(SolmError, match="goes with precision auto, int8, int4, nested, not bfloat16"):
        engine_of(llama, SPARSITY, "bfloat16", kv_cache_dtype="int8")
    with pytest.raises(SolmError, match="kv_cache_dtype int8 needs the cpu backend"):
        package.load("builtin:smollm2-135m", backend="torch", kv_cache_dtype="int8")
    with pytest.raises(SolmError, match="precision int8 needs the cpu backend"):
        package.load("builtin:smollm2-135m", backend="torch", precision="int8")
    # A mistake, and no reason for `auto` to go on without the engine.
    with pytest.raises(SolmError, match="goes with precision auto, int8, int4, nested, not bfloat16"):
        package.load("builtin:smollm2-135m", precision="bfloat16", kv_cache_dtype="int8")
