"""A frozen model's weights in the engine's layout, and the engine over them."""

import ctypes
import os
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from solm.backends.cpu.library import Sizes, library
from solm.backends.cpu.weights import GROUP, INTEGERS, Head, Matrix, NestedMatrix
from solm.backends.torch.families import decoder_layers
from solm.core.errors import SolmError, UnsupportedModelError
from solm.core.sparsity import SparsityConfig

PAGE, MOST_QUERIES = 16, 32
PRECISIONS = ("float32", "bfloat16", "int8", "int4", "nested")
KV_CACHE_DTYPES = ("auto", "int8")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2")


def why_not(model: PreTrainedModel, sparsity: SparsityConfig) -> str | None:
    """The reason why this model under these sparsity cannot run on the cpu backend; None if it can."""
    weights = [parameter.data for parameter in model.parameters()]
    if any(type(weight) is not torch.Tensor or not weight.is_floating_point() for weight in weights):
        return "it quantises float weights by itself, and these are quantised already"
    if any(weight.device.type != "cpu" for weight in weights):
        return "it runs on the CPU only, with all weights in memory"
    return unsuited(model, sparsity)


def unsuited(model: PreTrainedModel, sparsity: SparsityConfig) -> str | None:
    """The same as far as the structure tells, whatever the weights are and wherever they lie."""
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
    """Raises `SolmError` for what no engine computes in."""
    if precision not in PRECISIONS:
        raise SolmError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if kv_cache_dtype not in KV_CACHE_DTYPES:
        raise SolmError(f"unknown KV cache dtype {kv_cache_dtype!r}; choose one of {', '.join(KV_CACHE_DTYPES)}")
    if kv_cache_dtype == "int8" and precision not in INTEGERS:
        raise SolmError(f"an int8 KV cache goes with precision {', '.join(INTEGERS)}, not {precision}")


def check_bits(sparsity: SparsityConfig, precision: str) -> None:
    """Raises `SolmError` where an action's bits are those of weights that the engine would read whole."""
    if sparsity.bits_site == "weights" and precision != "nested":
        raise SolmError(f"bits of weights need precision nested, not {precision}")


class Engine:
    """The engine over a model's weights, which are copied into its layout.

    kv_cache_dtype: ``auto`` holds keys and values in float32 beside float32 weights and in bfloat16 beside all others;
    ``int8``, with weights in int8, int4 or nested, in whole numbers with a scale per token and head, at half the size.
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
        self.library = library()
        config: Any = model.config.get_text_config(decoder=True)
        if precision == "nested" and (config.hidden_size % 64 or config.intermediate_size % GROUP):
            sizes = f"{config.hidden_size} and {config.intermediate_size}"
            raise UnsupportedModelError(f"nested weights need MLP sizes in multiples of 64 and {GROUP}, not {sizes}")
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.precision = precision
        embedding, kind = self._embedding(model)
        first: Any = decoder_layers(model)[0]
        norm = getattr(first.self_attn, "q_norm", None)
        self.sizes = Sizes(
            config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads,
            config.num_key_value_heads, head_dim, config.vocab_size,
            PRECISIONS.index(precision), kind, kv_cache_dtype == "int8", threads,
            not hasattr(first, "input_layernorm"), norm is not None and norm.weight.numel() > head_dim,
            config.rms_norm_eps,
        )  # fmt: skip
        self._kept: list[torch.Tensor] = [embedding]
        self._arena: int | None = None
        layers = [self._matrices(layer, precision) for layer in decoder_layers(model)]
        head = Head(model.get_output_embeddings().weight, precision)  # type: ignore[arg-type]
        self._place([part for layer in layers for part in layer] + [head])
        pointers = []
        for layer, matrices in zip(decoder_layers(model), layers, strict=True):
            pointers += [value for matrix in matrices for value in matrix.pointers] + self._vectors(layer)
        table = (ctypes.c_void_p * len(pointers))(*(value or None for value in pointers))
        cosine, sine = self._rotary(model, config)
        base: Any = model.get_decoder()
        self.handle: int | None = self.library.solm_engine(
            ctypes.byref(self.sizes), table, embedding.data_ptr(), (ctypes.c_void_p * 4)(*head.addresses),
            *(self._floats(values) for values in (base.norm.weight, cosine, sine)),
        )  # fmt: skip
        if not self.handle:
            raise SolmError("the cpu backend could not get the memory it needs")

    @property
    def name(self) -> str:
        """How it computes, such as ``native int8``."""
        return f"native {self.precision}" + (", int8 KV cache" if self.sizes.kv_bytes else "")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.library.solm_engine_free(self.handle)
            self.handle = None
        if getattr(self, "_arena", None):
            self.library.solm_arena_free(self._arena)
            self._arena = None

    @staticmethod
    def _embedding(model: PreTrainedModel) -> tuple[torch.Tensor, int]:
        """The model's own embeddings [V, H], and which of the engine's kinds they are."""
        weight: torch.Tensor = model.get_input_embeddings().weight.detach()  # type: ignore[assignment, operator]
        kinds = (torch.float32, torch.bfloat16, torch.float16)
        weight = (weight if weight.dtype in kinds else weight.float()).contiguous()
        return weight, kinds.index(weight.dtype)

    def _place(self, matrices: list[Matrix]) -> None:
        """Move all weights next to one another, in the order in which a step reads them."""
        self._arena = self.library.solm_arena(sum(matrix.room for matrix in matrices))
        if not self._arena:
            raise SolmError("the cpu backend could not get the memory for the model's weights")
        address: int = self.library.solm_arena_data(self._arena)
        for matrix in matrices:
            matrix.move(address)
            address += matrix.room
        self._matrices_kept = matrices  # what the engine reads belongs to them

    def _floats(self, values: torch.Tensor | None) -> int:
        """The address of `values` in float32; 0 for None."""
        if values is None:
            return 0
        kept = values.detach().float().contiguous()
        self._kept.append(kept)
        return kept.data_ptr()

    def _matrices(self, layer: nn.Module, precision: str) -> list[Matrix]:
        """A layer's matrices in the order of the engine: qkv, out, gate and up, down."""
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        qkv = torch.cat([part.weight for part in (attention.q_proj, attention.k_proj, attention.v_proj)])
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        inner = [Matrix(weight, precision) for weight in (qkv, attention.o_proj.weight)]
        kind = NestedMatrix if precision == "nested" else Matrix
        return inner + [kind(weight, precision) for weight in (gate_up, mlp.down_proj.weight)]

    def _vectors(self, layer: nn.Module) -> list[int]:
        """The addresses of a layer's norms and bias, 0 where there is none."""
        attention: Any = layer.self_attn
        names = ("input_layernorm", "post_attention_layernorm", "post_feedforward_layernorm")
        norms: tuple[Any, ...] = tuple(getattr(layer, name) for name in names if hasattr(layer, name))
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
    """Keys and values of one row, the first `length` tokens those of `source`, if given, sharing whole pages with it.

    Writing to what is shared makes a copy first, so that either goes on as if the other were not there."""

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
        failed = self.engine.library.solm_cache_fill(
            self.engine.handle, self.handle, layer, position, count, keys.data_ptr(), values.data_ptr()
        )
        if failed:
            raise SolmError(f"no memory for a cache of {self.capacity} tokens")
