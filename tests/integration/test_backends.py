"""Models loaded on either backend: the same text, and why one is not used."""

import shutil

import pytest
import torch
from gguf.constants import GGMLQuantizationType as TensorType

import solm as package
from helpers.gguf_files import WIDE, write_gguf
from helpers.models import tiny_model
from helpers.policies import under_values
from solm.backends.cpu.files.sources import GgufFile, SafetensorsFolder
from solm.core.errors import SolmError
from solm.paper.config import SPARSITY as PAPER
from solm.runtime.prepare import default_kv_cache, default_precision

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3", "granite"])
def test_generation_is_the_same_on_both_backends(family, tmp_path, byte_tokenizer):
    windows = {"sliding_window": 40} if family == "phi3" else {}
    tiny_model(family, torch.float32, **windows).save_pretrained(tmp_path / "tiny")
    byte_tokenizer.save_pretrained(tmp_path / "tiny")
    replies = [
        package.load(str(tmp_path / "tiny"), dtype="float32", backend=backend, precision=precision).generate(
            "A long enough prompt to read from. " * 4, max_new_tokens=12
        )
        for backend, precision in (("torch", None), ("cpu", "float32"))
    ]
    assert [token.id for token in replies[0].tokens] == [token.id for token in replies[1].tokens]


@pytest.fixture
def both(tiny_lm, byte_tokenizer):
    """A tiny llama with a value policy on either backend, float32."""
    trained = under_values(tiny_lm, package.SparsityConfig()).trained
    model = tiny_model("llama", torch.float32)
    with (
        package.attach(tiny_model("llama", torch.float32), trained, byte_tokenizer) as first,
        package.attach(model, trained, byte_tokenizer, backend="cpu", precision="float32") as second,
    ):
        assert second.backend.name == "cpu float32"
        yield first, second


@pytest.mark.parametrize("policy", ["static", "policy"])
def test_a_short_chat_meets_its_budget(both, policy):
    """Channels are saved from the first step after a prompt of 8 tokens."""
    how = {"budget": "mlp=0.7", "policy": policy, "max_new_tokens": 49, "min_new_tokens": 49}
    replies = [lm.generate(torch.arange(3, 11)[None], **how) for lm in both]
    for reply in replies:
        steps = reply.tokens[1:]
        assert sum(step.realised["mlp"] for step in steps) / 48 == pytest.approx(0.7, abs=0.01)
        assert reply.compute.realised["mlp"] == pytest.approx(0.7, abs=0.01)
        assert {step.action.split("-")[0] for step in steps} == {"k100"}
        assert reply.compute.whole_attention == 48
        assert reply.compute.bytes < 0.9
    assert [step.action for step in replies[0].tokens] == [step.action for step in replies[1].tokens]


@pytest.mark.parametrize("policy", ["static", "policy"])
def test_attention_waits_until_there_is_more_than_what_is_always_read(both, policy):
    """And its budget is an average over the steps from there on."""
    how = {"budget": "attention=0.75,mlp=0.7", "policy": policy, "max_new_tokens": 241, "min_new_tokens": 241}
    replies = [lm.generate(torch.arange(3, 11)[None], **how) for lm in both]
    for reply in replies:
        steps = reply.tokens[1:]
        waited = 69 - 8
        assert [step.controllable["attention"] for step in steps] == [False] * waited + [True] * (240 - waited)
        assert all(step.controllable["mlp"] and step.controllable["bits"] for step in steps)
        for step in steps[:waited]:
            assert step.action.startswith("k100")
            assert step.realised["attention"] == 1
        assert len({step.action for step in steps[:waited]}) > 1
        counted = [step.realised["attention"] for step in steps[waited:]]
        assert reply.compute.realised["attention"] == pytest.approx(sum(counted) / len(counted))
        assert reply.compute.realised["attention"] == pytest.approx(0.75, abs=0.01)
        assert reply.compute.realised["mlp"] == pytest.approx(0.7, abs=0.01)
    # Later, rounding may change which of two steps reads fewer pages.
    early = [[step.action for step in reply.tokens[:waited]] for reply in replies]
    assert early[0] == early[1]


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_bfloat16_model_generates_on_the_engine(tiny_folder, precision):
    """Whose prefill gives logits that the engine never does."""
    lm = package.load(str(tiny_folder), dtype="bfloat16", backend="cpu", precision=precision)
    said = [lm.generate("A long enough prompt. " * 4, max_new_tokens=6, **how).tokens for how in ({}, {"top_k": 5})]
    assert all(said)


def test_the_engine_is_the_default_and_says_how_it_runs(tiny_folder, caplog):
    caplog.set_level("INFO", "solm")
    with package.load(str(tiny_folder), dtype="float32") as lm:
        assert lm.backend.name == "cpu int8"
        assert lm.sparsity == package.SparsityConfig.preset("cpu")
        assert lm.space == package.ActionSpace.preset("cpu-wide")
        reply = lm.generate("A long enough prompt. " * 9, budget=0.97, max_new_tokens=30, min_new_tokens=30)
        assert reply.compute.bytes == pytest.approx(0.97, abs=0.02)
    assert "cpu int8, bfloat16 KV cache, " in caplog.text
    assert default_kv_cache("builtin:smollm2-135m", "auto") == "int8"
    assert default_kv_cache("builtin:smollm2-135m", "bfloat16") == default_kv_cache("other", "auto") == "auto"


def test_steps_that_leave_out_bits_of_weights_use_a_files_own_where_there_are_some(tiny_folder, tmp_path):
    nested, plain = package.SparsityConfig.preset("nested"), package.SparsityConfig()
    sources = {"floats": SafetensorsFolder(tiny_folder)}
    for kind in (TensorType.Q8_0, TensorType.Q6_K, TensorType.Q5_0, TensorType.Q4_K):
        write_gguf(tmp_path / f"{kind.name}.gguf", "llama", lambda name, kind=kind: kind, **WIDE)
        sources[kind.name] = GgufFile(tmp_path / f"{kind.name}.gguf")
    mixed = {"down": TensorType.Q4_K, "gate": TensorType.Q6_K, "up": TensorType.Q8_0}
    write_gguf(tmp_path / "mixed.gguf", "llama", lambda name: mixed.get(name, TensorType.Q8_0), **WIDE)
    sources["mixed"] = GgufFile(tmp_path / "mixed.gguf")
    assert {name for name, source in sources.items() if default_precision(nested, source) == "auto"} == {"Q8_0", "Q6_K"}
    assert {default_precision(plain, source) for source in sources.values()} == {"auto"}


def test_a_model_that_is_loaded_already_stays_on_torch():
    with package.attach(tiny_model("llama", torch.float32)) as lm:
        assert lm.backend.name == "torch float32"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sparsity": PAPER}, "it needs pages of 16 tokens and a window"),
        ({"sparsity": package.SparsityConfig(page_size=8), "dtype": "float32"}, "it needs pages of 16 tokens"),
    ],
)
def test_what_the_engine_cannot_run_is_run_by_torch(tiny_folder, options, reason, caplog):
    with package.load(str(tiny_folder), **options) as lm:
        assert lm.backend.name.startswith("torch")
        assert lm.sparsity == options.get("sparsity", package.SparsityConfig())
    assert "not the cpu backend: " in caplog.text
    assert reason in caplog.text
    with pytest.raises(SolmError, match=reason):
        package.load(str(tiny_folder), backend="cpu", **options)


def test_auto_falls_back_to_torch_and_says_why(tiny_folder, caplog, monkeypatch):
    monkeypatch.setattr(
        "solm.backends.cpu.backend.Engine", lambda *_, **__: (_ for _ in ()).throw(SolmError("no compiler"))
    )
    lm = package.load(str(tiny_folder), dtype="float32", backend="auto")
    assert lm.backend.name == "torch float32"
    assert "; not the cpu backend: no compiler" in caplog.text
    with pytest.raises(SolmError, match="unknown backend 'fast'"):
        package.load(str(tiny_folder), backend="fast")
