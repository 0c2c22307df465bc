"""A model's description, from its transformers configuration or from the header of its GGUF file."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from solm.backends.cpu.files.fields import Fields, shown
from solm.backends.cpu.files.rope import Rope, rope
from solm.backends.cpu.files.spec import (
    DEFAULTS,
    FAMILIES,
    GGUF_LAYER,
    MODEL,
    MOST_EXPERTS,
    MOST_EXPERTS_USED,
    MOST_HEADS,
    MOST_LAYERS,
    MOST_TOKENS,
    MOST_WIDTH,
    Activation,
    Family,
    ModelSpec,
    Scales,
)
from solm.backends.gguf_header import GgufHeader
from solm.core.errors import UnsupportedModelError, damaged

_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
_UNKNOWN = ("mlp_bias", "attention_out_bias", "attention_bias", "use_bidirectional_attention", "mlp_only_layers",
            "clip_qkv", "use_qk_norm", "qk_layernorm")  # fmt: skip
"""What some models of a family have and the engine does not."""
_OTHER_NAMES = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta", "qkv_bias": "attention_bias"}
"""What gpt_neox, in old files, and qwen2_moe call values that others have, too."""
_SWIGLU = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}
"""Of the clamped activation, the numbers that the engine has."""
_ASSUMED = ("rope_theta", "truncate", *_CAPS)
"""What is that of transformers' configuration where a GGUF file does not say it."""
_GGUF = {
    "num_hidden_layers": "block_count", "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv", "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length", "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon", "max_position_embeddings": "context_length",
    "sliding_window": "attention.sliding_window", "rope_theta": "rope.freq_base",
    "rope_local_base_freq": "rope.freq_base_swa", "embedding_multiplier": "embedding_scale",
    "attention_multiplier": "attention.scale", "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale", "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping", "layer_types": "attention.sliding_window_pattern",
    "partial_rotary_factor": "rope.dimension_count", "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count", "moe_intermediate_size": "expert_feed_forward_length",
    "norm_topk_prob": "expert_weights_norm", "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "layer_norm_eps": "attention.layer_norm_epsilon", "norm_epsilon": "attention.layer_norm_epsilon",
    "clip_qkv": "attention.clamp_kqv", "use_parallel_residual": "use_parallel_residual",
}  # fmt: skip
"""transformers' names, and what GGUF files write after the family's name."""
_GGUF_SCALING = {
    "factor": "factor", "original_max_position_embeddings": "original_context_length", "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow", "attention_factor": "attn_factor",
}  # fmt: skip
"""The same of a scaling of rotary positions."""


def from_config(config: Mapping[str, Any], file: Path | str, name: str) -> ModelSpec:
    """The description in a transformers configuration: the content of its config.json, or its ``to_dict()``.

    Raises `UnsupportedModelError` for a family or a kind of layer that is not described here, `DamagedFileError` with
    `file` and the field for sizes that are missing or make no sense.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UnsupportedModelError(f"family {shown(family)} is not among {', '.join(FAMILIES)}")
    given = {_OTHER_NAMES.get(field, field): value for field, value in config.items()}
    return _spec_of(Fields(file, {**DEFAULTS, **FAMILIES[family].defaults, **given}), name)


def _spec_of(fields: Fields, name: str) -> ModelSpec:
    """The description in values that have transformers' names."""
    family = fields.values["model_type"]
    description = FAMILIES[family]
    for unknown in _UNKNOWN if description.capped else (*_UNKNOWN, *_CAPS):
        if fields.get(unknown) and not (unknown == "attention_bias" and description.qkv_bias):
            raise UnsupportedModelError(
                f"{fields.name_of(unknown)} {shown(fields.get(unknown))} is not supported for {family}"
            )
    for needed in ("use_bias", "attention_bias"):
        if "out_bias" in description.names and fields.get(needed) is False:
            raise UnsupportedModelError(f"{fields.name_of(needed)} False is not supported for {family}")
    layers, heads = fields.integer("num_hidden_layers", MOST_LAYERS), fields.integer("num_attention_heads", MOST_HEADS)
    hidden, vocabulary = fields.integer("hidden_size", MOST_WIDTH), fields.integer("vocab_size", MOST_TOKENS)
    head_dim = fields.integer("head_dim", MOST_WIDTH, hidden // heads)
    full, local = _ropes(fields, description, head_dim)
    bos = fields.tokens("bos_token_id", vocabulary)
    sliding = _sliding(fields, description, layers)
    experts, used = _experts(fields) if description.mixture else (0, 0)
    width = "intermediate_size" if fields.get("moe_intermediate_size") is None else "moe_intermediate_size"
    return ModelSpec(
        file=fields.file,
        family=family,
        name=name,
        layers=layers,
        hidden=hidden,
        intermediate=fields.integer(width if experts else "intermediate_size", MOST_WIDTH),
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", MOST_HEADS, heads),
        head_dim=head_dim,
        vocabulary=vocabulary,
        context=min(full.context, local.context),
        epsilon=fields.number(description.layer_norm or "rms_norm_eps"),
        activation=_activation(fields, description),
        scales=_scales(fields, description, hidden, head_dim),
        rope=full,
        sliding_rope=local,
        qkv_bias=description.qkv_bias and fields.flag("attention_bias", True),
        tied_head=fields.flag("tie_word_embeddings", False),
        layers_without_rope=_without_rope(fields, description, layers, sliding),
        sliding_window=fields.integer("sliding_window", MOST_TOKENS) if sliding else None,
        sliding_layers=sliding,
        bos=bos[0] if bos else None,
        eos=tuple(dict.fromkeys(fields.tokens("eos_token_id", vocabulary))),
        experts=experts,
        experts_used=used,
        shares_normed=experts > 0 and fields.flag("norm_topk_prob", description.shares_normed),
        shared=fields.integer("shared_expert_intermediate_size", MOST_WIDTH) if description.shares_expert else 0,
        parallel=description.parallel and fields.flag("use_parallel_residual", True),
    )


def _experts(fields: Fields) -> tuple[int, int]:
    """The number of experts of a layer, and of those that a token visits."""
    if fields.get("decoder_sparse_step") not in (None, 1):
        raise UnsupportedModelError(
            f"decoder_sparse_step {shown(fields.get('decoder_sparse_step'))}: layers without experts are not supported"
        )
    name = "num_experts" if fields.get("num_local_experts") is None else "num_local_experts"
    experts = fields.integer(name, MOST_EXPERTS)
    return experts, fields.integer("num_experts_per_tok", min(experts, MOST_EXPERTS_USED))


def _ropes(fields: Fields, description: Family, head_dim: int) -> tuple[Rope, Rope]:
    """The rotary positions of layers that see all tokens, and of those with a sliding window."""
    context = fields.integer("max_position_embeddings", MOST_TOKENS)
    scaling = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise fields.damaged("rope_scaling", "must be an object")
    if description.sliding_theta is None:
        shared = _rope(scaling, fields, fields.number("rope_theta"), head_dim, context)
        return shared, shared
    by_kind = {kind: scaling[kind] for kind in ("full_attention", "sliding_attention") if scaling.get(kind)}
    if not all(isinstance(one, Mapping) for one in by_kind.values()):
        raise fields.damaged("rope_parameters", "must be objects by kinds of layers")
    full = by_kind.get("full_attention", {}) if by_kind else scaling
    local_theta = fields.number("rope_local_base_freq", description.sliding_theta)
    return (
        _rope(full, fields, fields.number("rope_theta"), head_dim, context),
        _rope(by_kind.get("sliding_attention", {}), fields, local_theta, head_dim, context),
    )


def _rope(scaling: Mapping[str, Any], fields: Fields, theta: float, head_dim: int, context: int) -> Rope:
    kind = str(scaling.get("rope_type", scaling.get("type", "default")))
    # Where the trained length is left out, it is the context.
    positions: dict[str, Any] = {"rope_theta": theta, "original_max_position_embeddings": context}
    names = ("partial_rotary_factor", "original_max_position_embeddings", "truncate")
    for values in ({name: fields.get(name) for name in names}, scaling):
        positions |= {key: value for key, value in values.items() if value is not None}
    if fields.get("model_type") == "phi3" and kind in ("su", "yarn"):
        kind = "longrope"  # as its first files call it
    return rope(Fields(fields.file, positions), kind, head_dim, context)


def _activation(fields: Fields, description: Family) -> Activation:
    if description.activation == "clamped_swiglu":
        for name, number in _SWIGLU.items():
            if fields.number(name, number) != number:
                raise UnsupportedModelError(f"{name} {shown(fields.get(name))} is not supported, only {number}")
        return description.activation
    name = "hidden_activation" if fields.get("hidden_activation") else "hidden_act"
    given = fields.get(name) or description.activation
    if given == "gelu_new" or (given == "gelu" and fields.get("model_type") == "gemma"):  # so does transformers
        given = "gelu_pytorch_tanh"
    activation = next((one for one in get_args(Activation) if one == given), None)
    if activation is None:
        raise UnsupportedModelError(f"{name} {shown(given)} is not among {', '.join(get_args(Activation))}")
    return activation


def _scales(fields: Fields, description: Family, hidden: int, head_dim: int) -> Scales:
    return Scales(
        embedding=math.sqrt(hidden) if description.root_embeddings else fields.number("embedding_multiplier", 1.0),
        softmax=fields.number("attention_multiplier", fields.number("query_pre_attn_scalar", head_dim) ** -0.5),
        residual=fields.number("residual_multiplier", 1.0),
        logits=fields.number("logit_scale", 1 / fields.number("logits_scaling", 1.0)),
        attention_cap=fields.number(_CAPS[0]) if fields.get(_CAPS[0]) else 0.0,
        logit_cap=fields.number(_CAPS[1]) if fields.get(_CAPS[1]) else 0.0,
    )


def _without_rope(fields: Fields, description: Family, layers: int, sliding: tuple[int, ...]) -> tuple[int, ...]:
    """The layers without rotary positions, where those of `sliding` have windows."""
    if description.rope_slides:
        return tuple(layer for layer in range(layers) if sliding and layer not in sliding)
    listed = fields.get("no_rope_layers")
    if listed is not None:
        if not isinstance(listed, list | tuple) or len(listed) != layers:
            raise fields.damaged("no_rope_layers", f"must be a list of {layers}")
        return tuple(layer for layer, rotated in enumerate(listed) if not rotated)
    interval = description.no_rope_interval
    if interval is None:
        return ()
    every = fields.integer("no_rope_layer_interval", MOST_LAYERS, interval)
    return tuple(range(every - 1, layers, every))


def _sliding(fields: Fields, description: Family, layers: int) -> tuple[int, ...]:
    """The layers with a sliding window."""
    # Sliding layers with positions of their own need a window: that it is missing is an error then.
    without = fields.get("sliding_window") is None and description.sliding_theta is None
    if without or fields.get("use_sliding_window") is False:
        return ()
    kinds = fields.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list | tuple) or len(kinds) != layers:
            raise fields.damaged("layer_types", f"must be a list of {layers}")
        return tuple(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")
    if description.sliding == "last":
        if not fields.get("use_sliding_window"):
            return ()
        return tuple(range(fields.integer("max_window_layers", MOST_LAYERS, 28), layers))
    if isinstance(description.sliding, int):
        every = fields.integer("sliding_window_pattern", MOST_LAYERS, description.sliding)
        return tuple(layer for layer in range(layers) if (layer + 1) % every)
    return tuple(range(layers)) if description.sliding == "all" else ()


def from_gguf(header: GgufHeader) -> ModelSpec:
    """The description in the header of a GGUF file. Raises as `from_config` does."""
    named = [name for name, family in FAMILIES.items() if family.architecture == header.family]
    mixture = bool(header.size("expert_count"))
    family = next((name for name in named if FAMILIES[name].mixture == mixture), named[0] if named else None)
    if family is None:
        others = dict.fromkeys(family.architecture for family in FAMILIES.values())
        raise UnsupportedModelError(f"GGUF architecture {shown(header.family)} is not among {', '.join(others)}")
    description, tensors = FAMILIES[family], {tensor.name: tensor for tensor in header.tensors}
    names = {ours: f"{header.family}.{theirs}" for ours, theirs in {**_GGUF, **description.gguf}.items()}
    names |= {name: f"tokenizer.ggml.{name}" for name in ("bos_token_id", "eos_token_id")}
    values = {ours: header.metadata[theirs] for ours, theirs in names.items() if theirs in header.metadata}
    assumed = {name: value for name, value in {**DEFAULTS, **description.defaults}.items() if name in _ASSUMED}
    values = {**assumed, "model_type": family, **values}
    fields = Fields(header.path, values, names)
    embedding = tensors.get(MODEL["embedding"].gguf)
    if embedding is None or len(embedding.shape) != 2:
        raise fields.damaged(MODEL["embedding"].gguf, "it is missing" if embedding is None else "it is not a matrix")
    vocabulary = embedding.shape[1]
    if not 1 <= vocabulary <= MOST_TOKENS or vocabulary < (header.vocabulary or 0):
        raise fields.damaged(MODEL["embedding"].gguf, f"{vocabulary} rows for {header.vocabulary} tokens")
    layers, heads = fields.integer("num_hidden_layers", MOST_LAYERS), fields.integer("num_attention_heads", MOST_HEADS)
    head_dim = fields.integer("head_dim", MOST_WIDTH, fields.integer("hidden_size", MOST_WIDTH) // heads)
    if header.size("attention.value_length") not in (None, head_dim):
        raise UnsupportedModelError("keys and values of different dimensions are not supported")
    ends = [header.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    slides = _gguf_sliding(fields, description, layers)
    values |= {
        "vocab_size": vocabulary,
        "eos_token_id": [end for end in ends if end is not None],
        "tie_word_embeddings": MODEL["head"].gguf not in tensors,
        "layer_types": ["sliding_attention" if one else "full_attention" for one in slides],
        "partial_rotary_factor": fields.integer("partial_rotary_factor", head_dim, head_dim) / head_dim,
        "rope_scaling": _gguf_scaling(header),
    }
    if (description.architecture, layers) in (("gemma2", 46), ("gemma3", 62)):
        # Their files have no scale of attention: by llama.cpp's rule it is another one in the models of 27B.
        values["query_pre_attn_scalar"] = values["hidden_size"] // heads
    name = str(header.metadata.get("general.name", header.path.stem))
    spec = replace(_spec_of(fields, name), qkv_bias=GGUF_LAYER.format(0) + description.q_bias.gguf in tensors)
    divisors = _divisors(header, "rope_freqs.weight")
    if divisors is None:
        return spec
    inverse = spec.rope.inverse_frequencies
    by = Fields(header.path, {"rope_freqs.weight": divisors}).numbers("rope_freqs.weight", len(inverse))
    scaled = replace(spec.rope, inverse_frequencies=(inverse / np.array(by, np.float32)).astype(np.float32))
    return replace(spec, rope=scaled, sliding_rope=spec.sliding_rope if description.sliding_theta else scaled)


def _gguf_sliding(fields: Fields, description: Family, layers: int) -> list[bool]:
    """Whether a layer has a window, by layers."""
    if not fields.get("sliding_window"):
        return [False] * layers
    pattern = fields.get("layer_types")
    if isinstance(pattern, list):
        if len(pattern) != layers:
            raise fields.damaged("layer_types", f"must be a list of {layers}")
        return [bool(slides) for slides in pattern]
    if not isinstance(description.sliding, int):
        return [True] * layers
    every = fields.integer("layer_types", MOST_LAYERS, description.sliding)
    return [(layer + 1) % every > 0 for layer in range(layers)]


def _gguf_scaling(header: GgufHeader) -> dict[str, Any]:
    """The scaling of rotary positions, from metadata and from divisors that are a tensor."""
    scaling = {
        ours: header.metadata.get(f"{header.family}.rope.scaling.{theirs}") for ours, theirs in _GGUF_SCALING.items()
    }
    short = _divisors(header, "rope_factors_short.weight")
    kind = header.metadata.get(f"{header.family}.rope.scaling.type") or ("none" if short is None else "longrope")
    if kind == "yarn" and scaling.pop("attention_factor") not in (None, 1.0):
        raise UnsupportedModelError("YaRN with an attention factor of its own is not supported")
    scaling |= {"rope_type": "default" if kind == "none" else str(kind), "short_factor": short}
    return scaling


def _divisors(header: GgufHeader, name: str) -> list[float] | None:
    """A small tensor of floats; None where the file has none."""
    tensor = next((tensor for tensor in header.tensors if tensor.name == name), None)
    if tensor is None:
        return None
    if tensor.type != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > MOST_WIDTH:
        raise damaged(header.path, name, f"{tensor.type} {tensor.shape} is no row of F32")
    values = np.fromfile(header.path, np.float32, tensor.shape[0], offset=tensor.offset)
    return [float(value) for value in values]
