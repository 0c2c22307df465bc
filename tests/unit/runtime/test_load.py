"""Loading in the habits of transformers, and what is refused before any weight is read."""

import os

import pytest
import torch
from transformers import AutoModelForCausalLM

import solm
from helpers.models import tiny_model
from solm.core.errors import SolmError


@pytest.mark.parametrize("given", [{"dtype": "bfloat16"}, {"dtype": torch.bfloat16}])
def test_a_dtype_is_a_name_or_torchs_own(tiny_folder, given):
    with solm.load(tiny_folder, backend="torch", **given) as lm:
        assert lm.model.dtype == torch.bfloat16
        assert lm.name == tiny_folder.name


def test_sparsity_is_a_config_or_the_name_of_a_preset(tiny_folder):
    for backend in ("torch", "cpu"):
        with solm.load(tiny_folder, sparsity="cpu", backend=backend) as lm:
            assert lm.sparsity == solm.SparsityConfig.preset("cpu")
    with pytest.raises(SolmError, match="unknown sparsity 'cp'; choose one of default, cpu, experts, nested"):
        solm.load(tiny_folder, sparsity="cp")
    with pytest.raises(SolmError, match="sparsity must be a SparsityConfig or the name of a preset, got dict"):
        solm.load(tiny_folder, sparsity={"page_size": 16})


def test_a_tokenizer_of_ones_own_takes_the_place_of_a_missing_one(tmp_path, byte_tokenizer):
    tiny_model("llama", torch.float32).save_pretrained(tmp_path)
    with solm.load(tmp_path, tokenizer=byte_tokenizer, backend="torch") as lm:
        assert lm.tokenizer is byte_tokenizer
        assert lm.generate("hello", max_new_tokens=2).tokens


def test_mistakes_are_found_before_weights_are_read(tmp_path, tiny_folder, monkeypatch):
    bare = tmp_path / "bare"
    tiny_model("llama", torch.float32).save_pretrained(bare)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    for model, given, message in [
        (bare, {}, "model '.*bare' has no tokenizer that can be read"),
        (tmp_path / "none", {}, "cannot load model '.*none'"),
        (tiny_folder, {"policy": "auto"}, "no policy ships for this llama model; solm fit makes one for any"),
        (tiny_folder, {"dtype": "float8"}, "unknown dtype 'float8'; choose one of auto, float32, bfloat16, float16"),
        (tiny_folder, {"dtype": torch.int8}, "unknown dtype 'int8'"),
        (tiny_folder, {"dtype": "half"}, "unknown dtype 'half'"),
        (tiny_folder, {"device": "gpu"}, "device 'gpu' cannot be used here: "),
        (tiny_folder, {"device": "cuda:99"}, "device 'cuda:99' cannot be used here: "),
    ]:
        with pytest.raises(SolmError, match=message) as refused:
            solm.load(model, **given)
        assert "\n" not in str(refused.value)


def test_options_of_the_cpu_backend_are_not_dropped_where_it_does_not_run(tiny_folder, monkeypatch):
    monkeypatch.setattr("solm.runtime.load.accelerator_available", lambda: True)
    for options in ({"precision": "int8"}, {"kv_cache_dtype": "int8"}):
        with pytest.raises(SolmError, match="int8 needs the cpu backend: there is an accelerator"):
            solm.load(tiny_folder, **options)


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_threads_that_the_machine_lacks_are_a_mistake_on_every_backend(backend, tiny_folder, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for threads in (0, 3):
        with pytest.raises(SolmError, match=f"threads {threads} is out of range: this machine has 1 to 2"):
            solm.load(tiny_folder, backend=backend, threads=threads)
