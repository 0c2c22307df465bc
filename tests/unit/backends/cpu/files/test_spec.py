"""Every family's description and tensors, from a loaded model, its folder and its GGUF file, against transformers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

from helpers.gguf_files import write_gguf
from helpers.models import EXTRA, SIZES, tiny_model
from solm.backends.cpu.files.config import from_config, from_gguf
from solm.backends.cpu.files.sources import ROTATED, GgufFile, LoadedModel, SafetensorsFolder, half_split
from solm.backends.cpu.files.spec import FAMILIES
from solm.backends.gguf_header import read_header
from solm.core.errors import DamagedFileError, UnsupportedModelError

OURS = (
    "layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocabulary", "context", "qkv_bias", "bos",
    "eos", "activation", "layers_without_rope", "sliding_window", "sliding_layers", "experts_used", "shared",
    "parallel",
)  # fmt: skip
KINDS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]


def sources(family, folder, dtype=torch.float32, **changes):
    """The same model as all three kinds of source, and its parameters."""
    model = write_gguf(folder / "tiny.gguf", family, **changes).to(dtype)
    model.save_pretrained(folder / "tiny")
    return model, (LoadedModel(model), SafetensorsFolder(folder / "tiny"), GgufFile(folder / "tiny.gguf"))


def epsilon_of(config):
    names = ("rms_norm_eps", "layer_norm_eps", "norm_epsilon")
    return next((getattr(config, name) for name in names if hasattr(config, name)), 1e-5)  # that of olmo


@pytest.mark.parametrize("family", FAMILIES)
def test_all_sources_describe_the_model_that_transformers_has(family, tmp_path):
    by_kind, slides = family == "gemma3_text", EXTRA.get(family, {}).get("sliding_window") is not None
    kinds = {"layer_types": KINDS} if slides else {}
    kinds |= {"query_pre_attn_scalar": 24} if by_kind else {"query_pre_attn_scalar": 16} if family == "gemma2" else {}
    model, found = sources(family, tmp_path, num_hidden_layers=5, **kinds)
    config, layer = model.config, model.base_model.layers[0]
    attention = getattr(layer, "self_attn", None) or layer.attention
    projection = next((getattr(attention, n) for n in ("q_proj", "query_key_value") if hasattr(attention, n)), None)
    for source in found:
        spec = source.spec
        assert (spec.layers, spec.hidden, spec.heads, spec.kv_heads) == (5, 64, 4, config.num_key_value_heads)
        assert (spec.vocabulary, spec.context, spec.bos, spec.eos) == (259, 512, 1, (2,))
        assert spec.head_dim == getattr(attention, "head_dim", 16)
        assert spec.epsilon == pytest.approx(epsilon_of(config), rel=1e-6)
        assert spec.qkv_bias == (projection is not None and projection.bias is not None)
        rotary = model.base_model.rotary_emb
        for rope, kind in ((spec.rope, "full_attention_"), (spec.sliding_rope, "sliding_attention_")):
            expected = getattr(rotary, (kind if by_kind else "") + "inv_freq").numpy()
            np.testing.assert_allclose(rope.inverse_frequencies, expected, rtol=1e-6)
            assert rope.scaling == getattr(rotary, (kind if by_kind else "") + "attention_scaling")
        rotated = getattr(config, "no_rope_layers", None) or [1] * 5
        rotated = [1, 1, 0, 1, 0] if family == "exaone4" else rotated
        assert spec.layers_without_rope == tuple(layer for layer in range(5) if not rotated[layer])
        assert spec.sliding_layers == ((0, 1, 3) if slides else ())
        assert [spec.window_of(layer) for layer in range(5)] == ([40, 40, None, 40, None] if slides else [None] * 5)
        assert spec.scales.softmax == pytest.approx(attention.scaling, rel=1e-6)
        scales = [8.0 if family.startswith("gemma") else 1.0, 1.0, 1.0]
        if family.startswith("granite"):
            scales = [config.embedding_multiplier, config.residual_multiplier, 1 / config.logits_scaling]
        scales[2] = getattr(config, "logit_scale", scales[2])
        found_scales = [spec.scales.embedding, spec.scales.residual, spec.scales.logits]
        assert found_scales == pytest.approx(scales, rel=1e-6)
        caps = [getattr(config, name, None) or 0 for name in ("attn_logit_softcapping", "final_logit_softcapping")]
        assert [spec.scales.attention_cap, spec.scales.logit_cap] == caps
        for name in OURS:
            assert getattr(spec, name) == getattr(found[0].spec, name), name
    # A GGUF file of llama, mistral, ministral and helium does not say which.
    of_file = "llama" if family in ("mistral", "ministral", "helium") else family
    assert [source.spec.family for source in found] == [family, family, of_file]
    assert found[0].spec.tied_head == found[1].spec.tied_head == config.tie_word_embeddings


@pytest.mark.parametrize("family", FAMILIES)
def test_all_sources_have_the_same_tensors(family, tmp_path):
    model, found = sources(family, tmp_path)
    parameters = dict(model.named_parameters())
    width = found[0].spec.intermediate
    sizes = {"q": 64, "k": 32, "v": 32, "gate": width, "up": width}
    description = found[0].spec.description
    for layer in (None, 0, 1):
        for name, place in found[0].spec.places(layer).items():
            expected, expert = parameters[place.transformers].detach().numpy(), None
            if place.of_experts:
                expert = len(expected) - 1 - (layer or 0)
                expected = expected[expert]
            if place.transposed:
                expected = expected[..., place.fused.index(name) :: 2].T if place.fused else expected.T
            elif place.by_heads:
                expected = expected.reshape(4, 3, 16, *expected.shape[1:])[:, place.fused.index(name)]
                expected = expected.reshape(64, *expected.shape[2:])
            elif place.fused:
                first = sum(sizes[other] for other in place.fused[: place.fused.index(name)])
                expected = expected[first : first + sizes[name]]
            if family.startswith("gemma") and name.endswith("norm"):
                expected = expected + 1
            if description.neighbours and name in ROTATED:
                rotary = 2 * len(found[0].spec.rope.inverse_frequencies)
                expected = expected[half_split(len(expected) // 16, 16, rotary)]
            for source in found:
                tensor = source.tensor(name, layer, expert)
                assert tensor.shape == expected.shape == source.spec.shape(name)
                np.testing.assert_array_equal(tensor.floats(), expected, err_msg=f"{name} of {type(source).__name__}")
    tied = model.config.tie_word_embeddings
    for source in found[:2]:
        head = source.tensor("head").floats()
        np.testing.assert_array_equal(
            head, parameters[description.model["embedding" if tied else "head"].transformers].detach()
        )
    matrices = {"q", "k", "v", "out", "up", "down"} | ({"gate"} if description.gated else set())
    assert matrices <= set(found[0].spec.places(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_floats_of_any_size_are_read(dtype, tmp_path):
    model = tiny_model("llama", dtype)
    expected = model.model.layers[1].mlp.up_proj.weight.detach().float().numpy()
    np.testing.assert_array_equal(LoadedModel(model).tensor("up", 1).floats(), expected)
    if dtype != torch.float64:
        model.save_pretrained(tmp_path / "tiny")
        np.testing.assert_array_equal(SafetensorsFolder(tmp_path / "tiny").tensor("up", 1).floats(), expected)


def test_a_folder_may_have_several_files_and_a_tied_head(tmp_path):
    model = tiny_model("smollm3", torch.bfloat16)
    assert model.config.tie_word_embeddings
    model.save_pretrained(tmp_path / "tiny", max_shard_size="50KB")
    assert len(list((tmp_path / "tiny").glob("*.safetensors"))) > 2
    source = SafetensorsFolder(tmp_path / "tiny")
    assert source.spec.tied_head
    expected = model.model.embed_tokens.weight.detach().float().numpy()
    np.testing.assert_array_equal(source.tensor("head").floats(), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_configuration_leaves_out_is_what_transformers_assumes(family):
    given = {name: size for name, size in SIZES.items() if name not in ("head_dim", "pad_token_id")}
    config = AutoConfig.for_model(family, **given)
    short = from_config({"model_type": family, **given}, "config.json", family)
    full = from_config(config.to_dict(), "config.json", family)
    for name in (*OURS, "epsilon", "tied_head"):
        assert getattr(short, name) == getattr(full, name), name
    assert full.epsilon == epsilon_of(config)
    assert full.tied_head == config.tie_word_embeddings
    assert short.scales == full.scales
    parameters = config.rope_parameters
    for rope, same, kind in (
        (short.rope, full.rope, "full_attention"),
        (short.sliding_rope, full.sliding_rope, "sliding_attention"),
    ):
        np.testing.assert_array_equal(rope.inverse_frequencies, same.inverse_frequencies)
        base = float(rope.inverse_frequencies[1]) ** -len(rope.inverse_frequencies)
        assert base == pytest.approx(parameters.get(kind, parameters)["rope_theta"], rel=1e-4)


def test_older_configurations_of_gemma3_are_read():
    """With the bases of both kinds of layers apart, a scaling that is meant for one, and a number for the kinds."""
    given = {
        "rope_theta": 500_000.0, "rope_local_base_freq": 20_000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window": 512, "sliding_window_pattern": 3,
    }  # fmt: skip
    spec = from_config({"model_type": "gemma3_text", **SIZES, "num_hidden_layers": 7, **given}, "config.json", "old")
    expected = AutoConfig.for_model("gemma3_text", **{**SIZES, "num_hidden_layers": 7}, **given)
    assert expected.layer_types == [
        "full_attention" if spec.window_of(n) is None else "sliding_attention" for n in range(7)
    ]
    assert spec.sliding_layers == (0, 1, 3, 4, 6)
    rotary = Gemma3RotaryEmbedding(expected)
    np.testing.assert_allclose(spec.rope.inverse_frequencies, rotary.full_attention_inv_freq, rtol=1e-6)
    np.testing.assert_allclose(spec.sliding_rope.inverse_frequencies, rotary.sliding_attention_inv_freq, rtol=1e-6)


def test_gguf_files_of_gemma3_without_a_pattern_have_every_sixth_layer_see_everything(tmp_path):
    kinds = ["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(7)]
    write_gguf(tmp_path / "a.gguf", "gemma3_text", num_hidden_layers=7, layer_types=kinds, query_pre_attn_scalar=16)
    header = read_header(tmp_path / "a.gguf")
    pattern = "gemma3.attention.sliding_window_pattern"
    assert from_gguf(header).sliding_layers == (0, 1, 2, 3, 4, 6)
    assert "gemma3.attention.scale" not in header.metadata
    without = {key: value for key, value in header.metadata.items() if key != pattern}
    assert from_gguf(replace(header, metadata=without)).sliding_layers == (0, 1, 2, 3, 4, 6)
    assert from_gguf(replace(header, metadata={**without, pattern: 2})).sliding_layers == (0, 2, 4, 6)
    with pytest.raises(DamagedFileError, match="sliding_window_pattern: must be a list of 7"):
        from_gguf(replace(header, metadata={**without, pattern: [True]}))
    softcap = {"gemma3.final_logit_softcapping": 30.0}
    assert from_gguf(replace(header, metadata=header.metadata | softcap)).scales.logit_cap == 30
    assert from_gguf(header).scales.softmax == 16**-0.5
    largest = from_gguf(replace(header, metadata={**without, "gemma3.block_count": 62}))
    assert largest.scales.softmax == (64 // 4) ** -0.5


def test_values_are_read_by_every_name_that_families_have_for_them():
    old = {"model_type": "gpt_neox", **SIZES, "rotary_pct": 0.5, "rotary_emb_base": 5000}
    new = {"model_type": "gpt_neox", **SIZES, "partial_rotary_factor": 0.5, "rope_theta": 5000}
    ropes = [from_config(given, "config.json", "a").rope.inverse_frequencies for given in (old, new)]
    assert len(ropes[0]) == 4
    np.testing.assert_array_equal(*ropes)
    for biases in (True, False):
        config = AutoConfig.for_model("qwen2_moe", **SIZES, qkv_bias=biases).to_dict()
        assert from_config(config, "config.json", "a").qkv_bias == biases


def test_sliding_windows_are_told():
    def spec(family, **given):
        return from_config({"model_type": family, **SIZES, **given}, "config.json", family)

    assert (spec("mistral").sliding_window, spec("mistral").sliding_layers) == (4096, (0, 1))
    assert spec("mistral", sliding_window=None).sliding_layers == ()
    assert (spec("phi3", sliding_window=2047).sliding_window, spec("phi3").sliding_window) == (2047, None)
    assert spec("qwen2", sliding_window=64).sliding_layers == ()
    window = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}
    assert (spec("qwen2", **window).sliding_window, spec("qwen2", **window).sliding_layers) == (64, (1,))
    for family in ("qwen2", "qwen3"):
        config = AutoConfig.for_model(family, **SIZES, **window)
        kinds = [index for index, kind in enumerate(config.layer_types) if kind == "sliding_attention"]
        assert spec(family, **config.to_dict()).sliding_layers == tuple(kinds) == (1,)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model_type": "gpt2"}, "family 'gpt2' is not among llama, mistral"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not among silu, gelu_pytorch_tanh"),
        ({"model_type": "starcoder2", "use_bias": False}, "use_bias False is not supported for starcoder2"),
        ({"model_type": "cohere", "use_qk_norm": True}, "use_qk_norm True is not supported for cohere"),
        ({"model_type": "gpt_oss", "swiglu_limit": 9.0}, "swiglu_limit 9.0 is not supported, only 7.0"),
        ({"rope_scaling": {"rope_type": "su"}}, "rotary positions of type 'su' are not among default, linear"),
    ],
)
def test_what_is_not_described_is_named(given, words):
    with pytest.raises(UnsupportedModelError, match=words):
        from_config({"model_type": "llama", **SIZES, **given}, "config.json", "tiny")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"hidden_size": None}, "hidden_size: it is missing"),
        ({"vocab_size": 2**63}, "vocab_size: must be a whole number from 1 to 16777216, not 9223372036854775808"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3"),
        ({"eos_token_id": [2, 9999]}, r"eos_token_id: must be token ids below 259, not \[2, 9999\]"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor: it is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "x" * 500}}, "factor: must be a number above 0, not 'xxx"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [10**400] * 8, "long_factor": [1] * 8}},
            "short_factor: must be numbers above 0, not 1000",
        ),
    ],
)
def test_sizes_that_make_no_sense_are_named(given, words):
    with pytest.raises(DamagedFileError, match="config.json is damaged: .*" + words) as found:
        from_config({"model_type": "llama", **SIZES, **given}, "config.json", "tiny")
    assert len(str(found.value)) < 200
