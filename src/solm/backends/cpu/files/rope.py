"""Rotary positions: the frequencies of every kind of scaling that transformers knows, in numpy."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solm.backends.cpu.files.fields import Fields, shown
from solm.core.errors import UnsupportedModelError

KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")


@dataclass(frozen=True, eq=False)
class Rope:
    """Angles of pair i at position p are p * inverse_frequencies[i] (float32 [pairs]); pair i of a head is its
    dimensions i and i + pairs. Cosines and sines are multiplied by `scaling`. context: positions for which the
    frequencies hold."""

    inverse_frequencies: NDArray[np.float32]
    scaling: float
    context: int


def rope(fields: Fields, kind: str, head_dim: int, context: int) -> Rope:
    """The frequencies that `fields` describe under transformers' names, for `context` positions.

    dynamic: those within the context, which are not scaled. longrope: those for short texts, as long as the model's
    first training had them. Raises `UnsupportedModelError` for another kind, `DamagedFileError` for parameters that are
    missing.
    """
    if kind not in KINDS:
        raise UnsupportedModelError(f"rotary positions of type {shown(kind)} are not among {', '.join(KINDS)}")
    base, share = fields.number("rope_theta"), fields.number("partial_rotary_factor", 1.0)
    dim = int(head_dim * min(share, 1.0))
    if share > 1 or dim < 2 or dim % 2:
        raise fields.damaged("partial_rotary_factor", f"{share:g} of {head_dim} dimensions of a head cannot be rotated")
    try:
        with np.errstate(all="ignore"):
            scaled = _scaled(fields, kind, base, dim, head_dim, context)
    except (ArithmeticError, ValueError) as error:  # such as math's of the logarithm of nothing
        raise fields.damaged("rope_scaling", f"gives no frequencies ({error})") from None
    if not np.isfinite(scaled.inverse_frequencies).all():
        raise fields.damaged("rope_theta", f"{base:g} and the scaling give frequencies that are not finite")
    return scaled


def _scaled(fields: Fields, kind: str, base: float, dim: int, head_dim: int, context: int) -> Rope:
    """The frequencies of one kind."""
    if kind == "proportional":
        inverse = np.concatenate([_inverse(base, dim, head_dim), np.zeros((head_dim - dim) // 2, np.float32)])
        return Rope(_divided(inverse, fields.number("factor", 1.0)), 1.0, context)
    inverse = _inverse(base, dim, dim)
    if kind == "linear":
        return Rope(_divided(inverse, fields.number("factor")), 1.0, context)
    if kind == "llama3":
        return Rope(_llama3(fields, inverse), 1.0, context)
    if kind == "yarn":
        return _yarn(fields, inverse, base, dim, context)
    if kind == "longrope":
        return _longrope(fields, inverse, context)
    return Rope(inverse, 1.0, context)


def _inverse(base: float, rotated: int, dim: int) -> NDArray[np.float32]:
    exponents = np.arange(0, rotated, 2, dtype=np.float32) / np.float32(dim)
    return (1 / np.float32(base) ** exponents).astype(np.float32)


def _divided(inverse: NDArray[np.float32], by: float | list[float]) -> NDArray[np.float32]:
    return (inverse / np.asarray(by, np.float32)).astype(np.float32)


def _llama3(fields: Fields, inverse: NDArray[np.float32]) -> NDArray[np.float32]:
    """Low frequencies are divided by a factor, high ones are kept, and those between are mixed."""
    factor, trained = fields.number("factor"), fields.number("original_max_position_embeddings")
    low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
    if low == high:
        raise fields.damaged("high_freq_factor", f"must differ from low_freq_factor {low}")
    turns = trained / (2 * math.pi / inverse)
    share = np.clip((turns - low) / (high - low), 0, 1)
    return ((1 - share) * inverse / factor + share * inverse).astype(np.float32)


def _yarn(fields: Fields, inverse: NDArray[np.float32], base: float, dim: int, context: int) -> Rope:
    """Dimensions that turn often within the trained length are kept, those that turn seldom are divided by a factor."""
    trained = fields.number("original_max_position_embeddings", context)
    factor = fields.number("factor", context / trained)
    scaling = fields.get("attention_factor")
    if scaling is not None:
        scaling = fields.number("attention_factor")
    elif fields.get("mscale") and fields.get("mscale_all_dim"):
        scaling = _yarn_scaling(factor, fields.number("mscale")) / _yarn_scaling(
            factor, fields.number("mscale_all_dim")
        )
    else:
        scaling = _yarn_scaling(factor, 1.0)

    def dimension(turns: float) -> float:
        return dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))

    if base <= 1:
        raise fields.damaged("rope_theta", f"must be above 1, not {base}")
    low, high = dimension(fields.number("beta_fast", 32.0)), dimension(fields.number("beta_slow", 1.0))
    if fields.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high
    seldom = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    return Rope((inverse / factor * seldom + inverse * (1 - seldom)).astype(np.float32), float(scaling), context)


def _yarn_scaling(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _longrope(fields: Fields, inverse: NDArray[np.float32], context: int) -> Rope:
    trained = fields.integer("original_max_position_embeddings", 1 << 31, context)
    factor = fields.number("factor", context / trained)
    scaling = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(max(trained, 2)))
    divisors = fields.numbers("short_factor", len(inverse))
    scaling = fields.number("attention_factor", scaling)
    return Rope(_divided(inverse, divisors), scaling, min(context, trained))
