"""The engine over a frozen model's weights, and the KV caches of its rows."""

import ctypes
import os
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from solm.backends.cpu import structs
from solm.backends.cpu.head import Head
from solm.backends.cpu.library import INVALID
from solm.backends.cpu.library import library as built
from solm.backends.cpu.structs import GROUP, MESSAGE, MOST_QUERIES, PAGE
from solm.backends.cpu.weights import INTEGERS, Matrix, Stored
from solm.backends.torch.families import decoder_layers
from solm.core.errors import DataError, SolmError, UnsupportedModelError
from solm.core.sparsity import SparsityConfig

PRECISIONS = ("float32", "bfloat16", "int8", "int4", "nested")
KV_CACHE_DTYPES = ("auto", "int8")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2")


def why_not(model: PreTrainedModel, sparsity: SparsityConfig) -> str | None:
    """The reason why the cpu backend cannot run this model under this sparsity; None if it can."""
    weights = [parameter.data for parameter in model.parameters()]
    if any(type(weight) is not torch.Tensor or not weight.is_floating_point() for weight in weights):
        return "it quantises float weights by itself, and these are quantised already"
    if any(weight.device.type != "cpu" for weight in weights):
        return "it runs on the CPU only, with all weights in memory"
    return unsuited(model, sparsity)


def unsuited(model: PreTrainedModel, sparsity: SparsityConfig) -> str | None:
    """The same as far as the model's configuration tells, without regard to its weights."""
    config: Any = model.config.get_text_config(decoder=True)
    if config.model_type not in FAMILIES:
        return f"family {config.model_type!r} is not among {', '.join(FAMILIES)}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "sliding-window layers are not supported"
    if getattr(config, "attention_bias", False) and config.model_type in ("llama", "olmo2"):
        return f"attention biases are not supported for {config.model_type}"
    if config.hidden_act != "silu" or getattr(config, "mlp_bias", False):
        return "only SiLU-gated MLPs without biases are supported"
    if getattr(config, "no_rope_layers", None) is not None and not all(config.no_rope_layers):
        return "layers without rotary positions are not supported"
    if config.num_attention_heads // config.num_key_value_heads > MOST_QUERIES:
        return f"more than {MOST_QUERIES} query heads share a KV head"
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim % 16:
        return f"its head dimension {head_dim} is not a multiple of 16"
    if sparsity.page_size != PAGE or sparsity.window < PAGE:
        return f"it needs pages of {PAGE} tokens and a window of at least a page"
    if sparsity.select_per != "kv_head" or sparsity.keep_ties:
        return "it selects exactly the budgeted pages per KV head"
    if sparsity.bits_site == "output":
        return "it supports bits of the input or of weights, not of the output"
    if sparsity.thresholds is not None:
        return "thresholds on channels need the torch backend"
    if sparsity.bits_site == "weights" and sparsity.bits_group != GROUP:
        return f"its nested weights share a grid in groups of {GROUP} channels"
    return None


def check_precision(precision: str, kv_cache_dtype: str = "auto") -> None:
    """Raises `SolmError` for a precision or a KV cache dtype that no engine has."""
    if precision not in PRECISIONS:
        raise SolmError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if kv_cache_dtype not in KV_CACHE_DTYPES:
        raise SolmError(f"unknown KV cache dtype {kv_cache_dtype!r}; choose one of {', '.join(KV_CACHE_DTYPES)}")
    if kv_cache_dtype == "int8" and precision not in INTEGERS:
        raise SolmError(f"an int8 KV cache goes with precision {', '.join(INTEGERS)}, not {precision}")


def check_bits(sparsity: SparsityConfig, precision: str) -> None:
    """Raises `SolmError` where an action's bits are those of weights, and the weights are not nested."""
    if sparsity.bits_site == "weights" and precision != "nested":
        raise SolmError(f"bits of weights need precision nested, not {precision}")


def error_of(code: int, message: ctypes.Array[ctypes.c_char]) -> SolmError:
    """The exception for what a function of the library returned and wrote."""
    return (DataError if code == INVALID else SolmError)(message.value.decode())


class Engine:
    """The engine over a model's weights, which are copied into its layout.

    threads: None for as many as torch uses. kv_cache_dtype: ``auto`` holds keys and values in float32 beside float32
    weights and in bfloat16 beside all others; ``int8``, with weights in int8, int4 or nested, in int8 with a scale per
    token and head, at half the size of bfloat16. library: of `solm.backends.cpu.library.library`, for another build.
    Raises `UnsupportedModelError` for a model or sparsity that it cannot run, `SolmError` for a bad precision, dtype
    or number of threads, a missing compiler or memory.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sparsity: SparsityConfig,
        precision: str = "bfloat16",
        threads: int | None = None,
        kv_cache_dtype: str = "auto",
        library: ctypes.CDLL | None = None,
    ):
        reason = why_not(model, sparsity)
        if reason is not None:
            raise UnsupportedModelError(f"the cpu backend cannot run this model: {reason}")
        check_precision(precision, kv_cache_dtype)
        check_bits(sparsity, precision)
        cores = os.cpu_count() or 1
        threads = min(torch.get_num_threads(), cores) if threads is None else threads
        if not 1 <= threads <= cores:
            raise SolmError(f"threads {threads} is out of range: this machine has 1 to {cores}")
        config: Any = model.config.get_text_config(decoder=True)
        if precision == "nested" and (config.hidden_size % 64 or config.intermediate_size % GROUP):
            sizes = f"{config.hidden_size} and {config.intermediate_size}"
            raise UnsupportedModelError(f"nested weights need MLP sizes in multiples of 64 and {GROUP}, not {sizes}")
        self.library = built() if library is None else library
        self.precision = precision
        self._kept: list[torch.Tensor] = []  # what the engine reads of the model
        self._arena: int | None = None
        self.handle: int | None = None
        described = self._describe(model, threads, kv_cache_dtype)
        made, message = ctypes.c_void_p(), ctypes.create_string_buffer(MESSAGE)
        code = self.library.solm_engine(ctypes.byref(described), ctypes.byref(made), message)
        if code == INVALID:
            raise UnsupportedModelError(f"the cpu backend cannot run this model: {message.value.decode()}")
        if code:
            raise error_of(code, message)
        self.handle = made.value
        self.sizes: structs.Sizes = described.sizes

    @property
    def name(self) -> str:
        """How it computes, such as ``cpu int8``."""
        return f"cpu {self.precision}" + (", int8 KV cache" if self.sizes.kv_int8 else "")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.library.solm_engine_free(self.handle)
            self.handle = None
        if getattr(self, "_arena", None):
            self.library.solm_arena_free(self._arena)
            self._arena = None

    def _describe(self, model: PreTrainedModel, threads: int, kv_cache_dtype: str) -> structs.Model:
        """The model with its weights in the engine's layout."""
        config: Any = model.config.get_text_config(decoder=True)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        base: Any = model.get_decoder()
        blocks: Any = decoder_layers(model)
        norm = getattr(blocks[0].self_attn, "q_norm", None)
        embedding, kind = self._embedding(model)
        frequencies, rotary_scale = base.rotary_emb.inv_freq, base.rotary_emb.attention_scaling
        matrices = [self._matrices(block) for block in blocks]
        head = Head.of(model.get_output_embeddings().weight, self.precision)  # type: ignore[arg-type]
        self._place([*(matrix for layer in matrices for parts in layer.values() for matrix in parts), head])
        layers = (structs.Layer * len(matrices))()
        for layer, block, parts in zip(layers, blocks, matrices, strict=True):
            values = {
                name: structs.product(*(part.struct for part in found)) for name, found in parts.items()
            } | self._vectors(block)
            for name, value in values.items():
                setattr(layer, name, value)
        sizes = structs.Sizes(
            layers=len(matrices),
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            vocabulary=config.vocab_size,
            positions=config.max_position_embeddings,
            precision=0 if self.precision == "float32" else 1 if self.precision == "bfloat16" else 2,
            embedding=kind,
            kv_int8=kv_cache_dtype == "int8",
            threads=threads,
            norms_after=not hasattr(blocks[0], "input_layernorm"),
            whole_norms=norm is not None and norm.weight.numel() > head_dim,
            rotary=2 * len(frequencies),
            epsilon=config.rms_norm_eps,
        )
        return structs.Model(
            sizes=sizes,
            layers=layers,
            embedding=embedding.data_ptr(),
            head=head.struct,
            final_norm=self._floats(base.norm.weight),
            frequencies=self._floats(frequencies),
            rotary_scale=rotary_scale,
        )

    def _embedding(self, model: PreTrainedModel) -> tuple[torch.Tensor, int]:
        """The model's own embeddings [V, H], and the engine's number of their dtype."""
        weight: torch.Tensor = model.get_input_embeddings().weight.detach()  # type: ignore[assignment, operator]
        kinds = (torch.float32, torch.bfloat16, torch.float16)
        weight = (weight if weight.dtype in kinds else weight.float()).contiguous()
        self._kept.append(weight)
        return weight, kinds.index(weight.dtype)

    def _place(self, matrices: list[Stored]) -> None:
        """Move all weights next to one another, in the order in which a step reads them."""
        self._arena = self.library.solm_arena(sum(matrix.room for matrix in matrices))
        if not self._arena:
            raise SolmError("no memory for the model's weights in the layout of the cpu backend")
        address: int = self.library.solm_arena_data(self._arena)
        for matrix in matrices:
            matrix.move(address)
            address += matrix.room
        self._matrices_kept = matrices

    def _floats(self, values: torch.Tensor | None) -> int | None:
        """The address of a copy of `values` in float32; None for None."""
        if values is None:
            return None
        kept = values.detach().float().contiguous()
        self._kept.append(kept)
        return kept.data_ptr()

    def _matrices(self, layer: nn.Module) -> dict[str, list[Matrix]]:
        """A layer's matrices by their names in `structs.Layer`."""
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        qkv = torch.cat([part.weight for part in (attention.q_proj, attention.k_proj, attention.v_proj)])
        gate_up, down = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), mlp.down_proj.weight
        nested = self.precision == "nested"
        return {
            "qkv": [Matrix.of(qkv, self.precision)],
            "out": [Matrix.of(attention.o_proj.weight, self.precision)],
            "gate_up": [Matrix.nested(gate_up) if nested else Matrix.of(gate_up, self.precision)],
            "down": [Matrix.nested(down) if nested else Matrix.of(down, self.precision)],
        }

    def _vectors(self, layer: nn.Module) -> dict[str, int | None]:
        """The addresses of a layer's norms and bias by their names in `structs.Layer`."""
        attention: Any = layer.self_attn
        names = ("input_layernorm", "post_attention_layernorm", "post_feedforward_layernorm")
        before, after = (getattr(layer, name) for name in names if hasattr(layer, name))
        norms = {"attention_norm": before, "mlp_norm": after}
        norms.update((name, getattr(attention, name, None)) for name in ("q_norm", "k_norm"))
        vectors = {name: self._floats(None if norm is None else norm.weight) for name, norm in norms.items()}
        biases = [part.bias for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
        vectors["rotates"] = True
        vectors["qkv_bias"] = self._floats(None if biases[0] is None else torch.cat(biases))
        return vectors


class Cache:
    """Keys and values of one row, with the first `length` tokens of `source`, if given, whose whole pages it shares.

    Writing to shared pages makes a copy first, so that neither row sees what the other writes. Raises `SolmError`
    without memory, `DataError` for a length or capacity that is out of range and for a source of another engine.
    """

    def __init__(self, engine: Engine, capacity: int, source: "Cache | None" = None, length: int = 0):
        self.engine, self.capacity = engine, -(-max(capacity, 1) // PAGE) * PAGE
        made, message = ctypes.c_void_p(), ctypes.create_string_buffer(MESSAGE)
        held = None if source is None else source.handle
        code = engine.library.solm_cache(engine.handle, held, length, self.capacity, ctypes.byref(made), message)
        if code:
            raise error_of(code, message)
        self.handle: int | None = made.value

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.engine.library.solm_cache_free(self.handle)
            self.handle = None

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and bounds that `capacity` tokens take."""
        sizes = self.engine.sizes
        number = 4 if sizes.precision == 0 else 1 if sizes.kv_int8 else 2
        return 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * self.capacity * number

    def fill(self, layer: int, position: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write keys and values [kv_heads, count, D] of one layer from `position` on.

        Raises `DataError` for shapes, layers and positions that do not fit, `SolmError` without memory.
        """
        sizes, count = self.engine.sizes, keys.shape[1]
        if keys.shape != values.shape or keys.shape != (sizes.kv_heads, count, sizes.head_dim):
            wanted = [sizes.kv_heads, count, sizes.head_dim]
            raise DataError(f"keys and values must be {wanted}, got {list(keys.shape)} and {list(values.shape)}")
        keys, values = keys.float().contiguous(), values.float().contiguous()
        message = ctypes.create_string_buffer(MESSAGE)
        code = self.engine.library.solm_cache_fill(
            self.engine.handle, self.handle, layer, position, count, keys.data_ptr(), values.data_ptr(), message
        )
        if code:
            raise error_of(code, message)
