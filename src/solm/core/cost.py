"""What a decode step costs: the shares that it realises, and the bytes that it reads.

Shares depend on the action and on the number of keys that the step sees, never on activations. A ledger can therefore
be counted, and a schedule computed, without running the model. All is computed in NumPy.
"""

from functools import lru_cache

import numpy as np
from pydantic import BaseModel, Field

from solm.core.actions import FULL_BITS, HIGH_BITS, ActionSpace
from solm.core.sparsity import MLP_SITES, SITES, SparsityConfig

_LOW_PART = 2 / 3  # of nested weights' bytes, for a share of 1 left out: at a share of 4 / 16 half of them are left
_ROUNDING = 1e-9
_PART = 4096
"""KV lengths whose level shares are computed at once, to bound the memory of layers x heads x lengths."""


class ModelShapes(BaseModel, frozen=True, extra="forbid"):
    """The sizes of a base model that its cost depends on; weights counted per layer, in elements.

    experts_used: MLPs that a token visits in a layer, each with `intermediate` channels. Their router is not counted.
    shared: channels of one more beside them, which every token reads in full.
    weight_bits, head_bits, cache_bits, bound_bits: what a number of the layers' weights, of the output head, of keys
    and values, and of the bounds of a page's keys takes in memory, with its share of scales. Only `bytes` depends on
    them, and only on their ratios. A model that is not loaded yet has the defaults, right where all have one dtype.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    gated: bool
    experts_used: int = 1
    shared: int = 0
    weight_bits: float = Field(16, exclude=True)
    head_bits: float = Field(16, exclude=True)
    cache_bits: float = Field(16, exclude=True)
    bound_bits: float = Field(16, exclude=True)

    @property
    def attention_weights(self) -> int:
        return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)

    @property
    def up_weights(self) -> int:
        """Weights that consume the MLP's input (gate and up)."""
        return self.down_weights * (2 if self.gated else 1)

    @property
    def down_weights(self) -> int:
        return self.hidden * self.intermediate * self.experts_used

    @property
    def shared_weights(self) -> int:
        return self.hidden * self.shared * (3 if self.gated else 2)

    @property
    def layer_weights(self) -> int:
        return self.attention_weights + self.up_weights + self.down_weights + self.shared_weights

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocabulary

    @property
    def step_bits(self) -> float:
        """Bits of the weights that a dense step reads."""
        return self.layers * self.layer_weights * self.weight_bits + self.head_weights * self.head_bits

    @property
    def site_sizes(self) -> tuple[int, ...]:
        """Channels of each of `SITES` in a layer."""
        return self.hidden, self.intermediate, self.hidden, self.heads * self.head_dim

    @property
    def projection_part(self) -> float:
        """`SparsityConfig.projection_part` by weights, which holds without measurements."""
        return round(self.attention_weights / self.layer_weights, 3)


def ceil_share(share: np.ndarray, total: np.ndarray | int) -> np.ndarray:
    """ceil(share * total) as int64; a product that exceeds an integer by less than 1e-9, such as 0.1 * 30, is that
    integer."""
    return np.asarray(np.ceil(share * total - _ROUNDING).astype(np.int64))


def kv_budget(
    keep: np.ndarray, kv_length: np.ndarray, sparsity: SparsityConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How much of the KV cache steps that see kv_length [...] int64 keys read at keep rates keep [...] float64: the
    first position of the recent window [...] int64; the number of pages that are chosen besides those always read,
    [layers, heads, ...] int64; and the share of keys that layers read, [layers, ...] float64. layers is 1 where all
    layers are alike, heads where all KV heads of a layer are.

    Sinks and window are rounded to whole pages and always read. They count against ceil(keep * kv_length) tokens; the
    rest is the number of whole pages chosen between them, which an allocation splits over layers and heads. Without a
    window (`paper`) the page of the current token is chosen like any other.
    """
    page = sparsity.page_size
    budget = ceil_share(keep, kv_length)
    if sparsity.window == 0:
        candidates = -(-kv_length // page)
        pages = np.minimum(-(-budget // page), candidates)
        return kv_length, pages[None, None], (np.minimum(pages * page, kv_length) / kv_length)[None]
    sinks = -(-sparsity.sinks // page)
    start = ((kv_length - sparsity.window - 1).clip(min=0) // page) * page
    between = (start // page - sinks).clip(min=0)
    always = start.clip(max=sinks * page) + kv_length - start
    if sparsity.allocation is None:
        pages = np.minimum(((budget - always).clip(min=0) + page - 1) // page, between)[None, None]
    else:
        share = (keep * kv_length - always) / (between * page).clip(min=1)
        pages = ceil_share(sparsity.allocation.pages(share.clip(0, 1)), between)
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


def site_shares(keep: np.ndarray, sparsity: SparsityConfig) -> np.ndarray:
    """The share of channels that each site keeps at keep rates keep [...]: [sites, layers, ...] float64, where layers
    is 1 if all are alike."""
    if sparsity.allocation is not None:
        return np.stack([sparsity.allocation.channels(keep, site) for site in range(sparsity.sites)])
    powers = [sparsity.hidden_power if site == "hidden" else 1 for site in SITES[: sparsity.sites]]
    return np.stack([keep**power for power in powers])[:, None]


def kept_channels(shares: np.ndarray, sparsity: SparsityConfig, shapes: ModelShapes) -> list[np.ndarray]:
    """By site how many channels layers keep at `site_shares`, or how many experts they visit: [layers, ...] int64."""
    return [ceil_share(share, size) for share, size in zip(shares, _sizes(sparsity, shapes), strict=False)]


def _sizes(sparsity: SparsityConfig, shapes: ModelShapes) -> tuple[int, ...]:
    """What the shares of sites are shares of."""
    return (shapes.experts_used,) if sparsity.mlp_site == "experts" else shapes.site_sizes


def realised_mlp(keep: np.ndarray, sparsity: SparsityConfig, shapes: ModelShapes) -> np.ndarray:
    """The share of channels that layers compute at keep rates keep [...], sites weighted by `site_parts`:
    [layers, ...] float64, where layers is 1 if all are alike. Channels whose upper bits alone are read count less."""
    channels = kept_channels(site_shares(keep, sparsity), sparsity, shapes)
    kept = [count / size for count, size in zip(channels, _sizes(sparsity, shapes), strict=False)]
    if sparsity.mlp_site == "experts" and sparsity.thresholds is not None:  # an average, and no whole number
        kept = [site_shares(keep, sparsity)[0].clip(min=1 / shapes.experts_used)]
    if sparsity.allocation is not None and sparsity.allocation.has_bits:
        for site in range(MLP_SITES):
            whole = sparsity.allocation.reads_all_bits(keep, site)
            kept[site] = kept[site] * np.where(whole, 1.0, sparsity.upper_bits_part)
    return np.asarray(np.tensordot(site_parts(sparsity, shapes), np.stack(kept), 1))


def equal_mlp(keep: float, sparsity: SparsityConfig, other: SparsityConfig, shapes: ModelShapes) -> float:
    """The keep rate at which steps under `other` realise the share of MLP channels that steps under `sparsity` realise
    at `keep`, to a hundredth."""
    rates = np.arange(1, 101) / 100
    wanted = realised_mlp(np.array([keep]), sparsity, shapes).mean(0)
    return float(rates[abs(realised_mlp(rates, other, shapes).mean(0) - wanted).argmin()])


def bits_share(bits: np.ndarray, sparsity: SparsityConfig) -> np.ndarray:
    """The share of 16 bits that `bits` [...] realise. Of weights a step reads the high halves or everything."""
    if sparsity.bits_site == "weights":
        bits = np.where(bits <= HIGH_BITS, HIGH_BITS, FULL_BITS)
    return bits / FULL_BITS


def level_shares(
    space: ActionSpace,
    kv_length: np.ndarray,
    sparsity: SparsityConfig,
    shapes: ModelShapes,
    before: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per axis the shares that levels of `space` realise in steps that see kv_length [T] keys: float64, of attention
    [T, levels], of the others, which do not depend on it, [levels].

    before: only the contribution of the layers before this one.
    """
    part = 1.0 if before is None else before / shapes.layers

    def contributed(shares: np.ndarray) -> np.ndarray:
        return np.asarray(shares[0] * part if len(shares) == 1 else shares[:before].sum(0) / shapes.layers)

    attention, mlp, bits = (np.array(levels, dtype=np.float64) for levels in (space.attention, space.mlp, space.bits))
    keep, seen = np.broadcast_arrays(attention, kv_length[:, None])
    read = contributed(kv_budget(keep, seen, sparsity)[2])
    return read, contributed(realised_mlp(mlp, sparsity, shapes)), bits_share(bits, sparsity) * part


def axis_levels(
    space: ActionSpace,
    kv_length: np.ndarray,
    sparsity: SparsityConfig,
    shapes: ModelShapes,
    before: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same for kv_length [...], all [..., levels]. Every decoded token needs them: they are computed once, for all
    contexts up to the next power of two."""
    longest = 1 << int(kv_length.max()).bit_length()
    attention, *others = _level_tables(space, sparsity, shapes, longest, before)
    mlp, bits = (np.broadcast_to(axis, (*kv_length.shape, len(axis))) for axis in others)
    return attention[kv_length], mlp, bits


@lru_cache(maxsize=64)
def _level_tables(
    space: ActionSpace, sparsity: SparsityConfig, shapes: ModelShapes, longest: int, before: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`level_shares` of the KV lengths 0 to `longest`."""
    counts = (np.arange(first, min(first + _PART, longest + 1)).clip(min=1) for first in range(0, longest + 1, _PART))
    tables = [level_shares(space, count, sparsity, shapes, before) for count in counts]
    return np.concatenate([table[0] for table in tables]), tables[0][1], tables[0][2]


def relative_bytes(
    realised: np.ndarray,
    kv_length: np.ndarray | int,
    shapes: ModelShapes,
    sparsity: SparsityConfig,
    policy_parameters: int = 0,
) -> np.ndarray:
    """Bytes that decode steps of one row read from memory (weights, KV, bounds of pages), as a share of what the dense
    step reads: float64 [...], above 1 where the policy reads more than it saves.

    realised: [..., axes] float64 shares; activation bits change nothing that is read, high halves of weights are half.
    kv_length: keys visible to the step, broadcastable to [...]. policy_parameters: weights of the policy that controls
    the step, charged to it but not to the dense step, with the bits of the layers' weights.
    """
    attention, mlp, bits = np.moveaxis(realised, -1, 0)
    projections = shapes.attention_weights * (mlp if sparsity.projection_part else 1) + shapes.shared_weights
    of_mlp = (shapes.up_weights + shapes.down_weights) * _mlp_weights(mlp, shapes, sparsity)
    if sparsity.bits_site == "weights":
        of_mlp = of_mlp * (1 - (1 - bits) * _LOW_PART)
    cached = shapes.kv_heads * 2.0 * kv_length * shapes.head_dim
    bounds = cached / sparsity.page_size * (attention < 1)
    weight, number = shapes.weight_bits, shapes.cache_bits
    step = shapes.layers * ((projections + of_mlp) * weight + cached * attention * number + bounds * shapes.bound_bits)
    dense = shapes.layers * (shapes.layer_weights * weight + cached * number)
    always = shapes.head_weights * shapes.head_bits
    return np.asarray((step + always + policy_parameters * weight) / (dense + always))


def _mlp_weights(keep: np.ndarray, shapes: ModelShapes, sparsity: SparsityConfig) -> np.ndarray:
    """Share of the MLP's weights read at a realised share of channels keep [...].

    Dropped input channels skip columns of gate and up, dropped hidden channels skip rows of down. Only the mean over
    layers is known here: those of an allocation are taken to be alike. With attention's projections it is taken to be
    the share itself, which is exact where the parts of `SparsityConfig` count weights; that of experts is.
    """
    up, down, part = shapes.up_weights, shapes.down_weights, sparsity.input_part
    if sparsity.projection_part or sparsity.mlp_site == "experts":
        return keep
    if sparsity.hidden_power == 2:
        # Of keep = part * inputs + (1 - part) * inputs².
        inputs = ((part**2 + 4 * (1 - part) * keep) ** 0.5 - part) / (2 * (1 - part))
        return np.asarray((up * inputs + down * inputs**2) / (up + down))
    return np.asarray((up * keep + down * (keep if sparsity.mlp_site == "input+hidden" else 1)) / (up + down))
