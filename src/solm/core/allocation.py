"""The allocation: which share of an action every layer and KV head keeps, the same on average."""

from functools import cached_property

import numpy as np
from pydantic import model_validator

from solm.core.actions import Frozen
from solm.core.arrays import AnyArray, as_numpy, in_kind
from solm.core.errors import PolicyMismatchError
from solm.core.thresholds import MLP_SITES

KNOTS = 21
"""Points of a curve, evenly spaced over the shares from 0 to 1."""
Curves = tuple[tuple[float, ...], ...]


class Allocation(Frozen):
    """Curves of KNOTS points: the share that a layer or head keeps where the average share is 0, 0.05, ... 1.

    attention: share of the pages that may be skipped (all but sinks and window), a curve for every layer, or for every
    KV head of every layer, layer by layer. mlp: share of the MLP's channels, a curve for every layer. hidden: where it
    is given, the share of those that the down projection reads, and `mlp` is that of those that gate and up read.
    qkv, out: the same for the inputs of attention's projections; both or none. Sites without curves of their own
    follow `mlp`. input_bits, hidden_bits: where a layer's curve is below a half, steps read only the upper bits of the
    weights of gate and up, or of down; both or none. Curves rise to 1. `solm.fit.allocation` finds curves whose mean
    is the average share. Others are allowed, as ledgers count realised shares.
    """

    attention: Curves
    mlp: Curves
    hidden: Curves | None = None
    qkv: Curves | None = None
    out: Curves | None = None
    input_bits: Curves | None = None
    hidden_bits: Curves | None = None

    @model_validator(mode="after")
    def _check(self) -> "Allocation":
        own = {"hidden": self.hidden, "qkv": self.qkv, "out": self.out}
        given = [curves is not None for curves in own.values()]
        if given not in ([False] * 3, [True, False, False], [True] * 3):
            raise ValueError("qkv and out need each other and hidden")
        bits = {"input_bits": self.input_bits, "hidden_bits": self.hidden_bits}
        if len({curves is None for curves in bits.values()}) > 1 or (self.has_bits and self.hidden is None):
            raise ValueError("input_bits and hidden_bits need each other and hidden")
        own |= bits
        for name, curves in {"mlp": self.mlp, "attention": self.attention, **own}.items():
            if curves is None:
                continue
            if name in own and len(curves) != self.layers:
                raise ValueError(f"{name} needs a curve for each of the {self.layers} layers, got {len(curves)}")
            if not curves or any(len(curve) != KNOTS for curve in curves) or len(curves) % self.layers:
                raise ValueError(f"{name} needs {KNOTS} points for every layer")
            table = np.array(curves, dtype=np.float64)
            if not ((table >= 0).all() and (np.diff(table) >= 0).all() and (table[:, -1] == 1).all()):
                raise ValueError(f"{name}: the shares of a layer must rise from at least 0 to 1")
        return self

    @property
    def layers(self) -> int:
        return len(self.mlp)

    @property
    def heads(self) -> int:
        """Attention curves per layer: the number of KV heads, or 1 where they share a curve."""
        return len(self.attention) // self.layers

    def check(self, layers: int, kv_heads: int | None = None) -> None:
        """Raises `PolicyMismatchError` unless this is an allocation of a model of `layers` and `kv_heads` (None: not
        checked)."""
        if self.layers != layers:
            raise PolicyMismatchError(f"the allocation is of a model of {self.layers} layers, this one has {layers}")
        if kv_heads is not None and self.heads not in (1, kv_heads):
            raise PolicyMismatchError(f"the allocation is of a model of {self.heads} KV heads, this one has {kv_heads}")

    # A SparsityConfig is compared and hashed in every pass.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Allocation) and self._curves == other._curves

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self._curves)

    @property
    def _curves(self) -> tuple[Curves | None, ...]:
        return self.attention, self.mlp, self.hidden, self.qkv, self.out, self.input_bits, self.hidden_bits

    @property
    def own_sites(self) -> int:
        """The sites besides the first that have curves of their own: 0, 1 or 3."""
        return sum(curves is not None for curves in (self.hidden, self.qkv, self.out))

    @property
    def has_bits(self) -> bool:
        """Whether it says which layers read all bits of their weights."""
        return self.input_bits is not None

    @cached_property
    def table(self) -> np.ndarray:
        """[layers · heads + layers, KNOTS] float64: attention, then MLP; then `own_sites` times [layers, KNOTS]; then,
        where it has curves of bits, those of input and hidden channels."""
        own = (self.hidden or ()) + (self.qkv or ()) + (self.out or ())
        bits = (self.input_bits or ()) + (self.hidden_bits or ())
        return np.array(self.attention + self.mlp + own + bits, dtype=np.float64)

    def pages(self, share: AnyArray) -> AnyArray:
        """[layers, heads, ...] float64: the share of the pages that may be skipped which every head reads, where the
        average is `share` [...]."""
        curves = _interpolated(self.table[: len(self.attention)], as_numpy(share))
        return in_kind(curves.reshape(self.layers, self.heads, *curves.shape[1:]), share)

    def channels(self, share: AnyArray, site: int = 0) -> AnyArray | None:
        """[layers, ...] float64: the share of a site's channels that every layer keeps at the keep rate `share` [...];
        None where the site has no curves of its own."""
        if site > self.own_sites:
            return None
        first = len(self.attention) + site * self.layers
        return in_kind(_interpolated(self.table[first : first + self.layers], as_numpy(share)), share)

    def reads_all_bits(self, share: AnyArray, site: int) -> AnyArray | None:
        """[layers, ...] bool: whether every layer reads all bits of the MLP's weights at a site, 0 or 1, at the keep
        rate `share` [...]; None where this is not for the allocation to say."""
        if not self.has_bits or site >= MLP_SITES:
            return None
        first = len(self.attention) + (1 + self.own_sites + site) * self.layers
        curves = _interpolated(self.table[first : first + self.layers], as_numpy(share))
        return in_kind(curves >= 0.5, share)


def _interpolated(curves: np.ndarray, share: np.ndarray) -> np.ndarray:
    place = share.astype(np.float64) * (KNOTS - 1)
    below = np.floor(place).clip(0, KNOTS - 2).astype(np.int64)
    low, high = curves[:, below], curves[:, below + 1]
    return np.asarray(low + (place - below) * (high - low))
