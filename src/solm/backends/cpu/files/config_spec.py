"""A model's description from its transformers configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solm.backends.cpu.files.families import DEFAULTS, FAMILIES, Family
from solm.backends.cpu.files.fields import Fields, shown
from solm.backends.cpu.files.rope import rope
from solm.backends.cpu.files.spec import MOST_HEADS, MOST_LAYERS, MOST_TOKENS, MOST_WIDTH, ModelSpec
from solm.core.errors import UnsupportedModelError


def from_config(config: Mapping[str, Any], file: Path | str, name: str) -> ModelSpec:
    """The description in a transformers configuration: the content of its config.json, or its ``to_dict()``.

    Raises `UnsupportedModelError` for a family or a kind of layer that is not described here, `DamagedFileError` with
    `file` and the field for sizes that are missing or make no sense.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UnsupportedModelError(f"family {shown(family)} is not among {', '.join(FAMILIES)}")
    known = FAMILIES[family]
    fields = Fields(file, {**DEFAULTS, **known.defaults, **config})
    if config.get("hidden_act", "silu") != "silu" or config.get("mlp_bias"):
        raise UnsupportedModelError("only SiLU-gated MLPs without biases are supported")
    if config.get("attention_bias"):
        raise UnsupportedModelError(f"attention biases are not supported for {family}")
    layers, heads = fields.integer("num_hidden_layers", MOST_LAYERS), fields.integer("num_attention_heads", MOST_HEADS)
    hidden, vocabulary = fields.integer("hidden_size", MOST_WIDTH), fields.integer("vocab_size", MOST_TOKENS)
    head_dim = fields.integer("head_dim", MOST_WIDTH, hidden // heads)
    context = fields.integer("max_position_embeddings", MOST_TOKENS)
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise fields.damaged("rope_scaling", "must be an object")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    # Where the trained length is left out, it is the context.
    positions = {"rope_theta": fields.number("rope_theta"), "original_max_position_embeddings": context}
    positions |= {key: value for key, value in scaling.items() if value is not None}
    found = rope(Fields(file, positions), str(kind), head_dim, context)
    bos = fields.tokens("bos_token_id", vocabulary)
    sliding = _sliding(config, fields, layers)
    return ModelSpec(
        file=file,
        family=family,
        name=name,
        layers=layers,
        hidden=hidden,
        intermediate=fields.integer("intermediate_size", MOST_WIDTH),
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", MOST_HEADS, heads),
        head_dim=head_dim,
        vocabulary=vocabulary,
        context=found.context,
        epsilon=fields.number("rms_norm_eps"),
        rope=found,
        qkv_bias=known.qkv_bias,
        tied_head=fields.flag("tie_word_embeddings", False),
        layers_without_rope=_without_rope(config, fields, known, layers),
        sliding_window=fields.integer("sliding_window", MOST_TOKENS) if sliding else None,
        sliding_layers=sliding,
        bos=bos[0] if bos else None,
        eos=fields.tokens("eos_token_id", vocabulary),
    )


def _without_rope(config: Mapping[str, Any], fields: Fields, known: Family, layers: int) -> tuple[int, ...]:
    """The layers without rotary positions."""
    listed = config.get("no_rope_layers")
    if listed is not None:
        if not isinstance(listed, list | tuple) or len(listed) != layers:
            raise fields.damaged("no_rope_layers", f"must be a list of {layers}")
        return tuple(layer for layer, rotated in enumerate(listed) if not rotated)
    interval = known.no_rope_interval
    if interval is None:
        return ()
    every = fields.integer("no_rope_layer_interval", MOST_LAYERS, interval)
    return tuple(range(every - 1, layers, every))


def _sliding(config: Mapping[str, Any], fields: Fields, layers: int) -> tuple[int, ...]:
    """The layers with a sliding window."""
    if fields.get("sliding_window") is None or config.get("use_sliding_window") is False:
        return ()
    kinds = config.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list | tuple) or len(kinds) != layers:
            raise fields.damaged("layer_types", f"must be a list of {layers}")
        return tuple(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")
    if config.get("model_type") in ("qwen2", "qwen3"):
        if not config.get("use_sliding_window"):
            return ()
        return tuple(range(fields.integer("max_window_layers", MOST_LAYERS, 28), layers))
    return tuple(range(layers)) if config.get("model_type") == "mistral" else ()
