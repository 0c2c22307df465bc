"""A model's description from its transformers configuration."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from solm.backends.cpu.files.families import DEFAULTS, FAMILIES, Activation, Family
from solm.backends.cpu.files.fields import Fields, shown
from solm.backends.cpu.files.rope import Rope, rope
from solm.backends.cpu.files.spec import MOST_HEADS, MOST_LAYERS, MOST_TOKENS, MOST_WIDTH, ModelSpec, Scales
from solm.core.errors import UnsupportedModelError

_UNKNOWN = ("mlp_bias", "attention_bias", "attn_logit_softcapping", "final_logit_softcapping",
            "use_bidirectional_attention")  # fmt: skip
"""What some models of a family have and the engine does not."""


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
    for name_ in _UNKNOWN:
        if config.get(name_):
            raise UnsupportedModelError(f"{name_} {shown(config[name_])} is not supported for {family}")
    layers, heads = fields.integer("num_hidden_layers", MOST_LAYERS), fields.integer("num_attention_heads", MOST_HEADS)
    hidden, vocabulary = fields.integer("hidden_size", MOST_WIDTH), fields.integer("vocab_size", MOST_TOKENS)
    head_dim = fields.integer("head_dim", MOST_WIDTH, hidden // heads)
    context = fields.integer("max_position_embeddings", MOST_TOKENS)
    full, local = _ropes(config, fields, known, head_dim, context)
    bos = fields.tokens("bos_token_id", vocabulary)
    sliding = _sliding(config, fields, known, layers)
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
        context=min(full.context, local.context),
        epsilon=fields.number("rms_norm_eps"),
        activation=_activation(config, known),
        scales=_scales(fields, known, hidden, head_dim),
        rope=full,
        sliding_rope=local,
        qkv_bias=known.qkv_bias,
        tied_head=fields.flag("tie_word_embeddings", False),
        layers_without_rope=_without_rope(config, fields, known, layers),
        sliding_window=fields.integer("sliding_window", MOST_TOKENS) if sliding else None,
        sliding_layers=sliding,
        bos=bos[0] if bos else None,
        eos=fields.tokens("eos_token_id", vocabulary),
    )


def _ropes(config: Mapping[str, Any], fields: Fields, known: Family, head_dim: int, context: int) -> tuple[Rope, Rope]:
    """The rotary positions of layers that see all tokens, and of those with a sliding window."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise fields.damaged("rope_scaling", "must be an object")
    if known.sliding_theta is None:
        found = _rope(scaling, fields, fields.number("rope_theta"), head_dim, context)
        return found, found
    by_kind = {kind: scaling[kind] for kind in ("full_attention", "sliding_attention") if scaling.get(kind)}
    if not all(isinstance(one, Mapping) for one in by_kind.values()):
        raise fields.damaged("rope_parameters", "must be objects by kinds of layers")
    full = by_kind.get("full_attention", {}) if by_kind else scaling
    local_theta = fields.number("rope_local_base_freq", known.sliding_theta)
    return (
        _rope(full, fields, fields.number("rope_theta"), head_dim, context),
        _rope(by_kind.get("sliding_attention", {}), fields, local_theta, head_dim, context),
    )


def _rope(scaling: Mapping[str, Any], fields: Fields, theta: float, head_dim: int, context: int) -> Rope:
    kind = str(scaling.get("rope_type", scaling.get("type", "default")))
    # Where the trained length is left out, it is the context.
    positions: dict[str, Any] = {"rope_theta": theta, "original_max_position_embeddings": context}
    outside = {name: fields.get(name) for name in ("partial_rotary_factor", "original_max_position_embeddings")}
    for values in (outside, scaling):
        positions |= {key: value for key, value in values.items() if value is not None}
    if fields.get("model_type") == "phi3" and kind in ("su", "yarn"):
        kind = "longrope"  # as its first files call it
    return rope(Fields(fields.file, positions), kind, head_dim, context)


def _activation(config: Mapping[str, Any], known: Family) -> Activation:
    name = "hidden_activation" if config.get("hidden_activation") else "hidden_act"
    given = config.get(name) or known.activation
    found = next((one for one in get_args(Activation) if one == given), None)
    if found is None:
        raise UnsupportedModelError(f"{name} {shown(given)} is not among {', '.join(get_args(Activation))}")
    return found


def _scales(fields: Fields, known: Family, hidden: int, head_dim: int) -> Scales:
    return Scales(
        embedding=math.sqrt(hidden) if known.root_embeddings else fields.number("embedding_multiplier", 1.0),
        softmax=fields.number("attention_multiplier", fields.number("query_pre_attn_scalar", head_dim) ** -0.5),
        residual=fields.number("residual_multiplier", 1.0),
        logits=1 / fields.number("logits_scaling", 1.0),
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


def _sliding(config: Mapping[str, Any], fields: Fields, known: Family, layers: int) -> tuple[int, ...]:
    """The layers with a sliding window."""
    # Sliding layers with positions of their own need a window: that it is missing is an error then.
    without = fields.get("sliding_window") is None and known.sliding_theta is None
    if without or config.get("use_sliding_window") is False:
        return ()
    kinds = config.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list | tuple) or len(kinds) != layers:
            raise fields.damaged("layer_types", f"must be a list of {layers}")
        return tuple(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")
    if known.sliding == "last":
        if not config.get("use_sliding_window"):
            return ()
        return tuple(range(fields.integer("max_window_layers", MOST_LAYERS, 28), layers))
    if isinstance(known.sliding, int):
        every = fields.integer("sliding_window_pattern", MOST_LAYERS, known.sliding)
        return tuple(layer for layer in range(layers) if (layer + 1) % every)
    return tuple(range(layers)) if known.sliding == "all" else ()
