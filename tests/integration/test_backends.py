"""Models loaded on either backend: the same text, and why one is not used."""

import shutil

import pytest
import torch

import solm as package
from helpers.models import tiny_model
from helpers.policies import under_values
from solm.core.errors import SolmError
from solm.paper.config import SPARSITY as PAPER

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
        assert reply.compute.bytes < 0.9
    assert [step.action for step in replies[0].tokens] == [step.action for step in replies[1].tokens]


def test_the_engine_is_the_default_and_says_how_it_runs(tiny_folder, caplog):
    caplog.set_level("INFO", "solm")
    with package.load(str(tiny_folder), dtype="float32") as lm:
        assert lm.backend.name == "cpu int8"
        assert lm.sparsity == package.SparsityConfig.preset("cpu")
        assert lm.space == package.ActionSpace.preset("cpu-wide")
        reply = lm.generate("A long enough prompt. " * 9, budget="keep=0.97", max_new_tokens=30, min_new_tokens=30)
        assert reply.compute.bytes == pytest.approx(0.95, abs=0.03)
    assert "cpu int8, bfloat16 KV cache, " in caplog.text


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
