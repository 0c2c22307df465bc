"""Shares: how much of the KV cache, of the MLP's channels and of the bits a step realises under an action.

They depend on the action and on the number of keys that the step sees, never on activations. A ledger can therefore be
counted, and a schedule found, without running the model.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from solm.core.actions import FULL_BITS, ActionSpace
from solm.core.cost import ModelShapes
from solm.core.nested import HIGH_BITS
from solm.core.sparsity import SparsityConfig

_PART = 4096
"""KV lengths whose level shares are computed at once, to bound the memory of layers x heads x lengths."""


def ceil_share(share: torch.Tensor, total: torch.Tensor | int) -> torch.Tensor:
    """ceil(share * total) as int64; a product that exceeds an integer by less than 1e-9, such as 0.1 * 30, is that
    integer."""
    return torch.ceil(share.to(torch.float64) * total - 1e-9).to(torch.int64)


@dataclass(frozen=True)
class KVBudget:
    """How much of the KV cache each step reads; all [N, Q] int64.

    window_start: first position of the recent window. pages: number of pages that are chosen besides those always read;
    under an allocation [layers, heads, N, Q], with heads 1 where all KV heads of a layer read alike.
    """

    window_start: torch.Tensor
    pages: torch.Tensor


def kv_budget(keep: torch.Tensor, kv_length: torch.Tensor, sparsity: SparsityConfig) -> tuple[KVBudget, torch.Tensor]:
    """The KV budget of steps that see kv_length [N, Q] keys at keep rate keep [N, Q], and the share of keys that layers
    read: float64 [N, Q], or under an allocation [layers, N, Q].

    Sinks and window are rounded to whole pages and always read. They count against ceil(keep * kv_length) tokens; the
    rest is the number of whole pages chosen between them, which an allocation splits over layers and heads. Without a
    window (`paper`) the page of the current token is chosen like any other.
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


def realised_mlp(keep: torch.Tensor, sparsity: SparsityConfig, shapes: ModelShapes) -> torch.Tensor:
    """The share of MLP channels that layers compute at keep rates keep [...], the mean over the sites in use: float64
    [...], or under an allocation [layers, ...]."""
    if sparsity.allocation is not None:
        keep = sparsity.allocation.channels(keep)
    inputs = (keep, shapes.hidden)
    hidden = (keep**sparsity.hidden_power, shapes.intermediate)
    sites = (inputs, hidden) if sparsity.mlp_site == "input+hidden" else (inputs,)
    shares = [ceil_share(share, size).double() / size for share, size in sites]
    return torch.stack(shares).mean(0)


def bits_share(bits: torch.Tensor, sparsity: SparsityConfig) -> torch.Tensor:
    """The share of 16 bits that `bits` [...] realise. Of weights a step reads the high halves or everything."""
    if sparsity.bits_site == "weights":
        bits = torch.where(bits <= HIGH_BITS, HIGH_BITS, FULL_BITS).to(torch.float64)
    return bits / FULL_BITS


def axis_levels(
    space: ActionSpace,
    kv_length: torch.Tensor,
    sparsity: SparsityConfig,
    shapes: ModelShapes,
    before: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per axis the shares [..., levels] float64 that levels of `space` realise in steps that see kv_length [...] keys.

    before: only the contribution of the layers before this one. Tables are cached, for contexts up to the next power of
    two.
    """
    longest = 1 << int(kv_length.max()).bit_length()
    attention, mlp, bits = _level_tables(space, sparsity, shapes, longest, before)
    shape = kv_length.shape
    return attention[kv_length], mlp.expand(*shape, -1), bits.expand(*shape, -1)


@lru_cache(maxsize=64)
def _level_tables(
    space: ActionSpace, sparsity: SparsityConfig, shapes: ModelShapes, longest: int, before: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shares of attention by KV length [longest + 1, levels], and those of MLP and bits [levels]. Every decoded token
    needs them, so they are computed once."""
    attention = torch.tensor(space.attention, dtype=torch.float64).expand(longest + 1, -1)
    seen = torch.arange(longest + 1).clamp(min=1)[:, None].expand_as(attention)
    mlp = realised_mlp(torch.tensor(space.mlp, dtype=torch.float64), sparsity, shapes)
    bits = bits_share(torch.tensor(space.bits, dtype=torch.float64), sparsity)
    part = 1.0 if before is None else before / shapes.layers

    def contributed(shares: torch.Tensor) -> torch.Tensor:
        return shares * part if sparsity.allocation is None else shares[:before].sum(0) / shapes.layers

    lengths = zip(attention.split(_PART), seen.split(_PART), strict=True)
    read = torch.cat([contributed(kv_budget(keep, count, sparsity)[1]) for keep, count in lengths])
    return read, contributed(mlp), bits * part
