"""A policy fits other files of its model, and no other model."""

import numpy as np
import pytest
import torch
from gguf import quants
from gguf.constants import GGMLQuantizationType as TensorType

import solm
from helpers.gguf_files import WIDE, write_gguf
from helpers.models import tiny_model
from solm.core.errors import PolicyMismatchError
from solm.policies.identity import BaseIdentity, WeightSample, distance

WEIGHTS = np.random.default_rng(0).normal(0, 0.05, (2, 32, 64)).astype(np.float32)
NORMS = np.random.default_rng(1).uniform(0.5, 1.5, 256)
TYPES = (TensorType.Q4_0, TensorType.Q4_1, TensorType.Q5_0, TensorType.Q8_0, TensorType.BF16, TensorType.F16)


def rounded(kind: TensorType, weights: np.ndarray = WEIGHTS) -> np.ndarray:
    """What files of a type make of weights, with the first of two blocks of every row as it is sampled."""
    return quants.dequantize(quants.quantize(weights, kind), kind)


def sample(weights: np.ndarray, norms: np.ndarray = NORMS) -> WeightSample:
    return WeightSample.of(weights[0], weights[1], norms)


def identity(weights: WeightSample, **changes) -> BaseIdentity:
    known = {"name": "base", "family": "llama", "hidden": 64, "layers": 2, "vocabulary": 320, "weights": weights}
    return BaseIdentity(**known | changes)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_every_type_of_one_model_is_that_model_and_a_new_one_is_not(kind):
    for other in TYPES:
        identity(sample(rounded(kind))).check(identity(sample(rounded(other))))
    with pytest.raises(PolicyMismatchError, match="the same shapes but other weights: its embeddings differ by 1"):
        identity(sample(rounded(kind))).check(identity(sample(rounded(kind, WEIGHTS[:, ::-1].copy()))))


def test_a_tuned_model_is_told_from_files_that_keep_eight_bits():
    tuned = WEIGHTS + 0.05 * 0.03 * np.random.default_rng(2).normal(size=WEIGHTS.shape).astype(np.float32)
    for kind in (TensorType.Q8_0, TensorType.BF16):
        reason = sample(WEIGHTS).difference(sample(rounded(kind, tuned)))
        assert reason is not None
        assert "differ by 3." in reason
    # Four bits hide that much; norms are never quantised.
    assert sample(WEIGHTS).difference(sample(rounded(TensorType.Q4_0, tuned))) is None
    reason = sample(WEIGHTS).difference(sample(rounded(TensorType.Q4_0, tuned), 1.01 * NORMS))
    assert reason == "its norms differ by 1.0%, of which rounding explains at most 0.4%"


def test_what_one_side_lacks_is_not_compared():
    known = sample(WEIGHTS)
    assert WeightSample(norms=known.norms).difference(known) is None


def test_the_architecture_is_compared_by_what_files_call_it():
    known = sample(WEIGHTS)
    identity(known).check(identity(known, family="mistral"))
    for field, value in (("family", "qwen2"), ("hidden", 128), ("layers", 3), ("vocabulary", 321)):
        with pytest.raises(PolicyMismatchError, match=f"{field} .*the model given has {field} {value}"):
            identity(known).check(identity(known, **{field: value}))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3"])
def test_files_of_one_model_are_alike_on_both_backends(family, tmp_path):
    path = tmp_path / "base.gguf"
    model = write_gguf(path, family, lambda name: TensorType.Q8_0, **WIDE)
    with solm.attach(model) as lm:
        ours = lm.identity
    quantised = solm.load(path, backend="cpu", tokenizer=object()).identity
    assert len(quantised.weights.norms) == 2 * 32  # both layers
    assert len(quantised.weights.mlp) == 2 * 64
    assert 0 < distance(np.array(ours.weights.mlp), np.array(quantised.weights.mlp)) < 0.01
    ours.check(quantised)
    quantised.check(ours)
    assert quantised.name == "base.gguf"  # not where it lies
    for parameter in model.parameters():
        parameter.data += 0.03 * parameter.std() * torch.randn_like(parameter) if parameter.dim() > 1 else 0
    with solm.attach(model) as lm, pytest.raises(PolicyMismatchError, match="other weights"):
        quantised.check(lm.identity)


def test_a_mixture_of_experts_is_told_by_what_can_be_read():
    with solm.attach(tiny_model("qwen3_moe", torch.float32)) as lm:
        found = lm.identity.weights
    assert not found.mlp
    assert len(found.embedding) == 32 * 16
