"""Small GGUF files of any family and tensor type, and the engine's layout read back."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, RopeScalingType, quants
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as TensorType

from helpers.models import tiny_model
from helpers.weights import random_blocks as centred_blocks
from solm.backends.cpu import border
from solm.backends.cpu.files.layout import Form
from solm.backends.cpu.files.sources import FLOATS, QUANTISED, ROTATED, VECTORS, LoadedModel, Tensor, WeightSource
from solm.backends.cpu.files.spec import ModelSpec, Place
from solm.backends.cpu.library import library

WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 768,
    "head_dim": 64,
}
"""Sizes that every tensor type divides."""
_SCALES = {
    TensorType.Q4_0: (0,), TensorType.Q4_1: (0, 2), TensorType.Q5_0: (0,), TensorType.Q5_1: (0, 2),
    TensorType.Q8_0: (0,), TensorType.Q4_K: (0, 2), TensorType.Q5_K: (0, 2), TensorType.Q6_K: (208,),
    TensorType.Q2_K: (80, 82), TensorType.Q3_K: (108,), TensorType.IQ4_NL: (0,), TensorType.IQ4_XS: (0,),
    TensorType.MXFP4: (),
}  # fmt: skip
"""Where in a block its float16 scales are."""


def random_blocks(kind: TensorType, outputs: int, inputs: int, seed: int = 0) -> np.ndarray:
    """Rows of blocks [outputs, bytes] of random bytes, with scales as real files have them."""
    draw = np.random.default_rng(seed)
    values, size = GGML_QUANT_SIZES[kind]
    blocks = draw.integers(0, 256, (outputs * inputs // values, size), np.uint8)
    for place in _SCALES[kind]:
        scales = draw.uniform(0.001, 0.004, len(blocks)) * draw.choice([-1, 1], len(blocks))
        blocks[:, place : place + 2] = scales.astype(np.float16).view(np.uint8).reshape(-1, 2)
    if kind == TensorType.MXFP4:
        blocks[:, 0] = draw.integers(114, 126, len(blocks))
    return blocks.reshape(outputs, -1)


def encoded(weight: np.ndarray, kind: TensorType) -> np.ndarray:
    """A matrix in float32 as rows of blocks; of types that only llama.cpp can quantise to, random ones of its shape."""
    if kind in (TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K):
        return centred_blocks(kind, *weight.shape, seed=weight.size, deviation=0.05)
    return quants.quantize(weight, kind)


def write_gguf(
    path: Path,
    family: str,
    type_of: Callable[[str], TensorType] = lambda name: TensorType.F32,
    fields: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    **changes: Any,
) -> Any:
    """Write a tiny random model of `family` as its GGUF file, and give that model.

    type_of: the type of a matrix by our name of it, such as ``q`` or ``embedding``. fields, tensors: more of them,
    those in float32.
    """
    import torch

    model = tiny_model(family, torch.float32, **changes)
    source = LoadedModel(model)
    spec = source.spec
    writer = GGUFWriter(path, spec.description.architecture)
    positions = model.config.rope_parameters
    write_sizes(writer, spec, positions.get("full_attention", positions)["rope_theta"])
    if positions.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(positions["factor"])
        writer.add_rope_scaling_orig_ctx_len(positions["original_max_position_embeddings"])
    for key, value in (fields or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        (writer.add_uint32 if type(value) is int else add)(key, value)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    for layer in (None, *range(spec.layers)):
        for name, place in spec.places(layer).items():
            if name in place.fused[1:] and not place.of_experts:
                continue  # written with the first of them
            weight = stored_values(source, place, name, layer)
            if (spec.description.interleaved or spec.description.neighbours) and name in ROTATED:
                weight = interleaved(weight, spec.head_dim, 2 * len(spec.rope.inverse_frequencies))
            kind = TensorType.F32 if name.endswith(VECTORS) else type_of(name)
            rows = weight.reshape(-1, weight.shape[-1])
            blocks = weight if kind == TensorType.F32 else encoded(rows, kind).reshape(*weight.shape[:-1], -1)
            writer.add_tensor(place.gguf, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def stored_values(source: WeightSource, place: Place, name: str, layer: int | None) -> np.ndarray:
    """What a GGUF file has as one tensor: ours alone, fused with others, or of all experts."""
    if place.of_experts:
        return np.stack([source.tensor(name, layer, expert).floats() for expert in range(source.spec.experts)])
    return np.concatenate([source.tensor(part, layer).floats() for part in place.fused or (name,)])


def write_sizes(writer: GGUFWriter, spec: ModelSpec, theta: float) -> None:
    writer.add_name("tiny")
    writer.add_block_count(spec.layers)
    writer.add_context_length(spec.context)
    writer.add_embedding_length(spec.hidden)
    writer.add_feed_forward_length(spec.intermediate)
    if spec.experts:
        writer.add_expert_count(spec.experts)
        writer.add_expert_used_count(spec.experts_used)
        writer.add_expert_feed_forward_length(spec.intermediate)
        if spec.shares_normed != spec.description.shares_normed:
            writer.add_expert_weights_norm(spec.shares_normed)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    (writer.add_layer_norm_eps if spec.description.layer_norm else writer.add_layer_norm_rms_eps)(spec.epsilon)
    if spec.description.parallel:
        writer.add_parallel_residual(spec.parallel)
    if spec.shared:
        writer.add_expert_shared_feed_forward_length(spec.shared)
    writer.add_rope_freq_base(theta)
    writer.add_rope_dimension_count(2 * len(spec.rope.inverse_frequencies))
    scales = spec.scales
    for value, usual, add in (
        (scales.softmax, spec.head_dim**-0.5, writer.add_attention_scale),
        (scales.residual, 1, writer.add_residual_scale),
        (scales.logits if "logit_scale" in spec.description.gguf else 1 / scales.logits, 1, writer.add_logit_scale),
        (scales.attention_cap, 0, writer.add_attn_logit_softcapping),
        (scales.logit_cap, 0, writer.add_final_logit_softcapping),
        (scales.embedding, spec.hidden**0.5 if spec.description.root_embeddings else 1, writer.add_embedding_scale),
    ):
        if value != usual:
            add(value)
    if spec.sliding_window is not None:
        writer.add_sliding_window(spec.sliding_window)
        if len(spec.sliding_layers) < spec.layers:
            writer.add_sliding_window_pattern([layer in spec.sliding_layers for layer in range(spec.layers)])
    writer.add_token_list([f"token{index}" for index in range(spec.vocabulary)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def interleaved(weight: np.ndarray, head_dim: int, rotary: int) -> np.ndarray:
    """Rows in the order of llama.cpp's files: those that are rotated together, the first of a head, next to each
    other."""
    heads = weight.reshape(-1, head_dim, *weight.shape[1:]).copy()
    halves = heads[:, :rotary].reshape(-1, 2, rotary // 2, *weight.shape[1:])
    heads[:, :rotary] = halves.swapaxes(1, 2).reshape(heads[:, :rotary].shape)
    return heads.reshape(weight.shape)


def tensor_of(kind: TensorType, outputs: int, inputs: int, seed: int = 0, order: np.ndarray | None = None) -> Tensor:
    """A random matrix of any type."""
    if kind in FLOATS:
        values = np.random.default_rng(seed).normal(0, 0.05, (outputs, inputs)).astype(np.float32)
        blocks = values.view(np.uint8) if kind == TensorType.F32 else quants.quantize(values, kind).view(np.uint8)
    else:
        blocks = random_blocks(kind, outputs, inputs, seed)
    return Tensor(kind.name, kind, (outputs, inputs), np.ascontiguousarray(blocks).reshape(-1), order)


def values_of(tensor: Tensor) -> np.ndarray:
    """What gguf reads of a tensor, in order."""
    blocks = tensor.data.reshape(tensor.outputs, -1)
    values = blocks.view(np.float32) if tensor.type == TensorType.F32 else quants.dequantize(blocks, tensor.type)
    return values if tensor.row_order is None else values[tensor.row_order]


def repacked(
    tensors: list[Tensor], form: Form, threads: int = 2, built: ctypes.CDLL | None = None
) -> dict[str, np.ndarray]:
    """The parts of a matrix of several tensors, as the library writes them."""
    inputs, total, first = tensors[0].inputs, sum(tensor.outputs for tensor in tensors), 0
    parts = {name: np.zeros(size, np.uint8) for name, size in form.sizes(inputs, total).items()}
    addresses = [parts[name].ctypes.data if name in parts else None for name in ("data", "scale", "grid")]
    message = border.message()
    for tensor in tensors:
        order = None if tensor.row_order is None else tensor.row_order.ctypes.data
        code = (built or library()).solm_repack(
            tensor.type, tensor.data.ctypes.data, len(tensor.data), tensor.outputs, inputs, order, form.target, first,
            total, *addresses, threads, message,
        )  # fmt: skip
        assert not code, message.value
        first += tensor.outputs
    return parts


def read_packed(data: np.ndarray, inputs: int, outputs: int, bits: int) -> np.ndarray:
    """Numbers [outputs, inputs] of a packed matrix, byte by byte as csrc/structs.h says."""
    rows = data.reshape(inputs, -1).astype(int)
    found = np.zeros((outputs, inputs), int)
    low, blocks = bits - 4, outputs // 64
    for output in range(outputs):
        block, place = output // 64, output % 64
        byte = 16 * (place % 16 // 4) + 4 * (place // 16) + place % 4
        if block == blocks - 1 and blocks % 2:
            at, shift = block * 32 + byte % 32, byte // 32 * 4
        else:
            at, shift = block // 2 * 64 + byte, block % 2 * 4
        found[output] = rows[:, at] >> shift & 15
        if low:
            fields = 8 // low
            plane = rows[:, outputs // 2 + block // fields * 64 + byte]
            found[output] = found[output] << low | plane >> block % fields * low & (1 << low) - 1
    return found


def weights_of(numbers: np.ndarray, grid: np.ndarray, group: int, centre: int) -> np.ndarray:
    """Weights [outputs, inputs] of numbers and their grid [groups, 1 or 2, outputs] in float16."""
    step = grid[:, 0].T.astype(np.float64).repeat(group, 1)
    return step * numbers + (grid[:, 1].T.astype(np.float64).repeat(group, 1) if centre < 0 else -centre * step)


ALL_TYPES = (*FLOATS, *QUANTISED)
