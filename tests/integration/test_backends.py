"""Models loaded on either backend: the same text, and why one is not used."""

import shutil

import pytest

import solm as package
from solm.core.errors import SolmError

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


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


def test_auto_falls_back_to_torch_and_says_why(tiny_folder, caplog, monkeypatch):
    monkeypatch.setattr("solm.backends.cpu.backend.Engine", lambda *_: (_ for _ in ()).throw(SolmError("no compiler")))
    lm = package.load(str(tiny_folder), dtype="float32", backend="auto")
    assert lm.backend.name == "torch float32"
    assert "no compiler; going on with the torch backend" in caplog.text
    with pytest.raises(SolmError, match="unknown backend 'fast'"):
        package.load(str(tiny_folder), backend="fast")
