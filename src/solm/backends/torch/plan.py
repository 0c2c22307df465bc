"""The plan of a pass: what every row and position may read and compute under its action, where its tokens lie in the KV
cache, and the pass in progress."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch

from solm.backends.torch.cache import PagedCache
from solm.core.actions import DENSE, HIGH_BITS
from solm.core.cost import (
    ModelShapes,
    bits_share,
    kept_channels,
    kv_budget,
    realised_mlp,
    site_parts,
    site_shares,
)
from solm.core.sparsity import MLP_SITES, SITES, SparsityConfig

INPUT, HIDDEN, QKV, OUT = range(len(SITES))
"""Numbers of `SITES`."""


_Tensors = TypeVar("_Tensors", "Plan", "Layout")


def on_device(tensors: _Tensors, device: torch.device) -> _Tensors:
    """A plan or layout with its tensors on `device`."""
    found: dict[str, Any] = {
        name: value.to(device) for name, value in vars(tensors).items() if isinstance(value, torch.Tensor)
    }
    return replace(tensors, **found)


@dataclass(frozen=True)
class Plan:
    """What N rows do at Q positions of one pass.

    shares: what layers realise, an array [layers, N, Q, 3] float64 (κ, ρ, b/16). parts: what every site counts of the
    realised share of channels. bits: [N, Q, 1] int64. window_start: [N, Q] int64, the first position of the recent
    window. pages: [layers, heads, N, Q] int64, chosen besides those always read. channels: [layers, sites, N, Q] int64,
    kept at every site; limits: float32 of the same shape, of |x| that is kept instead. upper_bits: [layers, MLP_SITES,
    N, Q] bool, where an allocation has steps read only the upper bits of the MLP's weights.
    layers is 1 where all are alike, and heads likewise. In the plan of one layer (`at`) tensors lack that dimension.
    sparse_attention, sparse_mlp, low_bits: whether any step of the pass uses that axis, so that an axis that nobody
    uses costs nothing.
    """

    sparsity: SparsityConfig
    parts: tuple[float, ...]
    shares: np.ndarray
    bits: torch.Tensor
    window_start: torch.Tensor
    pages: torch.Tensor
    channels: torch.Tensor
    limits: torch.Tensor | None
    upper_bits: torch.Tensor | None
    sparse_attention: bool
    sparse_mlp: bool
    low_bits: bool

    def realised_by(self, first: int, last: int, layers: int) -> np.ndarray:
        """What layers `first` to `last` (not included) of `layers` contribute to what the whole step realises:
        [N, Q, 3]."""
        if len(self.shares) == 1:
            return np.asarray(self.shares[0] * ((last - first) / layers))
        return np.asarray(self.shares[first:last].sum(0) / layers)

    def at(self, layer: int) -> "Plan":
        """The plan that `layer` follows."""
        tables = {name: getattr(self, name) for name in ("pages", "channels", "limits", "upper_bits")}
        own = {name: table[min(layer, len(table) - 1)] for name, table in tables.items() if table is not None}
        return replace(self, **own)

    def channel_cost(self, site: int) -> torch.Tensor | float:
        """What a channel of a site of one layer counts of the realised share: 1, or less [N, Q] float64 where steps
        read only the upper bits of its weights."""
        if self.upper_bits is None or site >= MLP_SITES:
            return 1.0
        return 1 - self.upper_bits[site].double() * (1 - self.sparsity.upper_bits_part)

    def upper_bits_only(self, site: int) -> torch.Tensor | None:
        """The steps [N, Q, 1] bool that read only the upper bits of the weights of an MLP's site; None: none does."""
        if self.sparsity.bits_site != "weights":
            return None
        asked = self.bits <= HIGH_BITS if self.low_bits else None
        if self.upper_bits is None or not self.sparse_mlp:
            return asked
        upper = self.upper_bits[site][..., None]
        return upper if asked is None else asked | upper

    def drops(self, site: int) -> bool:
        """Whether any step of the pass drops channels at this site."""
        return self.sparse_mlp and site < self.sparsity.sites and self.sparsity.mlp_site != "experts"

    @property
    def sparse(self) -> bool:
        """Whether any step of the pass spends less than everything."""
        return self.sparse_attention or self.sparse_mlp or self.low_bits


def make_plan(keep: np.ndarray, kv_length: np.ndarray, sparsity: SparsityConfig, shapes: ModelShapes) -> Plan:
    """The plan of a pass whose N × Q steps see kv_length [N, Q] keys under actions keep [N, Q, 3] (κ, ρ, bits).

    Raises `PolicyMismatchError` where allocation or thresholds are of a model with another number of layers.
    """
    thresholds, allocation = sparsity.thresholds, sparsity.allocation
    sparsity.check(shapes.layers)
    attention, mlp, bits = np.moveaxis(keep, -1, 0)
    window_start, pages, read = kv_budget(attention, kv_length, sparsity)
    computed, kept = realised_mlp(mlp, sparsity, shapes), site_shares(mlp, sparsity)
    shares = np.stack([read, computed, np.broadcast_to(bits_share(bits, sparsity), read.shape)], -1)

    def by_layer(sites: Any) -> torch.Tensor:
        return torch.from_numpy(np.stack(sites, 1))

    upper = None
    if allocation is not None and allocation.has_bits:
        upper = by_layer([~allocation.reads_all_bits(mlp, site) for site in range(MLP_SITES)])
    below = (keep < np.array(DENSE)).reshape(-1, len(DENSE))
    return Plan(
        sparsity, site_parts(sparsity, shapes), shares, torch.from_numpy(bits.astype(np.int64)[..., None]),
        torch.from_numpy(window_start), torch.from_numpy(pages), by_layer(kept_channels(kept, sparsity, shapes)),
        None if thresholds is None else by_layer(thresholds.at(kept)), upper, *(bool(axis.any()) for axis in below.T),
    )  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """positions: [N, Q] int64 of the pass's tokens; base: [N] int64, a multiple of the page size; prefix_length,
    own_length: tokens held by the prefix and own buffers (the longest row's), the pass's own tokens included. masks:
    kept for the pass."""

    sequences: int
    forks: int
    positions: torch.Tensor
    base: torch.Tensor
    prefix_length: int
    own_length: int
    masks: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """[N, Q, ...] to [S, 1, K, Q, ...], which broadcasts over KV heads."""
        return rows.unflatten(0, (self.sequences, self.forks))[:, None]

    def slots(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The slots of prefix and own buffers, each of `size` tokens, a page or 1: their number in the sequence
        [S, 1, K, 1, slots] int64, and whether a row reads the slot, as some have a shorter prefix, bool."""
        prefix, own = self.prefix_length // size, -(-self.own_length // size)
        index = torch.arange(prefix + own, device=self.positions.device)
        base, in_prefix = self.spread(self.base[:, None, None]) // size, index < prefix
        return torch.where(in_prefix, index, index - prefix + base), ~in_prefix | (index < base)

    def visible(self, sliding_window: int | None) -> torch.Tensor:
        """Causal (and sliding) mask [S, 1, K, Q, P + T] over the prefix's and own tokens."""
        if sliding_window not in self.masks:
            query = self.spread(self.positions)[..., None]
            number, exists = self.slots(1)
            seen = exists & (number <= query)
            self.masks[sliding_window] = seen if sliding_window is None else seen & (number > query - sliding_window)
        return self.masks[sliding_window]  # type: ignore[no-any-return]


@dataclass
class ActivePass:
    """What the hooked modules need during one controlled forward pass.

    plan: of the layer in progress. decide_before: the layer before which `choose` is called, with the residual stream
    [N, Q, H] that enters it, for the plan of the layers from there on. None: the pass keeps its plan. Plan and layout
    follow the layers of a model that lies on several devices.
    """

    plan: Plan
    layout: Layout
    cache: PagedCache
    decide_before: int | None = None
    choose: Callable[[torch.Tensor], Plan] | None = None
    _left_out: torch.Tensor | None = field(default=None, repr=False)  # by thresholds, of all layers

    def __post_init__(self) -> None:
        self._whole = self.plan

    def enter(self, layer: int, hidden: torch.Tensor) -> None:
        """The pass reaches `layer`."""
        if layer == self.decide_before and self.choose is not None:
            self._whole = self.choose(hidden)
        self.plan = self._whole.at(layer)

    def count(self, site: int, share: torch.Tensor) -> None:
        """A site of the layer in progress kept this share [N, Q] float64 of its channels under a threshold."""
        left_out = self.plan.parts[site] * (1 - share * self.plan.channel_cost(site))
        self._left_out = left_out if self._left_out is None else self._left_out.to(left_out.device) + left_out

    @property
    def realised_mlp(self) -> np.ndarray | None:
        """The share of channels that thresholds kept, the mean over layers, sites weighted by `Plan.parts`: [N, Q]
        float64.

        Layers that counted nothing ran dense. None where no layer counted: then the plan's own share holds.
        """
        return None if self._left_out is None else 1 - self._left_out.cpu().numpy() / len(self.cache.layers)

    def follow(self, device: torch.device) -> None:
        """The layer in progress computes on `device`."""
        if self.plan.bits.device != device:
            self.plan = on_device(self.plan, device)
        if self.layout.positions.device != device:
            self.layout = on_device(self.layout, device)


_ACTIVE: ContextVar[ActivePass | None] = ContextVar("solm_active_pass", default=None)


def active_pass() -> ActivePass | None:
    return _ACTIVE.get()


@contextmanager
def activate(current: ActivePass | None) -> Iterator[None]:
    """Make `current` the pass in progress; whatever happens inside, it does not outlive the block."""
    token = _ACTIVE.set(current)
    try:
        yield
    finally:
        _ACTIVE.reset(token)
