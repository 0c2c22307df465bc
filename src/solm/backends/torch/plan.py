"""From actions to per-step quantities: what each row and position may read, and what that realises.

Everything here depends only on the action and on how many keys the step sees, never on activations. So what a schedule
spends is known without running the model. Thresholds on channels are the exception: there a plan's MLP share is what is
asked for, and what is realised is counted in the pass.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import torch

from solm.core.actions import FULL_BITS, ActionSpace
from solm.core.cost import ModelShapes
from solm.core.errors import SolmError
from solm.core.nested import HIGH_BITS
from solm.core.sparsity import SparsityConfig

INPUT, HIDDEN = 0, 1
"""The MLP's sites: what gate and up read, and what down reads."""
_PART = 4096  # KV lengths whose levels are found at once


def ceil_share(share: torch.Tensor, total: torch.Tensor | int) -> torch.Tensor:
    """ceil(share · total) as int64, immune to the rounding of a product such as 0.1 · 30 in binary."""
    return torch.ceil(share.to(torch.float64) * total - 1e-9).to(torch.int64)


@dataclass(frozen=True)
class KVBudget:
    """How much of the KV cache each step reads; all [N, Q] int64.

    window_start: first position of the recent window. pages: pages that are chosen beyond what is always read; under an
    allocation those of every KV head (or of all of them, heads 1): [layers, heads, N, Q], of which `Plan.at` takes the
    layer's.
    """

    window_start: torch.Tensor
    pages: torch.Tensor


def kv_budget(keep: torch.Tensor, kv_length: torch.Tensor, sparsity: SparsityConfig) -> tuple[KVBudget, torch.Tensor]:
    """The KV budget of steps that see kv_length [N, Q] keys at keep rate κ [N, Q], and the share that layers realise:
    [N, Q], or under an allocation [layers, N, Q].

    Sinks and window are rounded to whole pages, always read, and count against ceil(κ·n) tokens; what is left buys
    whole pages between them, of which an allocation gives every layer its own number. Without sinks and window
    (`paper`) the page that holds the current token is an ordinary candidate.
    """
    page = sparsity.page_size
    budget = ceil_share(keep, kv_length)
    if sparsity.window == 0:
        candidates = -(-kv_length // page)
        pages = torch.minimum(-(-budget // page), candidates)
        read = torch.minimum(pages * page, kv_length)
        return KVBudget(kv_length, pages), read / kv_length.double()
    sinks = -(-sparsity.sinks // page)
    start = ((kv_length - sparsity.window - 1).clamp(min=0) // page) * page
    between = (start // page - sinks).clamp(min=0)
    always = start.clamp(max=sinks * page) + kv_length - start
    if sparsity.allocation is None:
        pages = torch.minimum(((budget - always).clamp(min=0) + page - 1) // page, between)
    else:
        share = (keep.to(torch.float64) * kv_length - always) / (between * page).clamp(min=1)
        pages = ceil_share(sparsity.allocation.pages(share.clamp(0, 1)), between)
        read = (always + pages * page).double().mean(1)
        return KVBudget(start, pages), read / kv_length.double()
    return KVBudget(start, pages), (always + pages * page) / kv_length.double()


@dataclass(frozen=True)
class Plan:
    """One forward pass's actions, for N rows and Q positions.

    keep: [N, Q, 3] float64 (κ, ρ, bits); kv: the KV budget; shares: [N, Q, 3] float64 that layers realise (κ, ρ, b/16).
    Under an allocation layers differ: shares are [layers, N, Q, 3], and `at` gives the plan of one of them.
    sparse_attention, sparse_mlp, low_bits: whether any step of the pass uses that axis, read from the device once
    a pass so that an axis that nobody uses costs nothing.
    """

    sparsity: SparsityConfig
    keep: torch.Tensor
    kv: KVBudget
    shares: torch.Tensor
    sparse_attention: bool
    sparse_mlp: bool
    low_bits: bool
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
        keep = torch.stack([self.keep[..., 0], self._channel_shares[layer], self.keep[..., 2]], -1)
        return replace(self, keep=keep, kv=replace(self.kv, pages=self.kv.pages[layer]), _counts={})

    @cached_property
    def _channel_shares(self) -> torch.Tensor:
        assert self.sparsity.allocation is not None
        return self.sparsity.allocation.channels(self.keep[..., 1])

    def channels(self, size: int, power: int = 1) -> torch.Tensor:
        """Channels kept out of `size` at a site that keeps ρ to `power`: [N, Q, 1] int64."""
        if (size, power) not in self._counts:
            self._counts[size, power] = ceil_share(self.keep[..., 1:2] ** power, size)
        return self._counts[size, power]

    def drops(self, site: int) -> bool:
        """Whether any step of the pass drops channels at this site of the MLP."""
        return self.sparse_mlp and (site == INPUT or self.sparsity.mlp_site == "input+hidden")

    @property
    def sparse(self) -> bool:
        """Whether any step of the pass spends less than everything."""
        return self.sparse_attention or self.sparse_mlp or self.low_bits

    def to(self, device: torch.device) -> "Plan":
        """The plan with its tensors on `device`."""
        kv = KVBudget(self.kv.window_start.to(device), self.kv.pages.to(device))
        return replace(self, keep=self.keep.to(device), kv=kv, shares=self.shares.to(device), _counts={})

    @cached_property
    def bits(self) -> torch.Tensor:
        """[N, Q, 1] int64."""
        return self.keep[..., 2:3].to(torch.int64)


def realised_mlp(keep: torch.Tensor, sparsity: SparsityConfig, shapes: ModelShapes) -> torch.Tensor:
    """Share of MLP channels that every layer keeps at keep rates ρ [...], the mean over the sites in use: float64
    [layers, ...], or without an allocation [...]."""
    if sparsity.allocation is not None:
        keep = sparsity.allocation.channels(keep)
    inputs = (keep, shapes.hidden)
    hidden = (keep**sparsity.hidden_power, shapes.intermediate)
    sites = (inputs, hidden) if sparsity.mlp_site == "input+hidden" else (inputs,)
    shares = [ceil_share(share, size).double() / size for share, size in sites]
    return torch.stack(shares).mean(0)


def bits_share(bits: torch.Tensor, sparsity: SparsityConfig) -> torch.Tensor:
    """What `bits` [...] realise as a share of 16: of weights there are the high halves or all."""
    if sparsity.bits_site == "weights":
        bits = torch.where(bits <= HIGH_BITS, HIGH_BITS, FULL_BITS).to(torch.float64)
    return bits / FULL_BITS


def make_plan(keep: torch.Tensor, kv_length: torch.Tensor, sparsity: SparsityConfig, shapes: ModelShapes) -> Plan:
    """The plan of a pass whose N × Q steps see kv_length [N, Q] keys under actions keep [N, Q, 3] (κ, ρ, bits).

    Raises `SolmError` where the thresholds are of a model with another number of layers.
    """
    if sparsity.thresholds is not None and sparsity.thresholds.layers != shapes.layers:
        raise SolmError(f"thresholds of {sparsity.thresholds.layers} layers do not fit a model of {shapes.layers}")
    budget, attention = kv_budget(keep[..., 0], kv_length, sparsity)
    dense = torch.tensor([1.0, 1.0, float(FULL_BITS)], dtype=keep.dtype, device=keep.device)
    used = (keep < dense).flatten(0, -2).any(0).tolist()
    mlp = realised_mlp(keep[..., 1], sparsity, shapes)
    bits = bits_share(keep[..., 2], sparsity).expand_as(mlp)
    return Plan(sparsity, keep, budget, torch.stack([attention, mlp, bits], -1), *used)


def axis_levels(
    space: ActionSpace,
    kv_length: torch.Tensor,
    sparsity: SparsityConfig,
    shapes: ModelShapes,
    before: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per axis what every level of `space` realises for steps that see kv_length [...] keys: shares [..., levels].

    before: what the layers before this one contribute to them, instead of the whole.
    """
    longest = 1 << int(kv_length.max()).bit_length()
    attention, mlp, bits = _level_tables(space, sparsity, shapes, longest, before)
    shape = kv_length.shape
    return attention[kv_length], mlp.expand(*shape, -1), bits.expand(*shape, -1)


@lru_cache(maxsize=64)
def _level_tables(
    space: ActionSpace, sparsity: SparsityConfig, shapes: ModelShapes, longest: int, before: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shares by KV length, attention [longest + 1, levels], and those that do not depend on it: they are asked for at
    every decoded token."""
    attention = torch.tensor(space.attention, dtype=torch.float64).expand(longest + 1, -1)
    seen = torch.arange(longest + 1).clamp(min=1)[:, None].expand_as(attention)
    mlp = realised_mlp(torch.tensor(space.mlp, dtype=torch.float64), sparsity, shapes)
    bits = bits_share(torch.tensor(space.bits, dtype=torch.float64), sparsity)
    part = 1.0 if before is None else before / shapes.layers

    def contributed(shares: torch.Tensor) -> torch.Tensor:
        return shares * part if sparsity.allocation is None else shares[:before].sum(0) / shapes.layers

    # In parts, as a long context of many layers and heads would not fit into memory.
    lengths = zip(attention.split(_PART), seen.split(_PART), strict=True)
    read = torch.cat([contributed(kv_budget(keep, count, sparsity)[1]) for keep, count in lengths])
    return read, contributed(mlp), bits * part
