"""How an action is carried out: page size, sites and granularity."""

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from solm.core.allocation import Allocation
from solm.core.arrays import AnyArray, as_numpy, in_kind
from solm.core.errors import SolmError
from solm.core.thresholds import MLP_SITES, SITES, ChannelThresholds

_FROM_THE_START = np.array([False, True, True])
"""Axes that can be controlled in every context."""


class SparsityConfig(BaseModel):
    """The meaning of the three axes. A policy is trained for one of these and stores it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    page_size: int = Field(16, ge=1, le=256)
    sinks: int = Field(4, ge=0)
    """First tokens that are always read, rounded up to whole pages."""
    window: int = Field(64, ge=0)
    """Most recent tokens, besides the current one, that are always read, rounded up to a page's start. With 0 no page
    is always read, not even the one that holds the current token."""
    select_per: Literal["kv_head", "query_head"] = "kv_head"
    keep_ties: bool = False
    """Keep every page that scores as much as the last one kept, instead of exactly the budgeted number."""
    mlp_site: Literal["input", "input+hidden"] = "input+hidden"
    """Which channels an action drops: those that gate and up read alone, or also those that down reads."""
    hidden_power: Literal[1, 2] = 1
    """With ``input+hidden`` the hidden site keeps ρ to this power: its channels are cheaper to lose. An allocation with
    `hidden` curves takes its place."""
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
    lower bits: by default the part of the bytes (`solm.backends.torch.nested_linear`)."""
    bits_site: Literal["input", "output", "weights"] = "input"
    """What the third axis rounds: activations that enter the MLP's products or leave the MLP, or the MLP's weights, of
    which a step at up to 4 bits reads the high halves alone (`solm.backends.torch.nested_linear`)."""
    bits_group: int | None = Field(32, ge=1)
    """Channels that share one quantisation scale; None: the whole token."""
    allocation: Allocation | None = None
    """The shares of attention and MLP that KV heads and layers keep; None: all the same."""
    thresholds: ChannelThresholds | None = None
    """Keep the channels that pass a threshold, and realise what passed; None: exactly the share ρ of them."""

    @model_validator(mode="after")
    def _check_window(self) -> "SparsityConfig":
        if 0 < self.window < self.page_size:
            raise ValueError(f"window {self.window} must be 0 or at least the page size {self.page_size}")
        if self.window == 0 and self.sinks > 0:
            raise ValueError(f"sinks {self.sinks} need a window; set window or sinks=0")
        return self

    @model_validator(mode="after")
    def _check_power(self) -> "SparsityConfig":
        if self.hidden_power > 1 and self.mlp_site != "input+hidden":
            raise ValueError(f"hidden_power {self.hidden_power} needs mlp_site 'input+hidden', got {self.mlp_site!r}")
        return self

    @model_validator(mode="after")
    def _check_projections(self) -> "SparsityConfig":
        if self.projection_part and self.mlp_site != "input+hidden":
            raise ValueError(f"a projection_part needs mlp_site 'input+hidden', got {self.mlp_site!r}")
        if self.projection_part and self.thresholds is not None and self.thresholds.sites < self.sites:
            raise ValueError("a projection_part needs thresholds of attention's projections")
        if not self.projection_part and self.allocation is not None and self.allocation.qkv is not None:
            raise ValueError("an allocation of attention's projections needs a projection_part")
        return self

    @model_validator(mode="after")
    def _check_weights(self) -> "SparsityConfig":
        if self.bits_site == "weights" and self.bits_group is None:
            raise ValueError("bits_site 'weights' needs a bits_group: channels that share a grid")
        return self

    @model_validator(mode="after")
    def _check_allocation(self) -> "SparsityConfig":
        if self.allocation is not None and self.window == 0:
            raise ValueError("an allocation needs a window, got window 0")
        if self.allocation is not None and self.allocation.hidden is not None and self.mlp_site != "input+hidden":
            raise ValueError(f"an allocation of hidden channels needs mlp_site 'input+hidden', got {self.mlp_site!r}")
        if self.allocation is not None and self.allocation.has_bits and self.bits_site != "weights":
            raise ValueError(f"an allocation of weight bits needs bits_site 'weights', got {self.bits_site!r}")
        return self

    @model_validator(mode="after")
    def _check_thresholds(self) -> "SparsityConfig":
        both = self.thresholds is not None and self.allocation is not None
        if both and self.thresholds.layers != self.allocation.layers:  # type: ignore[union-attr]
            raise ValueError("thresholds and allocation are of models with different numbers of layers")
        return self

    def under(self, allocation: Allocation | None) -> "SparsityConfig":
        """The same with another allocation, None: all layers alike. Raises `SolmError` where it does not fit."""
        return self._changed(allocation=allocation)

    def with_projections(self, part: float) -> "SparsityConfig":
        """The same with another `projection_part`. Raises `SolmError` where it does not fit."""
        return self._changed(projection_part=part)

    def choosing_as(self, other: "SparsityConfig") -> "SparsityConfig":
        """The same with the allocation and the thresholds of `other`. Raises `SolmError` where they do not fit."""
        return self._changed(allocation=other.allocation, thresholds=other.thresholds)

    def _changed(self, **fields: Any) -> "SparsityConfig":
        try:
            return SparsityConfig.model_validate({**dict(self), **fields})
        except ValidationError as error:
            raise SolmError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error

    @property
    def sites(self) -> int:
        """How many of `solm.core.thresholds.SITES` drop channels, from the first on."""
        return len(SITES) if self.projection_part else MLP_SITES if self.mlp_site == "input+hidden" else 1

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

    def controllable(self, kv_length: AnyArray) -> AnyArray:
        """Per axis whether steps that see kv_length [...] keys can be controlled: [..., 3] bool.

        Attention reads every token until there are more than those that are always read; MLP channels and bits can be
        saved from the first step.
        """
        seen: np.ndarray = as_numpy(kv_length)
        return in_kind((seen[..., None] > self.always_read) | _FROM_THE_START, kv_length)


PRESETS = {
    "default": SparsityConfig(),
    # The best quality for the bytes that a step of the cpu backend reads.
    "cpu": SparsityConfig(hidden_power=2),
    # The same, and the bits are those of the MLP's weights, whose high halves can be read alone.
    "nested": SparsityConfig(hidden_power=2, bits_site="weights"),
    # arXiv 2605.10875: no sinks or window, pages chosen per query head, input channels only, MLP output quantised
    # with one scale per token.
    "paper": SparsityConfig(
        sinks=0,
        window=0,
        select_per="query_head",
        keep_ties=True,
        mlp_site="input",
        bits_site="output",
        bits_group=None,
    ),
}
