"""The engine over a frozen model's weights."""

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args
from weakref import WeakKeyDictionary

import numpy as np
from gguf.constants import GGMLQuantizationType as TensorType

from solm.backends.cpu import border
from solm.backends.cpu.border import GROUP, MOST_QUERIES, PAGE
from solm.backends.cpu.files.layout import FLOATS, MLP, PRECISIONS, Part, layout_of, names_of, with_stored_bits
from solm.backends.cpu.files.repack import Progress, bfloat16, dequantise, head_at, vector
from solm.backends.cpu.files.rope import Rope
from solm.backends.cpu.files.sources import Tensor, WeightSource
from solm.backends.cpu.files.spec import Activation, ModelSpec
from solm.backends.cpu.files.weight_cache import load_weights
from solm.backends.cpu.library import library as built
from solm.backends.machine import check_threads, default_threads
from solm.core.arrays import AnyArray, as_numpy, in_kind
from solm.core.cost import ModelShapes
from solm.core.errors import DataError, SolmError, UnsupportedModelError
from solm.core.sparsity import SparsityConfig
from solm.policies.schedules import Static
from solm.policies.value_policy import ValuePolicy

VALUE_BITS = {"auto": 0, "int8": 8, "int8-int4": 4}
"""Bits of values by the dtype of a KV cache, whose keys have 8; 0: keys and values are floats."""


def unsuited(spec: ModelSpec, sparsity: SparsityConfig) -> str | None:
    """The reason why the engine cannot run this model under this sparsity; None if it can."""
    if spec.heads // spec.kv_heads > MOST_QUERIES:
        return f"more than {MOST_QUERIES} query heads share a KV head"
    if spec.head_dim % 16:
        return f"its head dimension {spec.head_dim} is not a multiple of 16"
    if sparsity.page_size != PAGE or sparsity.window < PAGE:
        return f"it needs pages of {PAGE} tokens and a window of at least a page"
    if sparsity.select_per != "kv_head" or sparsity.keep_ties:
        return "it selects exactly the budgeted pages per KV head"
    if sparsity.mlp_site == "experts" and not spec.experts:
        return "a share of the experts needs a mixture of them"
    if sparsity.bits_site == "output":
        return "it supports bits of the input or of weights, not of the output"
    if sparsity.bits_site == "weights" and sparsity.bits_group != GROUP:
        return f"its nested weights share a grid in groups of {GROUP} channels"
    return None


def shapes_of(spec: ModelSpec) -> ModelShapes:
    """A model's sizes, as costs need them."""
    return ModelShapes(
        layers=spec.layers, hidden=spec.hidden, intermediate=spec.intermediate, heads=spec.heads,
        kv_heads=spec.kv_heads, head_dim=spec.head_dim, vocabulary=spec.vocabulary,
        gated=spec.description.gated, experts_used=max(spec.experts_used, 1), shared=spec.shared,
    )  # fmt: skip


def check_precision(precision: str, kv_cache_dtype: str = "auto") -> None:
    """Raises `SolmError` for a precision or a KV cache dtype that no engine has."""
    if precision not in PRECISIONS:
        raise SolmError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if kv_cache_dtype not in VALUE_BITS:
        raise SolmError(f"unknown KV cache dtype {kv_cache_dtype!r}; choose one of {', '.join(VALUE_BITS)}")
    if VALUE_BITS[kv_cache_dtype] and precision in FLOATS:
        others = ", ".join(name for name in PRECISIONS if name not in FLOATS)
        raise SolmError(f"an {kv_cache_dtype} KV cache goes with precision {others}, not {precision}")


@dataclass(frozen=True)
class PageMemory:
    """What the KV caches of an engine hold: pages, and tiles of the bounds of 16 pages' keys; and the bytes of one."""

    pages: int
    tiles: int
    page_bytes: int
    tile_bytes: int

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return self.pages * self.page_bytes + self.tiles * self.tile_bytes


class Engine:
    """The engine over a source's weights, which are repacked into memory of its own.

    threads: None for `default_threads`. kv_cache_dtype: ``auto`` holds keys and values in float32 beside float32
    weights and in bfloat16 beside all others; ``int8``, with weights in integers, in int8 with a scale per token and
    head, at half the size of bfloat16; ``int8-int4`` likewise, with values in 4 bits. library: of
    `solm.backends.cpu.library.library`, for another build. progress: called with how many of how many parts are
    repacked. Raises `UnsupportedModelError` for a model or sparsity that it
    cannot run, `DamagedFileError` for weights that cannot be, `SolmError` for a bad precision, dtype or number of
    threads, or where there is no compiler or memory.
    """

    def __init__(
        self,
        source: WeightSource,
        sparsity: SparsityConfig,
        precision: str = "auto",
        threads: int | None = None,
        kv_cache_dtype: str = "auto",
        progress: Progress | None = None,
        library: ctypes.CDLL | None = None,
    ):
        self.source, self.spec, self.precision, self.kv_cache_dtype = source, source.spec, precision, kv_cache_dtype
        reason = unsuited(source.spec, sparsity)
        if reason is not None:
            raise UnsupportedModelError(f"the cpu backend cannot run this model: {reason}")
        check_precision(precision, kv_cache_dtype)
        self.threads = threads = min(default_threads(), os.cpu_count() or 1) if threads is None else threads
        check_threads(threads)
        self.library = built() if library is None else library
        self.handle: int | None = None
        self.layout = layout_of(source, precision)
        self.check(sparsity)
        self._kept: list[Any] = []  # what the engine reads and does not own
        described = self._describe(threads, kv_cache_dtype, progress)
        made, message = ctypes.c_void_p(), border.message()
        code = self.library.solm_engine(ctypes.byref(described), ctypes.byref(made), message)
        try:
            border.check(code, message)
        except DataError as error:
            raise UnsupportedModelError(f"the cpu backend cannot run this model: {error}") from None
        self.handle = made.value
        self.sizes = described.sizes
        self.shapes = with_stored_bits(
            shapes_of(self.spec), self.layout, precision == "float32", VALUE_BITS[kv_cache_dtype]
        )
        self.deciders: WeakKeyDictionary[ValuePolicy | Static, Any] = WeakKeyDictionary()
        """What rows' records of this engine point to, see `solm.backends.cpu.call.decider_of`."""

    def check(self, sparsity: SparsityConfig) -> None:
        """Raises `SolmError` where the bits of an action are those of weights that cannot be read in part."""
        forms = [part.form for _, part in self.layout.parts() if part.tensors[0] in ("gate", "up", "down")]
        if sparsity.bits_site == "weights" and any(form.numbers is None for form in forms):
            if self.precision == "nested":
                raise SolmError("bits of weights need precision nested, and MLP sizes in multiples of 64")
            raise SolmError(f"bits of weights need precision nested or a file's own 4 to 8 bits, not {self.precision}")

    @property
    def name(self) -> str:
        """What its weights are stored in, such as ``cpu int8`` or ``cpu 5, 4, 6 and 8 bits``."""
        forms = list(self.layout.forms())
        numbers = [form.removesuffix(" bits") for form in forms if form.endswith(" bits")]
        others = [form for form in forms if not form.endswith(" bits")]
        if numbers:
            others.insert(0, (", ".join(numbers[:-1]) + " and " if numbers[1:] else "") + numbers[-1] + " bits")
        cache = "" if self.kv_cache_dtype == "auto" else f", {self.kv_cache_dtype} KV cache"
        return f"cpu {', '.join(others)}{cache}"

    def page_memory(self) -> PageMemory:
        """What the KV caches of all sessions hold now."""
        counts = (ctypes.c_int64 * 4)()
        self.library.solm_pages(self.handle, counts)
        return PageMemory(*counts)

    def embed(self, tokens: AnyArray) -> AnyArray:
        """Input embeddings [..., H] float32 of tokens [...], as the first layer reads them, in their kind. Raises
        `DamagedFileError` for one outside the vocabulary."""
        ids = as_numpy(tokens)
        rows = dequantise(self.library, self.source.tensor("embedding"), ids.reshape(-1))
        return in_kind(rows.reshape(*ids.shape, -1) * np.float32(self.sizes.embedding_scale), tokens)

    def sample_layer(self, layer: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The middle row of a layer's down projection, None where experts have their own, and the first of its norms by
        name, None where none has weights, as transformers has them."""
        places, row = self.spec.places(layer), None
        if not self.spec.experts:
            down = self.source.tensor("down", layer)
            row = dequantise(self.library, down, [down.outputs // 2])[0]
        norms = sorted((place.transformers, name) for name, place in places.items() if name.endswith("norm"))
        if not norms:
            return row, None
        return row, self.source.tensor(norms[0][1], layer).floats() - np.float32(self.spec.description.norm_offset)

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.library.solm_engine_free(self.handle)
            self.handle = None

    def _describe(self, threads: int, kv_cache_dtype: str, progress: Progress | None) -> Any:
        """The model with its weights in the engine's layout."""
        spec, source = self.spec, self.source
        embedding, layout = source.tensor("embedding"), self.layout
        self._weights = load_weights(self.library, source, self.precision, layout, threads, progress)
        address = self._weights.ctypes.data
        layers, ropes = (border.Layer * spec.layers)(), []
        for number, layer in enumerate(layers):
            layer.qkv, layer.out, *products = [_product(parts, address) for parts in layout.layers[number].values()]
            mlps = (border.Mlp * max(1, spec.experts))()
            if spec.shared:
                layer.shared = border.Mlp(*products[-2:])
            for expert, mlp in enumerate(mlps):
                mlp.gate_up, mlp.down = products[2 * expert : 2 * expert + 2]
                for site in MLP:
                    setattr(mlp, f"{site}_bias", self._bias(site, number, expert if spec.experts else None))
            self._kept.append(mlps)
            layer.mlps = ctypes.addressof(mlps)
            for name, value in self._vectors(number).items():
                setattr(layer, name, value)
            rope = spec.rope_of(number)
            if rope is not None and rope not in ropes:
                ropes.append(rope)
            layer.rope, layer.window = -1 if rope is None else ropes.index(rope), spec.window_of(number) or 0
        tables = (border.Rope * len(ropes))(*map(self._rope, ropes))
        self._kept += [embedding, layers, tables]
        sizes = border.Sizes(
            layers=spec.layers, hidden=spec.hidden, intermediate=spec.intermediate, heads=spec.heads,
            kv_heads=spec.kv_heads, head_dim=spec.head_dim, vocabulary=spec.vocabulary, positions=spec.context,
            precision={"float32": 0, "bfloat16": 1}.get(self.precision, 2), embedding=embedding.type,
            value_bits=VALUE_BITS[kv_cache_dtype], threads=threads, whole_norms=spec.description.whole_norms,
            layer_norms=bool(spec.description.layer_norm), parallel=spec.parallel,
            activation=get_args(Activation).index(spec.activation), gated=spec.description.gated, experts=spec.experts,
            experts_used=spec.experts_used, shares_normed=spec.shares_normed, shared_width=spec.shared,
            epsilon=spec.epsilon,
            embedding_scale=self._embedding_scale(embedding), softmax_scale=spec.scales.softmax,
            residual_scale=spec.scales.residual, logit_scale=spec.scales.logits,
            attention_cap=spec.scales.attention_cap, logit_cap=spec.scales.logit_cap,
        )  # fmt: skip
        return border.Model(
            sizes=sizes,
            layers=ctypes.addressof(layers),
            embedding=embedding.data.ctypes.data,
            head=head_at(layout.head, address + layout.head_at),
            head_bias=self._floats(vector(source, "head_bias")) if "head_bias" in spec.places(None) else None,
            final_norm=self._norm("final_norm"),
            ropes=ctypes.addressof(tables),
            rope_count=len(ropes),
        )

    def _rope(self, rope: Rope) -> Any:
        frequencies = rope.inverse_frequencies
        return border.Rope(frequencies=self._floats(frequencies), rotary=2 * len(frequencies), scale=rope.scaling)

    def _embedding_scale(self, embedding: Tensor) -> float:
        """What embeddings are multiplied with, rounded to their type, as transformers does."""
        scale = np.array([self.spec.scales.embedding], np.float32)
        if embedding.type == TensorType.BF16:
            return float((bfloat16(scale).astype(np.uint32) << 16).view(np.float32)[0])
        return float(scale.astype(np.float16)[0]) if embedding.type == TensorType.F16 else float(scale[0])

    def _floats(self, values: np.ndarray) -> int:
        """The address of `values` in float32, which are kept."""
        kept = np.ascontiguousarray(values, np.float32)
        self._kept.append(kept)
        return kept.ctypes.data

    def _vectors(self, layer: int) -> dict[str, Any]:
        """A layer's norms of streams, and the addresses of others, of routers, sinks and biases, by their names in
        `border.Layer`."""
        names = [name for name in self.spec.places(layer) if name.endswith(("norm", "router", "sinks", "router_bias"))]
        found: dict[str, Any] = {name: self._floats(vector(self.source, name, layer)) for name in names}
        found |= {f"{site}_bias": self._bias(site, layer) for site in ("qkv", "out")}
        return found | {name: self._norm(name, layer) for name in ("attention_norm", "mlp_norm")}

    def _norm(self, name: str, layer: int | None = None) -> Any:
        """The norm of a stream, a `border.Norm`. Beside attention, an MLP without one has that of attention."""
        spec, places = self.spec, self.spec.places(layer)
        name = "attention_norm" if name == "mlp_norm" and spec.parallel and name not in places else name
        weight, bias = (
            self._floats(vector(self.source, one, layer)) if one in places else None for one in (name, f"{name}_bias")
        )
        if weight is None and spec.description.layer_norm:
            weight = self._floats(np.ones(spec.hidden))
        return border.Norm(weight=weight, bias=bias)

    def _bias(self, site: str, layer: int, expert: int | None = None) -> int | None:
        """The address of the bias of a product of a layer or its expert; None where it has none."""
        names = [f"{name}_bias" for name in names_of(self.spec, site)]
        if names[0] not in self.spec.places(layer):
            return None
        return self._floats(np.concatenate([vector(self.source, name, layer, expert) for name in names]))


def _product(parts: Sequence[Part], address: int) -> Any:
    """The product of these matrices in memory from `address` on, whose outputs stand one after another."""
    return border.Product(part=tuple(_matrix(part, address) for part in parts), parts=len(parts))


def _matrix(part: Part, address: int) -> Any:
    numbers = part.form.numbers
    packed = {} if numbers is None else {"bits": numbers.bits, "group": numbers.group, "centre": numbers.centre}
    places = {name: address + place for name, place in part.places.items()}
    return border.Matrix(**places, outputs=part.outputs, **packed)
