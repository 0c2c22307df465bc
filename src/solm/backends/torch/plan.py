"""The plan of a pass: what every row and position may read and compute under its action, where its tokens lie in the KV
cache, and the pass in progress."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from solm.backends.torch.cache import PagedCache
from solm.core.actions import FULL_BITS, HIGH_BITS
from solm.core.cost import (
    KVBudget,
    ModelShapes,
    bits_share,
    ceil_share,
    kv_budget,
    realised_mlp,
    site_parts,
    site_shares,
)
from solm.core.sparsity import MLP_SITES, SITES, SparsityConfig

INPUT, HIDDEN, QKV, OUT = range(len(SITES))
"""Numbers of `SITES`."""


@dataclass(frozen=True)
class Plan:
    """One forward pass's actions, for N rows and Q positions.

    keep: [N, Q, 3] float64 (κ, ρ, bits); kv: the KV budget; shares: [N, Q, 3] float64 that layers realise (κ, ρ, b/16).
    Under an allocation layers differ: shares are [layers, N, Q, 3], and `at` gives the plan of one of them.
    of_layer: the shares [N, Q] of channels that the sites of one layer keep, where layers differ. upper_of_layer:
    by site of its MLP, the steps [N, Q] that read only the upper bits of its weights, None where the allocation does
    not say.
    parts: what every site counts of the realised share of channels.
    sparse_attention, sparse_mlp, low_bits: whether any step of the pass uses that axis, read from the device once
    a pass so that an axis that nobody uses costs nothing.
    """

    sparsity: SparsityConfig
    parts: tuple[float, ...]
    keep: torch.Tensor
    kv: KVBudget
    shares: torch.Tensor
    sparse_attention: bool
    sparse_mlp: bool
    low_bits: bool
    of_layer: tuple[torch.Tensor, ...] | None = None
    upper_of_layer: tuple[torch.Tensor | None, ...] = (None,) * MLP_SITES
    _counts: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict, repr=False)

    @property
    def realised(self) -> torch.Tensor:
        """What the whole step realises: [N, Q, 3]."""
        return self.shares if self.sparsity.allocation is None else self.shares.mean(0)

    def realised_by(self, first: int, last: int, layers: int) -> torch.Tensor:
        """What of it layers `first` to `last` (not included) of `layers` contribute: [N, Q, 3]."""
        if self.sparsity.allocation is None:
            return self.shares * ((last - first) / layers)
        return self.shares[first:last].sum(0) / layers

    def at(self, layer: int) -> "Plan":
        """The plan that `layer` follows."""
        if self.sparsity.allocation is None:
            return self
        kv = KVBudget(self.kv.window_start, self.kv.pages[layer])
        shares = tuple(share[layer] for share in self._site_shares)
        upper = tuple(None if steps is None else steps[layer] for steps in self._upper_bits)
        return replace(self, kv=kv, of_layer=shares, upper_of_layer=upper, _counts={})

    @cached_property
    def _site_shares(self) -> list[torch.Tensor]:
        return site_shares(self.keep[..., 1], self.sparsity)

    @cached_property
    def _upper_bits(self) -> list[torch.Tensor | None]:
        """By site of the MLP, [layers, N, Q] bool."""
        allocation = self.sparsity.allocation
        assert allocation is not None
        whole = [allocation.reads_all_bits(self.keep[..., 1], site) for site in range(MLP_SITES)]
        return [None if steps is None else ~steps for steps in whole]

    def channel_cost(self, site: int) -> torch.Tensor | float:
        """What a channel of a site counts of the realised share: 1, or less [N, Q] float64 where the allocation has
        steps read only the upper bits of its weights."""
        upper = self.upper_of_layer[site] if site < MLP_SITES else None
        return 1.0 if upper is None else 1 - upper.double() * (1 - self.sparsity.upper_bits_part)

    def upper_bits_only(self, site: int) -> torch.Tensor | None:
        """The steps [N, Q, 1] bool that read only the upper bits of the weights of an MLP's site; None: none does."""
        if self.sparsity.bits_site != "weights":
            return None
        asked = self.bits <= HIGH_BITS if self.low_bits else None
        upper = self.upper_of_layer[site]
        if upper is None or not self.sparse_mlp:
            return asked
        return upper[..., None] if asked is None else asked | upper[..., None]

    def share(self, site: int) -> torch.Tensor:
        """The share of channels that steps keep at a site: [N, Q]."""
        return (self._site_shares if self.of_layer is None else self.of_layer)[site]

    def channels(self, size: int, site: int) -> torch.Tensor:
        """Channels kept out of `size` at a site: [N, Q, 1] int64."""
        if (size, site) not in self._counts:
            self._counts[size, site] = ceil_share(self.share(site)[..., None], size)
        return self._counts[size, site]

    def drops(self, site: int) -> bool:
        """Whether any step of the pass drops channels at this site."""
        return self.sparse_mlp and site < self.sparsity.sites

    @property
    def sparse(self) -> bool:
        """Whether any step of the pass spends less than everything."""
        return self.sparse_attention or self.sparse_mlp or self.low_bits

    def to(self, device: torch.device) -> "Plan":
        """The plan with its tensors on `device`."""
        kv = KVBudget(self.kv.window_start.to(device), self.kv.pages.to(device))
        of_layer = None if self.of_layer is None else tuple(share.to(device) for share in self.of_layer)
        upper = tuple(None if steps is None else steps.to(device) for steps in self.upper_of_layer)
        return replace(
            self, keep=self.keep.to(device), kv=kv, shares=self.shares.to(device), of_layer=of_layer,
            upper_of_layer=upper, _counts={},
        )  # fmt: skip

    @cached_property
    def bits(self) -> torch.Tensor:
        """[N, Q, 1] int64."""
        return self.keep[..., 2:3].to(torch.int64)


def make_plan(keep: torch.Tensor, kv_length: torch.Tensor, sparsity: SparsityConfig, shapes: ModelShapes) -> Plan:
    """The plan of a pass whose N × Q steps see kv_length [N, Q] keys under actions keep [N, Q, 3] (κ, ρ, bits).

    Raises `PolicyMismatchError` where the thresholds are of a model with another number of layers.
    """
    if sparsity.thresholds is not None:
        sparsity.thresholds.check(shapes.layers)
    budget, attention = kv_budget(keep[..., 0], kv_length, sparsity)
    dense = torch.tensor([1.0, 1.0, float(FULL_BITS)], dtype=keep.dtype, device=keep.device)
    used = (keep < dense).flatten(0, -2).any(0).tolist()
    mlp = realised_mlp(keep[..., 1], sparsity, shapes)
    bits = bits_share(keep[..., 2], sparsity).expand_as(mlp)
    shares = torch.stack([attention, mlp, bits], -1)
    return Plan(sparsity, site_parts(sparsity, shapes), keep, budget, shares, *used)


@dataclass(frozen=True)
class Layout:
    """positions: [N, Q] int64 of the pass's tokens; base: [N] int64, a multiple of the page size; prefix_length,
    own_length: tokens held by the prefix and own buffers (the longest row's), the pass's own tokens included;
    uniform_base: whether all rows have the same base."""

    sequences: int
    forks: int
    positions: torch.Tensor
    base: torch.Tensor
    prefix_length: int
    own_length: int
    uniform_base: bool
    candidates: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _masks: dict[int | None, tuple[torch.Tensor | None, torch.Tensor]] = field(default_factory=dict)

    def to(self, device: torch.device) -> "Layout":
        """The layout with its tensors on `device`."""
        return replace(self, positions=self.positions.to(device), base=self.base.to(device), candidates={}, _masks={})

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """[N, Q, ...] to [S, 1, K, Q, ...], which broadcasts over KV heads."""
        return rows.unflatten(0, (self.sequences, self.forks))[:, None]

    def spread_heads(self, counts: torch.Tensor) -> torch.Tensor:
        """[N, Q], or [H, N, Q] of H heads (or 1 for all), to [S, H, K, Q]."""
        if counts.ndim == 2:
            return self.spread(counts)
        return counts.unflatten(1, (self.sequences, self.forks)).transpose(0, 1)

    @property
    def prefix_positions(self) -> torch.Tensor:
        """[P] int64."""
        return torch.arange(self.prefix_length, device=self.positions.device)

    @property
    def own_positions(self) -> torch.Tensor:
        """Position of each own slot: [S, 1, K, 1, T] int64."""
        slots = torch.arange(self.own_length, device=self.positions.device)
        return self.spread(self.base[:, None, None] + slots)

    def visible(self, sliding_window: int | None) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Causal (and sliding) masks over the prefix [S, 1, K, Q, P] (None: all) and own slots [S, 1, K, Q, T]."""
        if sliding_window not in self._masks:
            query = self.spread(self.positions)[..., None]
            prefix, own = self.prefix_positions, self.own_positions
            see_prefix = None
            if self.prefix_length and not self.uniform_base:
                see_prefix = prefix < self.spread(self.base[:, None, None])
            see_own = own <= query
            if sliding_window is not None:
                near = prefix > query - sliding_window
                see_prefix = near if see_prefix is None else see_prefix & near
                see_own = see_own & (own > query - sliding_window)
            self._masks[sliding_window] = (see_prefix, see_own)
        return self._masks[sliding_window]


@dataclass
class ActivePass:
    """What the hooked modules need during one controlled forward pass.

    plan: of the layer in progress. decide_before: the layer before which `choose` is called, with the residual stream
    [N, Q, H] that enters it, for the plan of the layers from there on. None: the pass keeps its plan. layer: the one
    in progress. Plan and layout follow the layers of a model that lies on several devices.
    """

    plan: Plan
    layout: Layout
    cache: PagedCache
    decide_before: int | None = None
    choose: Callable[[torch.Tensor], Plan] | None = None
    layer: int = 0
    _left_out: torch.Tensor | None = field(default=None, repr=False)  # by thresholds, of all layers

    def __post_init__(self) -> None:
        self._whole = self.plan

    def enter(self, layer: int, hidden: torch.Tensor) -> None:
        """The pass reaches `layer`."""
        self.layer = layer
        if layer == self.decide_before and self.choose is not None:
            self._whole = self.choose(hidden)
        self.plan = self._whole.at(layer)

    def count(self, site: int, share: torch.Tensor) -> None:
        """A site of the layer in progress kept this share [N, Q] float64 of its channels under a threshold."""
        left_out = self.plan.parts[site] * (1 - share * self.plan.channel_cost(site))
        self._left_out = left_out if self._left_out is None else self._left_out.to(left_out.device) + left_out

    def realised_mlp(self) -> torch.Tensor | None:
        """The share of channels that thresholds kept, the mean over layers, sites weighted by `Plan.parts`: [N, Q]
        float64 on the CPU.

        Layers that counted nothing ran dense. None where no layer counted: then the plan's own share holds.
        """
        return None if self._left_out is None else 1 - self._left_out.cpu() / len(self.cache.layers)

    def follow(self, device: torch.device) -> None:
        """The layer in progress computes on `device`."""
        if self.plan.keep.device != device:
            self.plan = self.plan.to(device)
        if self.layout.positions.device != device:
            self.layout = self.layout.to(device)


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
