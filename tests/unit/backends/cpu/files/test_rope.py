"""Rotary frequencies of every kind of scaling, against transformers."""

import numpy as np
import pytest
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from helpers.gguf_files import write_gguf
from helpers.models import SIZES
from solm.backends.cpu.files.config import from_config
from solm.backends.cpu.files.sources import GgufFile
from solm.core.errors import DamagedFileError, UnsupportedModelError

PARAMETERS = {
    "linear": [{"factor": 8.0}],
    "dynamic": [{"factor": 4.0}],
    "yarn": [
        {"factor": 4.0, "original_max_position_embeddings": 128},
        {
            "factor": 16.0, "original_max_position_embeddings": 64, "beta_fast": 24.0, "beta_slow": 2.0,
            "truncate": False,
        },
        {"factor": 4.0, "original_max_position_embeddings": 128, "mscale": 0.7, "mscale_all_dim": 1.2},
        {"factor": 4.0, "original_max_position_embeddings": 128, "attention_factor": 1.5},
    ],
    "longrope": [
        {
            "short_factor": [1.0 + n / 4 for n in range(8)], "long_factor": [2.0] * 8,
            "original_max_position_embeddings": 256,
        },
        {"short_factor": [1.5] * 8, "long_factor": [2.0] * 8, "factor": 4.0, "attention_factor": 1.2},
    ],
    "llama3": [
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    ],
    "proportional": [{"factor": 2.0}, {"partial_rotary_factor": 0.5}],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "given"), [(kind, given) for kind, all_ in PARAMETERS.items() for given in all_])
def test_frequencies_are_those_of_transformers(kind, given):
    parameters = {"rope_type": kind, "rope_theta": 10_000.0, **given}
    config = AutoConfig.for_model("llama", **SIZES, rope_parameters=parameters)
    expected, scaling = ROPE_INIT_FUNCTIONS[kind](config)
    for rope in (parameters, config.rope_parameters):
        spec = from_config({**SIZES, "model_type": "llama", "rope_parameters": rope}, "config.json", "tiny")
        np.testing.assert_allclose(spec.rope.inverse_frequencies, expected, rtol=2e-6)
        assert spec.rope.scaling == pytest.approx(scaling, rel=1e-6)
        shorter = kind == "longrope" and "original_max_position_embeddings" in given
        assert spec.context == (256 if shorter else 512)  # as far as the short factors hold


def test_gguf_files_have_scaling_in_fields_and_in_tensors(tmp_path):
    path = tmp_path / "tiny.gguf"
    model = write_gguf(path, "qwen2", fields={"qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": 8.0})
    plain = model.model.rotary_emb.inv_freq.numpy()
    np.testing.assert_allclose(GgufFile(path).spec.rope.inverse_frequencies, plain / 8, rtol=1e-6)
    fields = {
        "qwen2.rope.scaling.type": "yarn", "qwen2.rope.scaling.factor": 4.0,
        "qwen2.rope.scaling.original_context_length": 128,
    }  # fmt: skip
    write_gguf(path, "qwen2", fields=fields)
    yarn = {"rope_type": "yarn", "rope_theta": 10_000.0, **PARAMETERS["yarn"][0]}
    expected, scaling = ROPE_INIT_FUNCTIONS["yarn"](AutoConfig.for_model("qwen2", **SIZES, rope_parameters=yarn))
    np.testing.assert_allclose(GgufFile(path).spec.rope.inverse_frequencies, expected, rtol=2e-6)
    assert GgufFile(path).spec.rope.scaling == pytest.approx(scaling)
    divisors = np.linspace(1, 8, 8, dtype=np.float32)
    write_gguf(path, "llama", tensors={"rope_freqs.weight": divisors})
    np.testing.assert_allclose(GgufFile(path).spec.rope.inverse_frequencies, plain / divisors, rtol=1e-6)


def test_scaling_that_is_not_understood_is_named(tmp_path):
    path = tmp_path / "tiny.gguf"
    for fields, words in (
        ({"llama.rope.scaling.type": "other"}, "type 'other' are not among"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.attn_factor": 1.5}, "YaRN with an attention factor"),
    ):
        write_gguf(path, "llama", fields=fields)
        with pytest.raises(UnsupportedModelError, match=words):
            GgufFile(path)
    for tensor, words in (
        (np.ones(5, np.float32), r"rope_freqs.weight: must be a list of 8 numbers"),
        (np.zeros(8, np.float32), r"rope_freqs.weight: must be numbers above 0, not 0.0"),
        (np.ones((2, 4), np.float32), r"rope_freqs.weight: F32 \(4, 2\) is no row of F32"),
    ):
        write_gguf(path, "llama", tensors={"rope_freqs.weight": tensor})
        with pytest.raises(DamagedFileError, match=r"tiny.gguf is damaged: " + words):
            GgufFile(path)
    rope = {"rope_type": "yarn", "rope_theta": 10_000.0, **PARAMETERS["yarn"][0]}
    for beta in ({"beta_fast": 1.7e308}, {"beta_slow": 5e-324}):
        with pytest.raises(DamagedFileError, match="rope_scaling: gives no frequencies"):
            from_config({**SIZES, "model_type": "llama", "rope_parameters": {**rope, **beta}}, "config.json", "tiny")
