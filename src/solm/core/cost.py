"""What a decode step costs: the shares that it realises, the bytes that it reads, the milliseconds that it takes.

Shares depend on the action and on the number of keys that the step sees, never on activations. A ledger can therefore
be counted, and a schedule computed, without running the model. All is computed in NumPy.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from solm.core.actions import FULL_BITS, HIGH_BITS, ActionSpace
from solm.core.errors import PolicyMismatchError, counted
from solm.core.provenance import plain_name
from solm.core.sparsity import MLP_SITES, SITES, SparsityConfig

LEVELS = ActionSpace(attention=(0.1, 0.2, 0.4, 1.0), mlp=(0.4, 0.6, 0.8, 1.0))
"""What `StepTimings` are measured at: one axis at a time, the others dense. Bits of activations change no step's
time."""
_LOW_PART = 2 / 3  # of nested weights' bytes, for a share of 1 left out: at a share of 4 / 16 half of them are left
_ROUNDING = 1e-9
_PART = 4096
"""KV lengths whose level shares are computed at once, to bound the memory of layers x heads x lengths."""


class ModelShapes(BaseModel):
    """The sizes of a base model that its cost depends on; weights counted per layer, in elements.

    experts_used: MLPs that a token visits in a layer, each with `intermediate` channels. Their router is not counted.
    weight_bits, head_bits, cache_bits, bound_bits: what a number of the layers' weights, of the output head, of keys
    and values, and of the bounds of a page's keys takes in memory, with its share of scales. Only `bytes` depends on
    them, and only on their ratios. A model that is not loaded yet has the defaults, right where all have one dtype.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    gated: bool
    experts_used: int = 1
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
    def layer_weights(self) -> int:
        return self.attention_weights + self.up_weights + self.down_weights

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocabulary

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
    projections = shapes.attention_weights * (mlp if sparsity.projection_part else 1)
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


class StepTimings(BaseModel):
    """Milliseconds of a step at batch 1, [contexts][levels] per axis; the last level is dense.

    Savings of the two axes are taken to add up; `joint_ms`, both at their lowest levels, shows how far that is so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: int = Field(1, ge=1, le=1)
    model: str
    backend: str
    threads: int = Field(ge=1)
    contexts: tuple[int, ...] = Field(min_length=1)
    attention: tuple[float, ...] = LEVELS.attention
    mlp: tuple[float, ...] = LEVELS.mlp
    attention_ms: tuple[tuple[float, ...], ...]
    mlp_ms: tuple[tuple[float, ...], ...]
    joint_ms: tuple[float, ...]
    hidden: tuple[float, ...] = ()
    hidden_ms: tuple[tuple[float, ...], ...] = ()
    """Where it was measured: steps that keep these shares of the MLP's hidden channels and all else, [contexts]
    [levels]."""
    projected: tuple[float, ...] = ()
    projected_ms: tuple[tuple[float, ...], ...] = ()
    """The same for the inputs of attention's projections."""
    halved_ms: tuple[float, ...] = ()
    """Where bits are those of nested weights: steps that read the high halves alone, [contexts]."""
    gigabytes_per_second: float = Field(gt=0)
    """Plain reading, on the threads that were measured."""
    command: str = ""
    environment: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> "StepTimings":
        rows = len(self.contexts)
        if list(self.contexts) != sorted(set(self.contexts)) or self.contexts[0] < 1:
            raise ValueError(f"contexts must rise, got {self.contexts}")
        for name in ("attention", "mlp", "hidden", "projected"):
            levels, table = getattr(self, name), getattr(self, f"{name}_ms")
            if levels and (len(table) != rows or any(len(row) != len(levels) for row in table)):
                raise ValueError(f"{name}_ms must have {rows} rows of {len(levels)}")
            if any(value <= 0 for row in table for value in row):
                raise ValueError(f"{name}_ms holds a time that is not positive")
        if len(self.joint_ms) != rows or len(self.halved_ms) not in (0, rows):
            raise ValueError(f"joint_ms must have {rows} values, and halved_ms as many or none")
        return self

    @property
    def processor(self) -> str:
        """The processor that was measured; empty where the file does not say."""
        return str(self.environment.get("machine", {}).get("processor", ""))

    @property
    def measured_on(self) -> str:
        """Backend, threads and processor, in words."""
        return machine(self.backend, self.threads, self.processor)

    def elsewhere(self, backend: str, threads: int, processor: str) -> str | None:
        """What to say where steps were timed on another backend, another processor or with other threads; else None."""
        same = self.processor in ("", processor) and (self.backend, self.threads) == (backend, threads)
        if same:
            return None
        here = machine(backend, threads, processor if self.processor else "")
        return (
            f"step times were measured on {self.measured_on}, and this is {here}: budgets in time may be missed; "
            "measure with solm bench --policy POLICY --out FILE, and give --timings FILE"
        )

    @property
    def dense_ms(self) -> tuple[float, ...]:
        """Milliseconds of the dense step [contexts], the mean of two measurements: it is measured for both axes."""
        return tuple((one + other) / 2 for one, other in self._dense_twice)

    @property
    def disturbances(self) -> tuple[float, ...]:
        """By context the relative difference of two measurements of one step: the dense one is measured for both axes.
        A quiet machine stays below 0.05."""
        return tuple(abs(one - other) / min(one, other) for one, other in self._dense_twice)

    @property
    def _dense_twice(self) -> list[tuple[float, float]]:
        return [(pages[-1], channels[-1]) for pages, channels in zip(self.attention_ms, self.mlp_ms, strict=True)]

    def cost(self, sparsity: SparsityConfig, shapes: ModelShapes) -> "MeasuredCost":
        """The cost of steps under `sparsity`."""
        return MeasuredCost.of(self, sparsity, shapes)

    def lowest(self, other: "StepTimings") -> "StepTimings":
        """Of every step the lower of its times in two measurements: what other processes add only makes it longer.
        other: of all contexts of this one or some."""
        again, found = np.isin(self.contexts, other.contexts), self.model_dump()
        for name in ("attention_ms", "mlp_ms", "hidden_ms", "projected_ms", "joint_ms", "halved_ms"):
            times = np.array(found[name])
            if len(times):
                times[again] = np.minimum(times[again], getattr(other, name))
            found[name] = times.tolist()
        return StepTimings(**found)

    def check(self, model: str, backend: str = "auto", sparsity: SparsityConfig | None = None) -> None:
        """Raises `PolicyMismatchError` where it was measured for another model than `model`, not on `backend` (its
        name, such as ``cpu int8``, ``cpu`` or ``torch``, or ``auto`` for any), or does not cover `sparsity`."""
        if sparsity is not None and sparsity.bits_site == "weights" and not self.halved_ms:
            raise PolicyMismatchError("these timings do not cover the bits of weights; run solm bench --policy")
        check_measured(self.model, self.backend, model, backend)


def check_measured(model: str, backend: str, wanted: str, on: str = "auto") -> None:
    """Raises `PolicyMismatchError` where times of `model` on `backend` are not of `wanted`, or not `on` its backend."""
    if plain_name(model) != plain_name(wanted):
        raise PolicyMismatchError(
            f"these timings are of {plain_name(model)}, not of {plain_name(wanted)}; run solm bench"
        )
    if on not in ("auto", backend, backend.partition(" ")[0]):
        raise PolicyMismatchError(
            f"these timings are of {backend}, not of {on}; choose their backend, or run solm bench"
        )


def machine(backend: str, threads: int, processor: str = "") -> str:
    """Such as ``cpu int8, 2 threads of AMD EPYC``."""
    return f"{backend}, {counted(threads, 'thread')}" + (f" of {processor}" if processor else "")


class MeasuredCost:
    """Milliseconds of a step: those of the dense step less, per axis, a rate times the share that is left out.

    A rate is fitted to the measured levels of all contexts by least squares, at the shares that these levels realise,
    and is at least 0. That of attention is proportional to the context: what its keys save after 512 tokens is less
    than the noise of a timing, and after 4,096 it is not. That of the MLP, which does the same work in every context,
    is one for all of them. Being linear, the cost of an average is the average cost: arms of equal average shares take
    equal time. Between measured contexts dense steps and rates are interpolated; beyond them the nearest holds.
    """

    def __init__(
        self,
        contexts: np.ndarray,
        dense: np.ndarray,
        rates: tuple[np.ndarray, ...],
        scale: float = 1.0,
        cheap: float = 1.0,
        extra: float = 0.0,
    ):
        """dense: milliseconds of the dense step [contexts], times scale; rates: per axis [contexts] milliseconds of all
        of it. A step that leaves something out takes `extra` milliseconds more before its savings, all times cheap."""
        self._contexts, self._dense, self._scale = contexts, dense, scale
        self._rates, self._cheap, self._extra = rates, cheap, extra

    @classmethod
    def of(cls, timings: StepTimings, sparsity: SparsityConfig, shapes: ModelShapes) -> "MeasuredCost":
        """From the levels that were timed."""
        contexts, dense = np.array(timings.contexts), np.array(timings.dense_ms)
        timed = LEVELS.model_copy(update={"attention": timings.attention, "mlp": timings.mlp})
        rules, of_channels = _timed_rules(timings, sparsity, shapes)
        attention, mlp, _ = level_shares(timed, contexts, rules, shapes)
        of_key = _rate(contexts[:, None] * (1 - attention), dense[:, None] - timings.attention_ms)
        of_mlp = _rate(
            of_channels * np.broadcast_to(1 - mlp, np.shape(timings.mlp_ms)), dense[:, None] - timings.mlp_ms
        )
        halved = np.array(timings.halved_ms) if timings.halved_ms else dense
        of_bits = np.maximum((dense - halved) / (1 - HIGH_BITS / FULL_BITS), 0)
        return cls(contexts, dense, (of_key * contexts, np.full(dense.shape, of_mlp), of_bits))

    def dense(self, context: float) -> float:
        """Milliseconds of the dense step that sees `context` keys."""
        return self._scale * float(np.interp(context, self._contexts, self._dense))

    def rates(self, context: np.ndarray | float) -> np.ndarray:
        """Per axis the milliseconds of all of it, after context [...] keys: [..., axes] float64."""
        return self._cheap * np.stack([np.interp(context, self._contexts, axis) for axis in self._rates], -1)

    def extra(self, context: float) -> float:
        """Milliseconds that a step takes more than the dense one for leaving out anything at all."""
        dense = float(np.interp(context, self._contexts, self._dense))
        return self._cheap * (dense + self._extra) - self._scale * dense

    def milliseconds(self, realised: np.ndarray, kv_length: np.ndarray | float) -> np.ndarray:
        """Of steps of realised shares [..., axes] that see kv_length [...] keys: [...] float64."""
        dense = np.interp(kv_length, self._contexts, self._dense)
        cheap = self._cheap * (dense + self._extra) - ((1 - realised) * self.rates(kv_length)).sum(-1)
        return np.where((realised >= 1).all(-1), self._scale * dense, cheap)

    def share(self, realised: tuple[float, ...], context: float) -> float:
        """Of the dense step's milliseconds, for realised shares [axes]."""
        return float(self.milliseconds(np.array(realised), context)) / self.dense(context)


def _timed_rules(timings: StepTimings, sparsity: SparsityConfig, shapes: ModelShapes) -> tuple[SparsityConfig, float]:
    """The rules under which the levels of `timings` realise their shares, and what of `sparsity`'s share of channels
    these are: 1, unless either of them drops inputs of attention's projections and the other does not. Those of the
    projections are then taken to be as fast as the MLP's."""
    rules, part = sparsity.exact.under(None), sparsity.projection_part
    if part and not timings.projected:
        return rules.changed(projection_part=0), 1 - part
    if timings.projected and not part and sparsity.mlp_site == "input+hidden":
        return rules.changed(projection_part=shapes.projection_part), 1 / (1 - shapes.projection_part)
    return rules, 1.0


def _rate(left_out: np.ndarray, saved: np.ndarray) -> float:
    """Milliseconds per unit left out, from what measured levels leave out [...] and the milliseconds that they save
    [...]. 0 where no level leaves anything out."""
    return max(float((left_out * saved).sum() / max((left_out**2).sum(), 1e-12)), 0.0)
