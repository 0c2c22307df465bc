"""Structs and constants that cross the border to the compiled engine: csrc/structs.h as ctypes declares it."""

import ctypes
from collections.abc import Iterable

import numpy as np

from solm.backends import budgets
from solm.backends.session import MOST_EXACT
from solm.core import actions, allocation, nested, thresholds
from solm.core.errors import SolmError
from solm.core.sparsity import SparsityConfig
from solm.policies.levels import SHORTEST_HORIZON, UNBIASED_STEPS

PAGE = 16
"""Tokens of a page of the KV cache."""
GROUP = 32
"""Input channels of a packed matrix that share a step and a lowest value, as in GGUF's Q4_0 and Q4_1."""
BLOCK, STRIP = 64, 32
"""Outputs of a matrix, and of the head, that are stored together."""
LEAST_STEPS = 4
"""Of a call whose products of matrices are computed in full, so that skipped channels save no time."""
MOST_ROWS = 16
"""Steps that share one pass over the output head."""
MOST_QUERIES = 32
"""Query heads of one KV head."""
MOST_LEVELS, MOST_WIDTH = 100, 4096
"""Levels of one axis, and hidden units, of a policy in the engine."""
MOST_STEPS = 1 << 20
"""Steps of one call."""
MAGNITUDES = 1 << 14
"""Bins of a histogram of |x|: the upper bits of float32 without its sign."""
MESSAGE = 200
"""Bytes of an error message."""

_pointer, _double = ctypes.c_void_p, ctypes.POINTER(ctypes.c_double)


def _integers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_int32) for name in names]


def _floats(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_float) for name in names]


def _pointers(*names: str) -> list[tuple[str, type]]:
    return [(name, _pointer) for name in names]


class Sizes(ctypes.Structure):
    """A model's sizes and how it is stored; see csrc/structs.h."""

    _fields_ = [
        *_integers(
            "layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocabulary", "positions", "precision",
            "embedding", "kv_int8", "threads", "whole_norms", "activation",
        ),
        *_floats("epsilon", "embedding_scale", "softmax_scale", "residual_scale", "logit_scale"),
    ]  # fmt: skip


class Matrix(ctypes.Structure):
    """A weight matrix of a layer; see csrc/structs.h for its forms."""

    _fields_ = [*_pointers("data", "scale", "grid"), *_integers("outputs", "bits", "group", "centre")]


class Product(ctypes.Structure):
    """A matrix product whose outputs come from up to three matrices; see `product`."""

    _fields_ = [("part", Matrix * 3), ("parts", ctypes.c_int32)]


def product(*parts: Matrix) -> Product:
    """The product of these matrices, whose outputs stand one after another."""
    made = Product(parts=len(parts))
    for place, part in enumerate(parts):
        made.part[place] = part
    return made


class Head(ctypes.Structure):
    """The output head: addresses of its parts, None for those that it lacks, and its form; see csrc/structs.h."""

    _fields_ = [*_pointers("data", "low", "scale", "grid"), *_integers("bits", "group", "centre")]


class Rope(ctypes.Structure):
    """Rotary positions; see csrc/structs.h."""

    _fields_ = [*_pointers("frequencies"), *_integers("rotary"), *_floats("scale")]


class Layer(ctypes.Structure):
    """The matrix products of a layer, its rotary positions and window, and addresses of its norms and bias."""

    _fields_ = [
        *((name, Product) for name in ("qkv", "out", "gate_up", "down")), *_integers("rope", "window"),
        *_pointers(
            "attention_norm", "attention_output_norm", "mlp_norm", "mlp_output_norm", "q_norm", "k_norm", "qkv_bias"
        ),
    ]  # fmt: skip


class Model(ctypes.Structure):
    """Everything that the engine needs to know of a model."""

    _fields_ = [
        ("sizes", Sizes), ("layers", ctypes.POINTER(Layer)), ("embedding", _pointer), ("head", Head),
        *_pointers("final_norm"), ("ropes", ctypes.POINTER(Rope)), *_integers("rope_count"),
    ]  # fmt: skip


class SparsityRules(ctypes.Structure):
    """How an action is carried out: the engine's part of `SparsityConfig`; see `sparsity_rules`."""

    _fields_ = [
        *_integers(
            "sinks", "window", "input_site", "hidden_site", "hidden_power", "group", "weight_bits", "layers", "heads",
            "own_sites", "projections", "bit_curves",
        ),
        *((name, ctypes.c_double) for name in ("input_part", "projection_part", "upper_bits_part")),
        *_pointers("allocation", "thresholds"),
    ]  # fmt: skip


class Decider(ctypes.Structure):
    """A value policy; see `solm.backends.cpu.decider`."""

    _fields_ = [
        *_integers("layer", "width", "hidden", "clamp", "points"),
        ("sizes", ctypes.c_int32 * 3),
        *_pointers("read", "read_bias", "head", "head_bias", "scale", "trust"),
        *((name, _double * 3) for name in ("levels", "shares", "own_cost", "fixed_cost", "curve")),
        ("prices", _double),
    ]


class Call(ctypes.Structure):
    """One call of the engine; see csrc/structs.h."""

    _fields_ = [
        ("rules", _pointer),
        *_integers("rows", "count", "first", "last", "decide", "exact_largest", "logit_steps", "adaptive_head"),
        *_pointers(
            "caches", "tokens", "lengths", "keep", "states", "actions", "realised", "stream", "logits", "histogram",
            "exact_rows", "message",
        ),
    ]  # fmt: skip


def sparsity_rules(sparsity: SparsityConfig) -> SparsityRules:
    """The rules of `sparsity` for the engine. They keep the tables of allocation and thresholds alive."""
    site, allocation_ = sparsity.mlp_site, sparsity.allocation
    rules = SparsityRules(
        sinks=sparsity.sinks,
        window=sparsity.window,
        input_site="input" in site,
        hidden_site="hidden" in site,
        hidden_power=sparsity.hidden_power,
        group=sparsity.bits_group or 0,
        weight_bits=sparsity.bits_site == "weights",
        layers=0,
        heads=1,
        projections=sparsity.projection_part > 0,
        input_part=sparsity.input_part,
        projection_part=sparsity.projection_part,
        upper_bits_part=sparsity.upper_bits_part,
    )
    if allocation_ is not None:
        table = np.ascontiguousarray(allocation_.table)
        rules.layers, rules.heads, rules.allocation = allocation_.layers, allocation_.heads, table.ctypes.data
        rules.own_sites, rules.bit_curves = allocation_.own_sites, allocation_.has_bits
        rules.table = table  # type: ignore[attr-defined]
    if sparsity.thresholds is not None:
        sites = max(sparsity.sites, thresholds.MLP_SITES)
        limits = np.array(sparsity.thresholds.array[:, :sites])
        if limits.shape[1] != sites or rules.layers not in (0, len(limits)):
            raise SolmError(
                f"thresholds of {len(limits)} layers and {limits.shape[1]} sites do not fit an allocation of "
                f"{rules.layers or len(limits)} layers and steps that drop channels at {sites} sites"
            )
        rules.layers, rules.thresholds = len(limits), limits.ctypes.data
        rules.limits = limits  # type: ignore[attr-defined]
    return rules


def layout() -> list[str]:
    """What the library must say of structs and constants, line by line as `solm_layout` does."""
    constants = {
        "PAGE": PAGE, "GROUP": GROUP, "BLOCK": BLOCK, "STRIP": STRIP, "KNOTS": allocation.KNOTS,
        "PERCENTAGES": thresholds.PERCENTAGES, "MAGNITUDES": MAGNITUDES, "SITES": len(thresholds.SITES),
        "HIGH_BITS": nested.HIGH_BITS, "FULL_BITS": actions.FULL_BITS, "LEAST_STEPS": LEAST_STEPS,
        "MOST_ROWS": MOST_ROWS, "MOST_QUERIES": MOST_QUERIES, "MOST_LEVELS": MOST_LEVELS, "MOST_WIDTH": MOST_WIDTH,
        "MOST_STEPS": MOST_STEPS, "MOST_EXACT": MOST_EXACT, "SHORTEST_HORIZON": SHORTEST_HORIZON,
        "UNBIASED_STEPS": UNBIASED_STEPS, "MESSAGE": MESSAGE,
    }  # fmt: skip
    lines = [f"{name} = {value}" for name, value in constants.items()]
    for struct in (Sizes, Matrix, Product, Head, Rope, Layer, Model, SparsityRules, Decider):
        lines += _lines(struct.__name__, ctypes.sizeof(struct), _fields(struct))
    state = budgets.ROW_STATE
    fields = [(name, at, dtype.itemsize) for name, (dtype, at, *_) in (state.fields or {}).items()]
    lines += _lines("RowState", state.itemsize, fields)
    return lines + _lines("Call", ctypes.sizeof(Call), _fields(Call))


def _fields(struct: type[ctypes.Structure]) -> list[tuple[str, int, int]]:
    found = [(field[0], getattr(struct, field[0])) for field in struct._fields_]
    return [(name, field.offset, field.size) for name, field in found]


def _lines(name: str, size: int, fields: Iterable[tuple[str, int, int]]) -> list[str]:
    found = [(name, 0, size), *((f"{name}.{field}", at, length) for field, at, length in fields)]
    return [f"{what} at {at} of {length} bytes" for what, at, length in found]
