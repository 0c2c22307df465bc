"""Nested weights: two halves of 4 bits, of which a step may read the high one alone, on both backends."""

import shutil

import pytest
import torch

import solm
from helpers.engine import engine_of
from helpers.models import keep_of, tiny_model, tokens
from helpers.weights import GRID_SIZES
from solm.backends.cpu.session import CpuSession
from solm.backends.torch.backend import TorchBackend
from solm.backends.torch.linears import high_half
from solm.core.actions import ActionSpace
from solm.core.errors import SolmError, UnsupportedModelError
from solm.core.sparsity import SparsityConfig
from solm.policies.schedules import Static

DENSE = SparsityConfig(window=16)
WEIGHTS = SparsityConfig(window=16, bits_site="weights")
SIZES = {**GRID_SIZES, "intermediate_size": 352}
compiled = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_a_step_of_four_bits_computes_with_the_high_halves(family):
    """gpt2 stores its weights transposed, phi3 has gate and up in one."""
    model = tiny_model(family, torch.float64)
    expected = tiny_model(family, torch.float64)
    for name, parameter in expected.named_parameters():
        if "mlp" in name and parameter.dim() == 2:
            turned = parameter.data.T if family == "gpt2" else parameter.data
            parameter.data = (high_half(turned).T if family == "gpt2" else high_half(turned)).contiguous()
    ids, following = tokens(2, 40), tokens(2, 9, seed=5)
    control, other = TorchBackend(model), TorchBackend(expected)
    found, wanted = (each.session(WEIGHTS) for each in (control, other))
    found.prefill(ids), wanted.prefill(ids)
    # Same keys and values: prefills are dense, and the other model's are not this one's.
    for ours, theirs in zip(found._cache.layers, wanted._cache.layers, strict=True):
        theirs.keys, theirs.values = ours.keys.clone(), ours.values.clone()
    four, dense = keep_of((1.0, 1.0, 4), 2, 9), keep_of((1.0, 1.0, 16), 2, 9)
    mixed = torch.where(torch.tensor([True, False])[:, None, None], four, dense)
    runs = {
        name: found.fork(1).extend(following, keep) for name, keep in (("4", four), ("16", dense), ("mixed", mixed))
    }
    torch.testing.assert_close(runs["4"].logits, wanted.fork(1).extend(following, dense).logits, rtol=0, atol=1e-9)
    assert (runs["4"].logits - runs["16"].logits).abs().max() > 1e-3
    for row, name in enumerate(("4", "16")):
        torch.testing.assert_close(runs["mixed"].logits[row], runs[name].logits[row], rtol=0, atol=1e-12)
    assert runs["mixed"].realised[:, 0, 2].tolist() == [0.25, 1.0]
    control.detach(), other.detach()
    before = tiny_model(family, torch.float64).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_family_computes_with_them(family):
    control = TorchBackend(tiny_model(family, torch.float64))
    session = control.session(SparsityConfig(page_size=8, window=8, bits_site="weights"))
    session.prefill(tokens(2, 40))
    following, four = tokens(2, 6, seed=5), keep_of((1.0, 1.0, 4), 2, 6)
    found = session.fork(1).extend(following, four).logits
    steps = session.fork(1)
    alone = torch.stack([steps.step(following[:, step], four[:, step]).logits[:, 0] for step in range(6)], 1)
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-9)
    assert (found - session.fork(1).extend(following).logits).abs().max() > 1e-3
    control.detach()


@compiled
@pytest.mark.parametrize("bits", [4, 16])
def test_the_engine_reads_what_an_action_says(bits):
    """Against the torch backend's simulation: not much further off than int8 activations put an engine whose packed
    weights are exact."""
    ids, following = tokens(2, 100), tokens(2, 30, seed=5)
    model, exact = (tiny_model("llama", torch.float32, **SIZES) for _ in range(2))

    def hidden(session, bits=16):
        session.prefill(ids)
        return session.extend(following, keep_of((1.0, 1.0, bits), 2, 30)).hidden

    simulated = TorchBackend(model)
    engine = engine_of(model, WEIGHTS, "nested")
    found, other = (hidden(CpuSession(engine, WEIGHTS), some) for some in (bits, 20 - bits))
    expected = hidden(simulated.session(WEIGHTS), bits)
    packed, floats = (hidden(CpuSession(engine_of(exact, DENSE, name), DENSE)) for name in ("packed", "float32"))
    off, usual = (found - expected).abs().mean(), (packed - floats).abs().mean()
    assert off < 2 * usual, (off, usual)
    assert (found - other).abs().mean() > 2 * off
    simulated.detach()


@compiled
@pytest.mark.parametrize("rows", [2, 19])
def test_rows_of_different_bits_go_together(rows):
    """Few rows to the last bit; many are another product, and next to a threshold they may select other channels."""
    control = TorchBackend(tiny_model("llama", torch.float32, **SIZES))
    engine = engine_of(control.model, WEIGHTS, "nested", kv_cache_dtype="int8")
    actions = [(1.0, 1.0, 4), (1.0, 1.0, 16), (0.3, 0.5, 4), (0.3, 0.5, 16), (1.0, 0.4, 6)]
    keep = torch.tensor([actions[row % 5] for row in range(rows)], dtype=torch.float64)
    sessions = []
    for row in range(rows):
        sessions.append(CpuSession(engine, WEIGHTS))
        sessions[-1].prefill(tokens(1, 40 + 13 * row, seed=row))
    together = sessions[0].fork(1)
    for session in sessions[1:]:
        together.join(session.fork(1))
    for step in range(3):
        ids = tokens(rows, 1, seed=step)[:, 0]
        found = together.step(ids, keep).logits
        alone = torch.cat(
            [one.step(ids[row : row + 1], keep[row : row + 1]).logits for row, one in enumerate(sessions)]
        )
        if rows == 2:
            assert torch.equal(found, alone)
        away = (found - alone).flatten(1).norm(dim=1) / alone.flatten(1).norm(dim=1)
        assert (away < 0.1).float().mean() > 0.8, away
    assert together.ledger.spent[:, 2].tolist() == [3 * (0.25 if row % 5 in (0, 2) else 1.0) for row in range(rows)]
    control.detach()


@compiled
def test_models_that_cannot_be_nested_are_refused(tiny_folder):
    llama = tiny_model("llama", torch.float32)
    with pytest.raises(SolmError, match="bits of weights need precision nested or a file's own 4 to 8 bits, not int8"):
        engine_of(llama, WEIGHTS, "int8")
    with pytest.raises(UnsupportedModelError, match="in groups of 32"):
        engine_of(llama, WEIGHTS.model_copy(update={"bits_group": 16}), "nested")
    lm = solm.load(str(tiny_folder), sparsity=SparsityConfig.preset("nested"), dtype="float32", backend="cpu")
    assert "nested" in lm.backend.name  # what its sparsity needs, where nothing is asked for
    reply = lm.generate(
        "A long enough prompt. " * 6, budget="keep=0.6", policy=Static(ActionSpace.preset("nested")), max_new_tokens=8
    )
    assert {token.action[-3:] for token in reply.tokens[1:]} == {"-q4", "q16"}
