"""Shares: how much of the KV cache, of the MLP's channels and of the bits a step realises under an action.

They depend on the action and on the number of keys that the step sees, never on activations. A ledger can therefore be
counted, and a schedule found, without running the model. All is computed in NumPy; who gives tensors gets tensors.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from solm.core.actions import FULL_BITS, ActionSpace
from solm.core.arrays import AnyArray, Array, as_numpy, in_kind, is_tensor
from solm.core.cost import ModelShapes
from solm.core.nested import HIGH_BITS
from solm.core.sparsity import SparsityConfig
from solm.core.thresholds import SITES

HIDDEN_SITE = SITES.index("hidden")
_ROUNDING = 1e-9
_PART = 4096
"""KV lengths whose level shares are computed at once, to bound the memory of layers x heads x lengths."""


def ceil_share(share: AnyArray, total: Array | int) -> AnyArray:
    """ceil(share * total) as int64; a product that exceeds an integer by less than 1e-9, such as 0.1 * 30, is that
    integer."""
    if is_tensor(share):  # which may be on an accelerator
        on_device: Any = share
        return (on_device.double() * total - _ROUNDING).ceil().long()
    return _ceil_share(as_numpy(share), total if isinstance(total, int) else as_numpy(total))  # type: ignore[return-value]


def _ceil_share(share: np.ndarray, total: np.ndarray | int) -> np.ndarray:
    return np.asarray(np.ceil(share.astype(np.float64) * total - _ROUNDING).astype(np.int64))


@dataclass(frozen=True)
class KVBudget:
    """How much of the KV cache each step reads; all [N, Q] int64.

    window_start: first position of the recent window. pages: number of pages that are chosen besides those always read;
    under an allocation [layers, heads, N, Q], with heads 1 where all KV heads of a layer read alike.
    """

    window_start: Any
    pages: Any


def kv_budget(keep: AnyArray, kv_length: AnyArray, sparsity: SparsityConfig) -> tuple[KVBudget, AnyArray]:
    """The KV budget of steps that see kv_length [N, Q] keys at keep rate keep [N, Q], and the share of keys that layers
    read: float64 [N, Q], or under an allocation [layers, N, Q].

    Sinks and window are rounded to whole pages and always read. They count against ceil(keep * kv_length) tokens; the
    rest is the number of whole pages chosen between them, which an allocation splits over layers and heads. Without a
    window (`paper`) the page of the current token is chosen like any other.
    """
    start, pages, share = _kv_budget(as_numpy(keep), as_numpy(kv_length), sparsity)
    return KVBudget(in_kind(start, kv_length), in_kind(pages, kv_length)), in_kind(share, kv_length)


def _kv_budget(
    keep: np.ndarray, kv_length: np.ndarray, sparsity: SparsityConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first position of the window, the pages that are chosen, and the share of keys that are read."""
    page = sparsity.page_size
    budget = _ceil_share(keep, kv_length)
    if sparsity.window == 0:
        candidates = -(-kv_length // page)
        pages = np.minimum(-(-budget // page), candidates)
        return kv_length, pages, np.minimum(pages * page, kv_length) / kv_length
    sinks = -(-sparsity.sinks // page)
    start = ((kv_length - sparsity.window - 1).clip(min=0) // page) * page
    between = (start // page - sinks).clip(min=0)
    always = start.clip(max=sinks * page) + kv_length - start
    if sparsity.allocation is None:
        pages = np.minimum(((budget - always).clip(min=0) + page - 1) // page, between)
        return start, pages, (always + pages * page) / kv_length
    share = (keep.astype(np.float64) * kv_length - always) / (between * page).clip(min=1)
    pages = _ceil_share(sparsity.allocation.pages(share.clip(0, 1)), between)
    return start, pages, (always + pages * page).mean(1) / kv_length


def site_parts(sparsity: SparsityConfig, shapes: ModelShapes) -> tuple[float, ...]:
    """What each site that drops channels counts of a layer's realised share: they add up to 1."""
    if sparsity.sites == 1:
        return (1.0,)
    mlp = 1 - sparsity.projection_part
    parts = (mlp * sparsity.input_part, mlp * (1 - sparsity.input_part))
    if not sparsity.projection_part:
        return parts
    qkv = (shapes.heads + 2 * shapes.kv_heads) / (2 * (shapes.heads + shapes.kv_heads))
    return (*parts, sparsity.projection_part * qkv, sparsity.projection_part * (1 - qkv))


def site_shares(keep: AnyArray, sparsity: SparsityConfig) -> list[AnyArray]:
    """The share of channels that each site keeps at keep rates keep [...]: float64 [...], or under an allocation
    [layers, ...]."""
    allocation = sparsity.allocation
    first: AnyArray = keep if allocation is None else allocation.channels(keep)  # type: ignore[assignment]
    shares = []
    for site in range(sparsity.sites):
        own = None if allocation is None else allocation.channels(keep, site)
        power = sparsity.hidden_power if site == HIDDEN_SITE else 1
        shares.append(first**power if own is None else own)
    return shares


def channel_costs(keep: AnyArray, sparsity: SparsityConfig) -> list[Any]:
    """What a channel of each site counts of the realised share at keep rates keep [...]: 1, or under an allocation of
    weight bits [layers, ...] float64."""
    allocation = sparsity.allocation
    if allocation is None or not allocation.has_bits:
        return [1.0] * sparsity.sites
    rates, part, costs = as_numpy(keep), sparsity.upper_bits_part, []
    for site in range(sparsity.sites):
        whole = allocation.reads_all_bits(rates, site)
        costs.append(1.0 if whole is None else in_kind(np.where(whole, 1.0, part), keep))
    return costs


def realised_mlp(keep: AnyArray, sparsity: SparsityConfig, shapes: ModelShapes) -> AnyArray:
    """The share of channels that layers compute at keep rates keep [...], sites weighted by `site_parts`: float64
    [...], or under an allocation [layers, ...]."""
    sizes = (shapes.hidden, shapes.intermediate, shapes.hidden, shapes.heads * shapes.head_dim)
    rates = as_numpy(keep)
    shares, costs = site_shares(rates, sparsity), channel_costs(rates, sparsity)
    kept = np.stack(
        [
            _ceil_share(as_numpy(share), size) / size * cost
            for share, size, cost in zip(shares, sizes, costs, strict=False)
        ]
    )
    return in_kind(np.tensordot(site_parts(sparsity, shapes), kept, 1), keep)


def equal_mlp(keep: float, sparsity: SparsityConfig, other: SparsityConfig, shapes: ModelShapes) -> float:
    """The keep rate at which steps under `other` realise the share of MLP channels that steps under `sparsity` realise
    at `keep`, to a hundredth."""

    def mean(rates: np.ndarray, under: SparsityConfig) -> np.ndarray:
        return np.asarray(realised_mlp(rates, under, shapes)).reshape(-1, len(rates)).mean(0)

    rates = np.arange(1, 101) / 100
    return float(rates[abs(mean(rates, other) - mean(np.array([keep]), sparsity)).argmin()])


def bits_share(bits: AnyArray, sparsity: SparsityConfig) -> AnyArray:
    """The share of 16 bits that `bits` [...] realise. Of weights a step reads the high halves or everything."""
    if sparsity.bits_site != "weights":
        return bits / FULL_BITS
    return in_kind(np.where(as_numpy(bits) <= HIGH_BITS, HIGH_BITS, FULL_BITS) / FULL_BITS, bits)


def axis_levels(
    space: ActionSpace,
    kv_length: AnyArray,
    sparsity: SparsityConfig,
    shapes: ModelShapes,
    before: int | None = None,
) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Per axis the shares [..., levels] float64 that levels of `space` realise in steps that see kv_length [...] keys.

    before: only the contribution of the layers before this one. Tables are cached, for contexts up to the next power of
    two.
    """
    lengths: np.ndarray = as_numpy(kv_length)
    longest = 1 << int(lengths.max()).bit_length()
    attention, mlp, bits = _level_tables(space, sparsity, shapes, longest, before)
    everywhere = [np.broadcast_to(axis, (*lengths.shape, len(axis))) for axis in (mlp, bits)]
    return (
        in_kind(attention[lengths], kv_length), in_kind(everywhere[0], kv_length), in_kind(everywhere[1], kv_length)
    )  # fmt: skip


@lru_cache(maxsize=64)
def _level_tables(
    space: ActionSpace, sparsity: SparsityConfig, shapes: ModelShapes, longest: int, before: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares of attention by KV length [longest + 1, levels], and those of MLP and bits [levels]. Every decoded token
    needs them, so they are computed once."""
    levels = np.array(space.attention, dtype=np.float64)[None]
    mlp = realised_mlp(np.array(space.mlp, dtype=np.float64), sparsity, shapes)
    bits = bits_share(np.array(space.bits, dtype=np.float64), sparsity)
    part = 1.0 if before is None else before / shapes.layers

    def contributed(shares: np.ndarray) -> np.ndarray:
        return np.asarray(shares * part if sparsity.allocation is None else shares[:before].sum(0) / shapes.layers)

    def read(first: int) -> np.ndarray:
        count = np.arange(first, min(first + _PART, longest + 1)).clip(min=1)[:, None]
        keep, seen = np.broadcast_arrays(levels, count)
        return contributed(_kv_budget(keep, seen, sparsity)[2])

    return np.concatenate([read(first) for first in range(0, longest + 1, _PART)]), contributed(mlp), bits * part
