"""A frozen model's weights in the engine's layout, and the engine over them."""

import ctypes
import os
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from solm.errors import SolmError, UnsupportedModelError
from solm.models.families import decoder_layers
from solm.native.library import Sizes, library
from solm.semantics import Semantics

PAGE, MOST_QUERIES = 16, 32
PRECISIONS = ("float32", "bfloat16", "int8", "int4")
SCREENED = "-screened"
"""After int8 or int4: logits from half the bits of the head, then exactly those that come near the largest."""
GROUP = 32
"""Input channels of a packed matrix that share a step and a lowest value, as in GGUF's Q4_0 and Q4_1."""
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")


def why_not(model: PreTrainedModel, semantics: Semantics) -> str | None:
    """The reason why this model under these semantics cannot run on the native backend; None if it can."""
    config: Any = model.config.get_text_config(decoder=True)
    if config.model_type not in FAMILIES:
        return f"family {config.model_type!r} is not among {', '.join(FAMILIES)}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "sliding-window layers are not supported"
    if getattr(config, "attention_bias", False) and config.model_type == "llama":
        return "attention biases are not supported for llama"
    if config.hidden_act != "silu" or getattr(config, "mlp_bias", False):
        return "only SiLU-gated MLPs without biases are supported"
    if getattr(config, "no_rope_layers", None) is not None and not all(config.no_rope_layers):
        return "layers without rotary positions are not supported"
    if config.num_attention_heads // config.num_key_value_heads > MOST_QUERIES:
        return f"more than {MOST_QUERIES} query heads share a KV head"
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim % 16:
        return f"its head dimension {head_dim} is not a multiple of 16"
    if next(model.parameters()).device.type != "cpu":
        return "it runs on the CPU only"
    if semantics.criterion != "pages" or semantics.page_size != PAGE or semantics.window < PAGE:
        return f"it needs pages of {PAGE} tokens and a window of at least a page"
    if semantics.select_per != "kv_head" or semantics.keep_ties:
        return "it selects exactly the budgeted pages per KV head"
    if semantics.mlp_site == "gate-first" or semantics.bits_site != "input":
        return "it supports the MLP sites input and hidden, and bits at the input"
    return None


class Matrix:
    """A weight matrix [out, in] in the engine's layout, input-major [in, out] unless `output_major`, per-output scales
    where it is int8.

    With precision int4 a matrix whose weights lie on a grid of 4 bits is packed, exactly; any other is int8.
    """

    def __init__(self, weight: torch.Tensor, precision: str, output_major: bool = False):
        self.scale: torch.Tensor | None = None
        self.grid: torch.Tensor | None = None
        if precision == "int4" and not output_major:
            packed = pack(weight.detach())
            if packed is not None:
                self.data, self.grid = packed
                return
        weight = weight.detach().float()
        if precision in ("int8", "int4"):
            scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            weight, self.scale = (weight / scale).round(), scale[:, 0].contiguous()
        if self.scale is not None and not output_major:
            self.data = _in_blocks((weight + 128).to(torch.uint8).T)
            return
        stored = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(precision, torch.int8)
        weight = weight.to(stored)
        self.data = (weight if output_major else weight.T).contiguous()

    @property
    def room(self) -> int:
        """Bytes, up to the next cache line."""
        return -(-self.data.nbytes // 64) * 64

    def move(self, address: int) -> None:
        """Live at `address` from now on."""
        memory = (ctypes.c_char * self.data.nbytes).from_address(address)
        there = torch.frombuffer(memory, dtype=self.data.dtype).view(self.data.shape)
        self.data = there.copy_(self.data)

    @property
    def pointers(self) -> tuple[int, int, int]:
        """Addresses of data, scale and grid; 0 for what there is none of."""
        scale, grid = (0 if part is None else part.data_ptr() for part in (self.scale, self.grid))
        return self.data.data_ptr(), scale, grid


class Plane(Matrix):
    """The high four bits of an int8 matrix [out, in], output-major, as numbers from 0 to 15: [out, in / 2] bytes."""

    def __init__(self, matrix: Matrix):
        self.scale = self.grid = None
        inputs = matrix.data.shape[1]
        if inputs % 64:
            raise UnsupportedModelError(f"a screened head needs a hidden size that is a multiple of 64, not {inputs}")
        self.data = _numbers(((matrix.data >> 4) + 8).to(torch.uint8))


def pack(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Weights [out, in] that lie on grids of 16 values, one for 32 inputs of an output: bytes [in, out / 2] and grids
    [in / 32, 2, out] float16 (step, lowest value) in the engine's layout. None for any other weights.

    GGUF's Q4_0 and Q4_1 are such grids. What the dtype of `weight` has rounded away is forgiven, nothing else.
    """
    out, inputs = weight.shape
    if inputs % GROUP or out % 64:
        return None
    groups = weight.float().unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    allowed = 2 * torch.finfo(weight.dtype).eps * groups.abs().amax(-1, keepdim=True) + 1e-12
    step, found = torch.zeros_like(low), high == low
    # The extreme values are on the grid; how many steps lie between them is not known.
    for steps in range(15, 0, -1):
        guess = ((high - low) / steps).clamp(min=1e-30)
        off = (groups - low - ((groups - low) / guess).round() * guess).abs().amax(-1, keepdim=True)
        fits = ~found & (off <= allowed)
        step, found = torch.where(fits, guess, step), found | fits
    if not bool(found.all()):
        return None
    numbers = ((groups - low) / step.clamp(min=1e-30)).round().clamp(0, 15).to(torch.uint8).flatten(1)
    grid = torch.stack([step[..., 0].T, low[..., 0].T], 1).to(torch.float16)
    blocks = _in_blocks(numbers.T)
    whole = out // 128 * 128
    pairs = blocks[:, :whole].unflatten(1, (-1, 2, 64)).transpose(1, 2)
    single = blocks[:, whole:].unflatten(1, (2, -1)).transpose(0, 1)
    halves = [torch.cat([pairs[:, half].flatten(1), single[half]], 1) for half in (0, 1)]
    return (halves[0] + halves[1] * 16).contiguous(), grid.contiguous()


def _in_blocks(bytes_: torch.Tensor) -> torch.Tensor:
    """Bytes [in, out] in the order of integers.h, with zeros up to a whole block of 64 outputs."""
    padded = torch.nn.functional.pad(bytes_, (0, -bytes_.shape[1] % 64))
    return padded.unflatten(1, (-1, 4, 4, 4)).transpose(2, 3).flatten(1).contiguous()


def _numbers(numbers: torch.Tensor) -> torch.Tensor:
    """Numbers of 4 bits [rows, n], n a multiple of 64, as the bytes [rows, n / 2] that the engine's `Numbers` reads."""
    whole = numbers.shape[1] // 128 * 128
    parts = [
        _words(numbers[:, :whole].unflatten(1, (-1, 8, 16)), torch.int32),
        _words(numbers[:, whole:].unflatten(1, (-1, 4, 16)), torch.int16),
    ]
    return torch.cat(parts, 1).contiguous()


def _words(numbers: torch.Tensor, word: torch.dtype) -> torch.Tensor:
    """Numbers [in, blocks, parts, 16] as the bytes [in, ...] of words, one per lane, with part 0 in the lowest bits."""
    shifts = torch.arange(numbers.shape[2])[:, None] * 4
    words = (numbers.to(torch.int64) << shifts).sum(2)
    bits = torch.iinfo(word).bits
    signed = torch.where(words >= 1 << (bits - 1), words - (1 << bits), words).to(word)
    return signed.contiguous().view(torch.uint8).flatten(1)


class Engine:
    """The engine over a model's weights, which are copied into its layout.

    Raises `UnsupportedModelError` for a model or semantics that it cannot run, `SolmError` for a bad number of threads,
    a missing compiler or memory.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        semantics: Semantics,
        precision: str = "bfloat16",
        threads: int | None = None,
    ):
        reason = why_not(model, semantics)
        if reason is not None:
            raise UnsupportedModelError(f"the native backend cannot run this model: {reason}")
        stored, screened = precision.removesuffix(SCREENED), precision.endswith(SCREENED)
        known = (*PRECISIONS, *(name + SCREENED for name in PRECISIONS[2:]))
        if precision not in known:
            raise SolmError(f"unknown precision {precision!r}; choose one of {', '.join(known)}")
        cores = os.cpu_count() or 1
        threads = min(torch.get_num_threads(), cores) if threads is None else threads
        if not 1 <= threads <= cores:
            raise SolmError(f"threads {threads} is out of range: this machine has 1 to {cores}")
        self.library = library()
        config: Any = model.config.get_text_config(decoder=True)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.precision, self.head_dim, self.kv_heads = precision, head_dim, config.num_key_value_heads
        self.sizes = Sizes(
            config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads,
            config.num_key_value_heads, head_dim, config.vocab_size,
            PRECISIONS.index(stored), threads, config.rms_norm_eps,
        )  # fmt: skip
        self._kept: list[torch.Tensor] = []
        self._arena: int | None = None
        layers = [self._matrices(layer, stored) for layer in decoder_layers(model)]
        embedding: Any = model.get_input_embeddings().weight
        head: Any = model.get_output_embeddings().weight
        output = Matrix(head, stored, output_major=True)
        tied = embedding.data_ptr() == head.data_ptr()
        source = output if tied else Matrix(embedding, stored, output_major=True)
        plane = [Plane(output)] if screened else []
        self._place([part for layer in layers for part in layer] + plane + [output] + ([] if tied else [source]))
        pointers = []
        for layer, matrices in zip(decoder_layers(model), layers, strict=True):
            pointers += [value for matrix in matrices for value in matrix.pointers] + self._vectors(layer)
        table = (ctypes.c_void_p * len(pointers))(*(value or None for value in pointers))
        cosine, sine = self._rotary(model, config)
        base: Any = model.get_decoder()
        self.handle: int | None = self.library.solm_engine(
            ctypes.byref(self.sizes), table, source.pointers[0], source.pointers[1] or None, output.pointers[0],
            output.pointers[1] or None, plane[0].pointers[0] if plane else None,
            *(self._floats(values) for values in (base.norm.weight, cosine, sine)),
        )  # fmt: skip
        if not self.handle:
            raise SolmError("the native backend could not get the memory it needs")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.library.solm_engine_free(self.handle)
            self.handle = None
        if getattr(self, "_arena", None):
            self.library.solm_arena_free(self._arena)
            self._arena = None

    def _place(self, matrices: list[Matrix]) -> None:
        """Move all weights next to one another, in the order in which a step reads them."""
        self._arena = self.library.solm_arena(sum(matrix.room for matrix in matrices))
        if not self._arena:
            raise SolmError("the native backend could not get the memory for the model's weights")
        address: int = self.library.solm_arena_data(self._arena)
        for matrix in matrices:
            matrix.move(address)
            address += matrix.room
        self._matrices_kept = matrices  # their scales live here

    def _floats(self, values: torch.Tensor | None) -> int:
        """The address of `values` in float32; 0 for None."""
        if values is None:
            return 0
        kept = values.detach().float().contiguous()
        self._kept.append(kept)
        return kept.data_ptr()

    def _matrices(self, layer: nn.Module, stored: str) -> list[Matrix]:
        """A layer's matrices in the order of the engine: qkv, out, gate and up, down."""
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        qkv = torch.cat([part.weight for part in (attention.q_proj, attention.k_proj, attention.v_proj)])
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        weights = (qkv, attention.o_proj.weight, gate_up, mlp.down_proj.weight)
        return [Matrix(weight, stored) for weight in weights]

    def _vectors(self, layer: nn.Module) -> list[int]:
        """The addresses of a layer's norms and bias, 0 where there is none."""
        attention: Any = layer.self_attn
        norms: tuple[Any, ...] = (layer.input_layernorm, layer.post_attention_layernorm)
        norms += tuple(getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        biases = [part.bias for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
        weights = [None if norm is None else norm.weight for norm in norms]
        return [self._floats(weight) for weight in [*weights, None if biases[0] is None else torch.cat(biases)]]

    def _rotary(self, model: PreTrainedModel, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of every position [positions, D], from the model's own rotary module."""
        base: Any = model.get_decoder()
        positions = torch.arange(config.max_position_embeddings)[None]
        cosine, sine = base.rotary_emb(torch.zeros(1, 1, dtype=torch.float32), positions)
        return cosine[0], sine[0]


class Cache:
    """Keys and values of one row; `length` tokens are copied from `source`, if given."""

    def __init__(self, engine: Engine, capacity: int, source: "Cache | None" = None, length: int = 0):
        self.engine, self.capacity = engine, -(-max(capacity, 1) // PAGE) * PAGE
        handle = None if source is None else source.handle
        self.handle: int | None = engine.library.solm_cache(engine.handle, handle, length, self.capacity)
        if not self.handle:
            raise SolmError(f"no memory for a cache of {self.capacity} tokens")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.engine.library.solm_cache_free(self.handle)
            self.handle = None

    def fill(self, layer: int, position: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep keys and values [kv_heads, count, D] from `position` on."""
        keys, values = keys.float().contiguous(), values.float().contiguous()
        count = keys.shape[1]
        self.engine.library.solm_cache_fill(
            self.engine.handle, self.handle, layer, position, count, keys.data_ptr(), values.data_ptr()
        )
