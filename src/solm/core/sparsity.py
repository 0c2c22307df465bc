"""How an action is carried out: which pages are read, which channels each site of a layer keeps, what is rounded."""

from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from solm.core.actions import AXES, Frozen
from solm.core.errors import PolicyMismatchError, SolmError

SITES = ("input", "hidden", "qkv", "out")
"""Where a layer drops channels: what gate and up read, what down reads; what the query, key and value projections read,
and what the output projection of attention reads."""
MLP_SITES = 2
"""The first ones, which are of the MLP."""
PERCENTAGES = 101
KNOTS = 21
"""Points of a curve, evenly spaced over the shares from 0 to 1."""
Curves = tuple[tuple[float, ...], ...]
FROM_THE_START = np.array([axis != "attention" for axis in AXES])
"""Axes that can be controlled in every context."""


class Allocation(Frozen):
    """Curves of KNOTS points: the share that a layer or head keeps where the average share is 0, 0.05, ... 1.

    attention: share of the pages that may be skipped (all but sinks and window), a curve for every layer, or for every
    KV head of every layer, layer by layer. mlp, hidden: share of the channels that gate and up read, and of those that
    down reads, a curve for every layer; without hidden mlp is the share of a mixture's experts. qkv, out: the same for
    the inputs of attention's projections, both or none.
    input_bits, hidden_bits: where a layer's curve is below a half, steps read only the upper bits of the weights of
    gate and up, or of down; both or none. Curves rise to 1. Their mean need not be the average share, as ledgers count
    realised shares.
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
        for one, other in (("qkv", "out"), ("input_bits", "hidden_bits")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"{one} and {other} need each other")
            if self.hidden is None and getattr(self, one) is not None:
                raise ValueError(f"{one} needs curves of hidden channels")
        for name, curves in self._given.items():
            if name not in ("attention", "mlp") and len(curves) != self.layers:
                raise ValueError(f"{name} needs a curve for each of the {self.layers} layers, got {len(curves)}")
            if not curves or any(len(curve) != KNOTS for curve in curves) or len(curves) % self.layers:
                raise ValueError(f"{name} needs {KNOTS} points for every layer")
            table = np.array(curves, dtype=np.float64)
            if not ((table >= 0).all() and (np.diff(table) >= 0).all() and (table[:, -1] == 1).all()):
                raise ValueError(f"{name}: the shares of a layer must rise from at least 0 to 1")
        return self

    @property
    def _given(self) -> dict[str, Curves]:
        fields = zip(type(self).model_fields, self._values, strict=True)
        return {name: curves for name, curves in fields if curves is not None}

    @property
    def layers(self) -> int:
        return len(self.mlp)

    @property
    def heads(self) -> int:
        """Attention curves per layer: the number of KV heads, or 1 where they share a curve."""
        return len(self.attention) // self.layers

    @property
    def sites(self) -> int:
        """How many of `SITES` have curves, from the first on: those of the MLP, or all; or 1, that of experts."""
        return 1 if self.hidden is None else MLP_SITES if self.qkv is None else len(SITES)

    @property
    def has_bits(self) -> bool:
        """Whether it says which layers read all bits of their weights."""
        return self.input_bits is not None

    @cached_property
    def table(self) -> np.ndarray:
        """[layers · heads + sites · layers, KNOTS] float64: attention, then every site; then, where it has curves of
        bits, those of input and hidden channels."""
        return np.concatenate([np.array(curves, dtype=np.float64) for curves in self._given.values()])

    def _interpolated(self, first: int, count: int, share: np.ndarray) -> np.ndarray:
        """`count` curves of the table from `first` on at the shares [...]: [count, ...]."""
        place = share * (KNOTS - 1)
        below = np.floor(place).clip(0, KNOTS - 2).astype(np.int64)
        curves = self.table[first : first + count]
        low, high = curves[:, below], curves[:, below + 1]
        return np.asarray(low + (place - below) * (high - low))

    def pages(self, share: np.ndarray) -> np.ndarray:
        """[layers, heads, ...] float64: the share of the pages that may be skipped which every head reads, where the
        average is `share` [...]."""
        return self._interpolated(0, len(self.attention), share).reshape(self.layers, self.heads, *share.shape)

    def channels(self, share: np.ndarray, site: int) -> np.ndarray:
        """[layers, ...] float64: the share of a site's channels that every layer keeps at keep rate `share` [...]."""
        return self._interpolated(len(self.attention) + site * self.layers, self.layers, share)

    def reads_all_bits(self, share: np.ndarray, site: int) -> np.ndarray:
        """[layers, ...] bool: whether every layer reads all bits of the MLP's weights at a site, 0 or 1, at the keep
        rate `share` [...]; for an allocation that `has_bits`."""
        first = len(self.attention) + (self.sites + site) * self.layers
        return self._interpolated(first, self.layers, share) >= 0.5


class ChannelThresholds(Frozen):
    """Limits on |x| that replace an exact number of channels (TEAL, arXiv 2408.14690).

    limits: for every layer and site, those of the MLP or all of `SITES`, 101 numbers. The one at place p is the least
    |x| that a step keeps whose action keeps p percent of the site's channels. They fall to 0, with which every channel
    is kept. What a step keeps is known after it has run.

    With one site they are of a mixture's experts: x is the part of the router's probability for a token's experts that
    one of them and all less likely ones hold. It is 1 for the likeliest, which is always visited; the others follow
    until so much is held that what is left is below the limit.
    """

    limits: tuple[tuple[tuple[float, ...], ...], ...]

    @field_validator("limits")
    @classmethod
    def _check(cls, limits: tuple[tuple[tuple[float, ...], ...], ...]) -> tuple[tuple[tuple[float, ...], ...], ...]:
        sites = {len(layer) for layer in limits}
        if len(sites) != 1 or not sites <= {1, MLP_SITES, len(SITES)}:
            raise ValueError(
                f"limits need at least one layer, and 1, {MLP_SITES} or {len(SITES)} sites for every layer"
            )
        if any(len(site) != PERCENTAGES for layer in limits for site in layer):
            raise ValueError(f"limits need {PERCENTAGES} numbers for every site, of 0 to 100 percent")
        table = np.array(limits, dtype=np.float64)
        if not np.isfinite(table).all() or (np.diff(table) > 0).any() or (table[..., -1] != 0).any():
            raise ValueError("the limits of a site must be finite and fall to 0 at 100 percent")
        return limits

    @classmethod
    def of(cls, limits: np.ndarray) -> "ChannelThresholds":
        """From limits [layers, sites, 101], of which the last of a site is taken as 0 and four digits are kept."""
        digits = np.array([float(f"{limit:.4g}") for limit in np.asarray(limits).flat]).reshape(limits.shape)
        digits[..., -1] = 0
        return cls(limits=np.minimum.accumulate(digits, -1).tolist())

    @property
    def layers(self) -> int:
        return len(self.limits)

    @property
    def sites(self) -> int:
        return len(self.limits[0])

    @cached_property
    def array(self) -> np.ndarray:
        """[layers, sites, 101] float32."""
        return np.array(self.limits, dtype=np.float32)

    def at(self, keep: np.ndarray) -> np.ndarray:
        """The limits of steps that keep shares keep [sites, layers or 1, ...] of channels, on lines between those of
        whole percentages: [sites, layers, ...] float32."""
        shape = (len(keep), self.layers, *keep.shape[2:])
        place = np.broadcast_to(keep * (PERCENTAGES - 1), shape).reshape(*shape[:2], -1)
        below = place.astype(np.int64).clip(0, PERCENTAGES - 2)
        table = self.array.swapaxes(0, 1)[: len(keep)]
        low, high = (np.take_along_axis(table, index, 2) for index in (below, below + 1))
        return (low + (place - below).astype(np.float32) * (high - low)).reshape(shape)


class SparsityConfig(Frozen):
    """The meaning of the axes. A policy is trained for one of these and stores it."""

    page_size: int = Field(16, ge=1, le=256)
    sinks: int = Field(4, ge=0)
    """First tokens that are always read, rounded up to whole pages."""
    window: int = Field(64, ge=0)
    """Most recent tokens, besides the current one, that are always read, rounded up to a page's start. With 0 no page
    is always read, not even the one that holds the current token."""
    select_per: Literal["kv_head", "query_head"] = "kv_head"
    keep_ties: bool = False
    """Keep every page that scores as much as the last one kept, instead of exactly the budgeted number."""
    mlp_site: Literal["input", "input+hidden", "experts"] = "input+hidden"
    """Which channels an action drops: those that gate and up read alone, or also those that down reads. With
    ``experts`` the share of the MLP is that of a mixture's experts: of those that a token visits otherwise, rounded up,
    the likeliest ones, or under thresholds as many as hold enough of the router's probability. They keep all of their
    channels."""
    hidden_power: Literal[1, 2] = 1
    """With ``input+hidden`` the hidden site keeps ρ to this power: its channels are cheaper to lose. An allocation
    takes its place."""
    input_part: float = Field(0.5, gt=0, lt=1)
    """With ``input+hidden`` the part of the MLP's realised share that input channels count; hidden ones count the rest.
    With two thirds the share counts the weights of a gated MLP. Where it counts milliseconds, schedules of equal shares
    take equal time."""
    projection_part: float = Field(0, ge=0, lt=1)
    """Where it is not 0, steps also drop inputs of attention's projections: of the query, key and value projections,
    and of the output projection. It is the part of the realised share that these count, between them by their
    weights."""
    upper_bits_part: float = Field(0.556, gt=0, le=1)
    """What a channel of the MLP counts of the realised share where an `allocation` has its weights read without their
    lower bits: by default the part of the bytes."""
    bits_site: Literal["input", "output", "weights"] = "input"
    """What the third axis rounds: activations that enter the MLP's products or leave the MLP, or the MLP's weights, of
    which a step at up to 4 bits reads the high halves alone."""
    bits_group: int | None = Field(32, ge=1)
    """Channels that share one quantisation scale; None: the whole token."""
    allocation: Allocation | None = None
    """The shares of attention and MLP that KV heads and layers keep; None: all the same."""
    thresholds: ChannelThresholds | None = None
    """Keep the channels that pass a threshold, and realise what passed; None: exactly the share ρ of them."""

    @model_validator(mode="after")
    def _check(self) -> "SparsityConfig":
        allocation, thresholds, hidden = self.allocation, self.thresholds, self.mlp_site == "input+hidden"
        experts = self.mlp_site == "experts"
        needs = f"needs mlp_site 'input+hidden', got {self.mlp_site!r}"
        for wrong, message in (
            (0 < self.window < self.page_size, f"window {self.window} must be 0 or at least the page size "
             f"{self.page_size}"),
            (self.window == 0 and self.sinks > 0, f"sinks {self.sinks} need a window; set window or sinks=0"),
            (self.hidden_power > 1 and not hidden, f"hidden_power {self.hidden_power} {needs}"),
            (self.projection_part and not hidden, f"a projection_part {needs}"),
            (self.bits_site == "weights" and self.bits_group is None,
             "bits_site 'weights' needs a bits_group: channels that share a grid"),
            (thresholds is not None and (thresholds.sites == 1) != experts,
             "thresholds of one site are of experts: mlp_site 'experts' needs them, and no other takes them"),
            (thresholds is not None and self.projection_part and thresholds.sites < self.sites,
             "a projection_part needs thresholds of attention's projections"),
            (allocation and self.window == 0, "an allocation needs a window, got window 0"),
            (allocation and not hidden and not experts, f"an allocation {needs}"),
            (allocation and allocation.sites != self.sites,
             f"an allocation of other sites does not fit {self.sites} that drop channels: attention's projections do "
             "with a projection_part"),
            (allocation and allocation.has_bits and self.bits_site != "weights",
             f"an allocation of weight bits needs bits_site 'weights', got {self.bits_site!r}"),
            (allocation and thresholds and thresholds.layers != allocation.layers,
             "thresholds and allocation are of models with different numbers of layers"),
        ):  # fmt: skip
            if wrong:
                raise ValueError(message)
        return self

    def check(self, layers: int, kv_heads: int | None = None) -> None:
        """Raises `PolicyMismatchError` where allocation or thresholds are of a model of other numbers of layers or KV
        heads (None: not checked)."""
        for name in ("allocation", "thresholds"):
            part = getattr(self, name)
            if part is not None and part.layers != layers:
                raise PolicyMismatchError(f"{name} of {part.layers} layers: the model has {layers}")
        heads = 1 if self.allocation is None else self.allocation.heads
        if kv_heads is not None and heads not in (1, kv_heads):
            raise PolicyMismatchError(f"allocation of {heads} KV heads: the model has {kv_heads}")

    def changed(self, **fields: Any) -> "SparsityConfig":
        """The same with other values of some fields. Raises `SolmError` where they do not fit."""
        try:
            return SparsityConfig(**{**dict(zip(type(self).model_fields, self._values, strict=True)), **fields})
        except ValidationError as error:
            raise SolmError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error

    def under(self, allocation: Allocation | None) -> "SparsityConfig":
        """The same with another allocation, None: all layers alike. Raises `SolmError` where it does not fit."""
        return self.changed(allocation=allocation)

    @property
    def sites(self) -> int:
        """How many of `SITES` drop channels, from the first on."""
        return len(SITES) if self.projection_part else MLP_SITES if self.mlp_site == "input+hidden" else 1

    @property
    def threshold_sites(self) -> int:
        """How many sites its thresholds are of: those of the MLP or all of `SITES`, or that of experts."""
        return 1 if self.mlp_site == "experts" else max(self.sites, MLP_SITES)

    @property
    def exact(self) -> "SparsityConfig":
        """The same without thresholds."""
        return self if self.thresholds is None else self.model_copy(update={"thresholds": None})

    @classmethod
    def preset(cls, name: str) -> "SparsityConfig":
        if name not in PRESETS:
            raise SolmError(f"unknown sparsity {name!r}; choose one of {', '.join(PRESETS)}")
        return PRESETS[name]

    @property
    def always_read(self) -> int:
        """Attention is controllable once the KV length exceeds this."""
        return self.sinks + self.window + 1

    def controllable(self, kv_length: np.ndarray) -> np.ndarray:
        """Per axis whether steps that see kv_length [...] keys can be controlled: [..., axes] bool.

        Attention reads every token until there are more than those that are always read; MLP channels and bits can be
        saved from the first step.
        """
        return (kv_length[..., None] > self.always_read) | FROM_THE_START


PRESETS = {
    "default": SparsityConfig(),
    # The best quality for the bytes that a step of the cpu backend reads.
    "cpu": SparsityConfig(hidden_power=2),
    # Of a mixture of experts, a step reads fewer experts, and every channel of these.
    "experts": SparsityConfig(mlp_site="experts"),
    # As `cpu`, and the bits are those of the MLP's weights, whose high halves can be read alone.
    "nested": SparsityConfig(hidden_power=2, bits_site="weights"),
}
