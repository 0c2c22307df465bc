"""`solm inspect` on files: what they are and the memory they take, from headers alone."""

import shutil

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as TensorType

import solm
from helpers.gguf_files import WIDE, write_gguf
from helpers.models import tiny_model
from solm.backends.cpu.engine import VALUE_BITS, Engine
from solm.backends.cpu.files.layout import cache_memory
from solm.backends.cpu.files.sources import GgufFile
from solm.backends.cpu.files.spec import FAMILIES
from solm.backends.cpu.library import library
from solm.cli.inspect import inspect
from solm.core.sparsity import SparsityConfig

VOCABULARY = {"phi3": 32_064}
"""Of families that transformers gives a padding token of their own, which a header does not have."""


def told(path):
    return inspect(str(path)).content


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_from_its_file(family, tmp_path):
    """Also where transformers reads no such file."""
    path = tmp_path / "tiny.gguf"
    vocabulary = VOCABULARY.get(family, 259)
    write_gguf(path, family, max_position_embeddings=2048, vocab_size=vocabulary)
    found = told(path)
    assert found["backends"]["cpu"] == {"supported": True, "reason": None}
    assert found["family"] == ("llama" if family in ("mistral", "ministral", "helium") else family)
    assert (found["context"], found["sizes"]["layers"], found["sizes"]["vocabulary"]) == (2048, 2, vocabulary)
    assert all(axis["supported"] for axis in found["axes"].values())
    assert [at["tokens"] for at in found["memory"]["contexts"]] == [1024, 2048]
    reason = found["backends"]["torch"]["reason"]
    unread = {"smollm3", "olmo2", "granite", "olmoe", "mixtral", "granitemoe", "exaone4", "seed_oss", "gemma"}
    unread |= {"glm", "glm4", "gpt_oss", "phi", "gpt_neox", "cohere", "olmo"}
    assert (reason is None) == (family not in unread), reason


def test_layers_with_a_sliding_window_are_told(tmp_path):
    path = tmp_path / "tiny.gguf"
    for family, window, sliding in (("gemma3_text", 40, 1), ("phi3", 40, 2), ("phi3", None, 0)):
        supported = sliding < 2
        write_gguf(path, family, sliding_window=window, vocab_size=VOCABULARY.get(family, 259))
        found = told(path)
        assert found["sliding_window_layers"] == sliding
        assert found["backends"]["cpu"]["supported"]
        assert found["axes"]["attention"]["supported"] == supported
        assert found["axes"]["mlp"]["supported"]
        assert (found["axes"]["attention"]["reason"] is None) == supported


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_memory_is_what_the_engine_takes(tmp_path, monkeypatch):
    library()  # before the folder changes, so that it is not built anew
    monkeypatch.setenv("SOLM_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny.gguf"
    write_gguf(path, "llama", lambda name: TensorType.Q6_K if name in ("down", "head") else TensorType.Q5_0, **WIDE)
    memory = told(path)["memory"]
    engine = Engine(GgufFile(path), SparsityConfig())
    assert memory["weights"] == engine._weights.nbytes
    assert set(memory["forms"]) == {"5 bits", "6 bits"}
    for at in memory["contexts"]:
        assert at["int8-int4"]["cache"] < at["int8"]["cache"] < at["bfloat16"]["cache"] < at["bfloat16"]["total"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
@pytest.mark.parametrize(
    ("precision", "kv_cache_dtype", "number", "bound"),
    [
        ("float32", "auto", 4, 4),
        ("bfloat16", "auto", 2, 2),
        ("int8", "auto", 2, 2),
        ("int8", "int8", 1 + 4 / 64, 2),
        ("int8", "int8-int4", 0.75 + 4 / 64, 2),
    ],
)
def test_the_cache_of_a_row_is_what_the_engine_takes(precision, kv_cache_dtype, number, bound):
    with solm.attach(
        tiny_model("llama", hidden_size=128, head_dim=64, intermediate_size=192), backend="cpu", precision=precision,
        kv_cache_dtype=kv_cache_dtype,
    ) as lm:  # fmt: skip
        session = lm.session()
        session.prefill(np.zeros((1, 300), dtype=np.int64))
        held = lm.backend.page_memory()
        told = cache_memory(lm.shapes, 300, precision == "float32", VALUE_BITS[kv_cache_dtype])
    # Two layers of two heads of 64, for 300 tokens: 19 pages, and 2 tiles of bounds.
    assert told == 2 * 2 * 2 * (19 * 16 * 64 * number + 2 * 16 * 64 * bound)
    assert (held.pages, held.tiles) == (19, 2)
    assert told <= held.bytes < told + (19 + 2) * (4096 + 128)  # what lies between them


def test_folders_are_told_from_their_headers(tmp_path):
    tiny_model("qwen2").float().save_pretrained(tmp_path / "tiny")
    found = told(tmp_path / "tiny")
    assert found["tensors"] is None
    assert set(found["memory"]["forms"]) == {"int8"}
    assert found["backends"]["cpu"]["supported"]


def test_what_no_backend_runs_is_said(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, "llama")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0llxxa"))
    found = told(path)
    assert found["family"] == "llxxa"
    assert found["memory"] is found["sizes"] is None
    assert "architecture 'llxxa' is not among" in found["backends"]["cpu"]["reason"]
    assert not any(axis["supported"] for axis in found["axes"].values())
    assert found["axes"]["mlp"]["reason"] == "no backend runs this model"
