"""The plan of a pass: what every row and position may read and compute under its action (`solm.core.cost`)."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

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
