"""The allocation: which share of an action every layer and KV head keeps, the same on average."""

from functools import cached_property

import numpy as np
from pydantic import model_validator

from solm.core.arrays import AnyArray, as_numpy, in_kind
from solm.core.errors import PolicyMismatchError
from solm.core.frozen import Frozen

KNOTS = 21
"""Points of a curve, evenly spaced over the shares from 0 to 1."""
Curves = tuple[tuple[float, ...], ...]


class Allocation(Frozen):
    """Curves of KNOTS points: the share that a layer or head keeps where the average share is 0, 0.05, ... 1.

    attention: share of the pages that may be skipped (all but sinks and window), a curve for every layer, or for every
    KV head of every layer, layer by layer. mlp: share of the MLP's channels, a curve for every layer. hidden: where it
    is given, the share of those that the down projection reads, and `mlp` is that of those that gate and up read.
    Curves rise to 1. `solm.training.allocate` finds curves whose mean is the average share. Others are allowed, as
    ledgers count realised shares.
    """

    attention: Curves
    mlp: Curves
    hidden: Curves | None = None

    @model_validator(mode="after")
    def _check(self) -> "Allocation":
        for name, curves in (("mlp", self.mlp), ("attention", self.attention), ("hidden", self.hidden)):
            if curves is None:
                continue
            if name == "hidden" and len(curves) != self.layers:
                raise ValueError(f"hidden needs a curve for each of the {self.layers} layers, got {len(curves)}")
            if not curves or any(len(curve) != KNOTS for curve in curves) or len(curves) % self.layers:
                raise ValueError(f"{name} needs {KNOTS} points for every layer")
            table = np.array(curves, dtype=np.float64)
            if (table < 0).any() or (np.diff(table) < 0).any() or not (table[:, -1] == 1).all():
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
    def _curves(self) -> tuple[Curves, Curves, Curves | None]:
        return self.attention, self.mlp, self.hidden

    @cached_property
    def table(self) -> np.ndarray:
        """[layers · heads + layers, KNOTS] float64: attention, then MLP; then `hidden`, if any, [layers, KNOTS]."""
        return np.array(self.attention + self.mlp + (self.hidden or ()), dtype=np.float64)

    def pages(self, share: AnyArray) -> AnyArray:
        """[layers, heads, ...] float64: the share of the pages that may be skipped which every head reads, where the
        average is `share` [...]."""
        curves = _interpolated(self.table[: len(self.attention)], as_numpy(share))
        return in_kind(curves.reshape(self.layers, self.heads, *curves.shape[1:]), share)

    def channels(self, share: AnyArray) -> AnyArray:
        """[layers, ...] float64: the share of channels that every layer keeps at the keep rate `share` [...]; with
        `hidden` curves, of its input channels."""
        first = len(self.attention)
        return in_kind(_interpolated(self.table[first : first + self.layers], as_numpy(share)), share)

    def hidden_channels(self, share: AnyArray) -> AnyArray | None:
        """[layers, ...] float64: the share of hidden channels that every layer keeps at the keep rate `share` [...];
        None without `hidden` curves."""
        if self.hidden is None:
            return None
        return in_kind(_interpolated(self.table[-self.layers :], as_numpy(share)), share)


def _interpolated(curves: np.ndarray, share: np.ndarray) -> np.ndarray:
    place = share.astype(np.float64) * (KNOTS - 1)
    below = np.floor(place).clip(0, KNOTS - 2).astype(np.int64)
    low, high = curves[:, below], curves[:, below + 1]
    return np.asarray(low + (place - below) * (high - low))
