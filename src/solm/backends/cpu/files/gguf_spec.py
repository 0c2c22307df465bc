"""A model's description from the header of its GGUF file."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solm.backends.cpu.files.families import FAMILIES, MODEL, Family
from solm.backends.cpu.files.fields import Fields, shown
from solm.backends.cpu.files.rope import Rope, rope
from solm.backends.cpu.files.spec import MOST_HEADS, MOST_LAYERS, MOST_TOKENS, MOST_WIDTH, ModelSpec, Scales
from solm.backends.gguf_header import GgufHeader
from solm.core.errors import DamagedFileError, UnsupportedModelError


def from_gguf(header: GgufHeader) -> ModelSpec:
    """The description in the header of a GGUF file. Raises as
    `solm.backends.cpu.files.config_spec.from_config` does."""
    known = next((name for name, family in FAMILIES.items() if family.architecture == header.family), None)
    if known is None:
        names = dict.fromkeys(family.architecture for family in FAMILIES.values())
        raise UnsupportedModelError(f"GGUF architecture {shown(header.family)} is not among {', '.join(names)}")
    fields = Fields(header.path, header.metadata, f"{header.family}.")
    tensors = {tensor.name: tensor for tensor in header.tensors}
    embedding = tensors.get(MODEL["embedding"].gguf)
    if embedding is None or len(embedding.shape) != 2:
        raise fields.damaged(MODEL["embedding"].gguf, "it is missing" if embedding is None else "it is not a matrix")
    vocabulary = embedding.shape[1]
    if not 1 <= vocabulary <= MOST_TOKENS or vocabulary < (header.vocabulary or 0):
        raise fields.damaged(MODEL["embedding"].gguf, f"{vocabulary} rows for {header.vocabulary} tokens")
    layers = fields.integer("block_count", MOST_LAYERS)
    heads, hidden = fields.integer("attention.head_count", MOST_HEADS), fields.integer("embedding_length", MOST_WIDTH)
    head_dim = fields.integer("attention.key_length", MOST_WIDTH, hidden // heads)
    if fields.integer("attention.value_length", MOST_WIDTH, head_dim) != head_dim:
        raise UnsupportedModelError("keys and values of different dimensions are not supported")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if fields.get(name):
            raise UnsupportedModelError(f"{fields.prefix}{name} {shown(fields.get(name))} is not supported")
    family = FAMILIES[known]
    full, local = _ropes(header, fields, family, head_dim)
    window = fields.get("attention.sliding_window")
    special = Fields(header.path, header.metadata, "tokenizer.ggml.")
    bos, eos = special.tokens("bos_token_id", vocabulary), special.tokens("eos_token_id", vocabulary)
    every = family.no_rope_interval
    return ModelSpec(
        file=header.path,
        family=known,
        name=str(header.metadata.get("general.name", header.path.stem)),
        layers=layers,
        hidden=hidden,
        intermediate=fields.integer("feed_forward_length", MOST_WIDTH),
        heads=heads,
        kv_heads=fields.integer("attention.head_count_kv", MOST_HEADS, heads),
        head_dim=head_dim,
        vocabulary=vocabulary,
        context=min(full.context, local.context),
        epsilon=fields.number("attention.layer_norm_rms_epsilon"),
        activation=family.activation,
        scales=_scales(fields, family, layers, hidden, heads, head_dim),
        rope=full,
        sliding_rope=local,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        tied_head=MODEL["head"].gguf not in tensors,
        layers_without_rope=() if every is None else tuple(range(every - 1, layers, every)),
        sliding_window=fields.integer("attention.sliding_window", MOST_TOKENS) if window else None,
        sliding_layers=_sliding(fields, family, layers) if window else (),
        bos=bos[0] if bos else None,
        eos=tuple(dict.fromkeys(eos + special.tokens("eot_token_id", vocabulary))),
    )


def _scales(fields: Fields, family: Family, layers: int, hidden: int, heads: int, head_dim: int) -> Scales:
    """Files of gemma3 have no scale of attention: by llama.cpp's rule it is another one in the model of 62 layers."""
    dim = hidden // heads if family.architecture == "gemma3" and layers == 62 else head_dim
    return Scales(
        embedding=math.sqrt(hidden) if family.root_embeddings else fields.number("embedding_scale", 1.0),
        softmax=fields.number("attention.scale", dim**-0.5),
        residual=fields.number("residual_scale", 1.0),
        logits=1 / fields.number("logit_scale", 1.0),
    )


def _sliding(fields: Fields, family: Family, layers: int) -> tuple[int, ...]:
    """The layers with a window, of a model that has one."""
    pattern = fields.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        if len(pattern) != layers:
            raise fields.damaged("attention.sliding_window_pattern", f"must be a list of {layers}")
        return tuple(layer for layer, slides in enumerate(pattern) if slides)
    if not isinstance(family.sliding, int):
        return tuple(range(layers))
    every = fields.integer("attention.sliding_window_pattern", MOST_LAYERS, family.sliding)
    return tuple(layer for layer in range(layers) if (layer + 1) % every)


def _ropes(header: GgufHeader, fields: Fields, family: Family, head_dim: int) -> tuple[Rope, Rope]:
    """The rotary positions of layers that see all tokens, and of those with a sliding window, which are not scaled
    where they have a base of their own."""
    full = _gguf_rope(header, fields, float(family.defaults.get("rope_theta", 10_000.0)), head_dim)
    if family.sliding_theta is None:
        return full, full
    local = {"rope_theta": fields.number("rope.freq_base_swa", family.sliding_theta)}
    return full, rope(Fields(header.path, local), "default", head_dim, full.context)


def _gguf_rope(header: GgufHeader, fields: Fields, theta: float, head_dim: int) -> Rope:
    """The frequencies of a GGUF file: from its metadata, and from the divisors that it has as tensors."""
    context = fields.integer("context_length", MOST_TOKENS)
    short = _divisors(header, "rope_factors_short.weight")
    kind = fields.get("rope.scaling.type") or ("none" if short is None else "longrope")
    parameters: dict[str, Any] = {
        "rope_theta": fields.number("rope.freq_base", theta),
        "partial_rotary_factor": fields.integer("rope.dimension_count", head_dim, head_dim) / head_dim,
        "original_max_position_embeddings": fields.integer(
            "rope.scaling.original_context_length", MOST_TOKENS, context
        ),
        "factor": fields.get("rope.scaling.factor"),
        "beta_fast": fields.get("rope.scaling.yarn_beta_fast"),
        "beta_slow": fields.get("rope.scaling.yarn_beta_slow"),
        "attention_factor": fields.get("rope.scaling.attn_factor"),
        "short_factor": short,
    }
    if kind == "yarn" and parameters["attention_factor"] not in (None, 1.0):
        raise UnsupportedModelError("YaRN with an attention factor of its own is not supported")
    given = {name: value for name, value in parameters.items() if value is not None}
    if kind == "yarn":
        given.pop("attention_factor", None)
    found = rope(Fields(header.path, given), "default" if kind == "none" else str(kind), head_dim, context)
    divisors = _divisors(header, "rope_freqs.weight")
    if divisors is None:
        return found
    values = Fields(header.path, {"rope_freqs.weight": divisors}).numbers(
        "rope_freqs.weight", len(found.inverse_frequencies)
    )
    scaled = (found.inverse_frequencies / np.array(values, np.float32)).astype(np.float32)
    return Rope(scaled, found.scaling, found.context)


def _divisors(header: GgufHeader, name: str) -> list[float] | None:
    """A small tensor of floats; None where the file has none."""
    tensor = next((tensor for tensor in header.tensors if tensor.name == name), None)
    if tensor is None:
        return None
    if tensor.type != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > MOST_WIDTH:
        raise DamagedFileError(f"{header.path} is damaged: {name}: {tensor.type} {tensor.shape} is no row of F32")
    values: NDArray[np.float32] = np.fromfile(header.path, np.float32, tensor.shape[0], offset=tensor.offset)
    return [float(value) for value in values]
