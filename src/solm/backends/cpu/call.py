"""What a call of the compiled engine is made of: rules, caches, deciders and buffers; and what comes out."""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np

from solm.backends.budgets import ROW_STATE
from solm.backends.cpu import border
from solm.backends.cpu.border import MOST_ROWS, PAGE
from solm.backends.cpu.engine import Engine
from solm.core.actions import AXES, FULL_BITS
from solm.core.arrays import Array, as_numpy
from solm.core.errors import DataError, SolmError
from solm.core.sparsity import SparsityConfig
from solm.policies.priced import FALLING_PRICES
from solm.policies.schedules import Static
from solm.policies.value_policy import ValuePolicy

_AXES = len(AXES)


class Cache:
    """Keys and values of one row, with the first `length` tokens of `source`, if given, whose pages it shares.

    Pages are taken when they are first written to, at most for `capacity` tokens. Writing to a shared page makes a copy
    of it first, so that neither row sees what the other writes. Raises `SolmError` without memory, `DataError` for a
    length or capacity that is out of range and for a source of another engine.
    """

    def __init__(self, engine: Engine, capacity: int, source: "Cache | None" = None, length: int = 0):
        self.engine, self.capacity = engine, -(-max(capacity, 1) // PAGE) * PAGE
        made, message = ctypes.c_void_p(), border.message()
        held = None if source is None else source.handle
        code = engine.library.solm_cache(engine.handle, held, length, self.capacity, ctypes.byref(made), message)
        border.check(code, message)
        self.handle: int | None = made.value

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.engine.library.solm_cache_free(self.handle)
            self.handle = None


class Decider:
    """A value policy in the engine's terms: a network with one hidden layer over the residual stream, and per axis the
    costs of levels; or the static schedule. Rows' records point to it, and it must outlive them.

    layer: the one before which it decides; beyond the last one: the schedule, which needs levels alone. network:
    weights as `ValueWeights` has them: ``read`` [width, H + 3] and ``head`` [3, width], and ``scale`` and ``trust``
    [3]. levels: per axis the action space's levels (attention, MLP, bits). own_cost, fixed_cost: per axis [levels]
    float64 in nats, at least 0; a level costs fixed_cost + sensitivity * own_cost. curves: per axis the average shares,
    ascending, of tokens that pay `prices`, [points] each.
    """

    def __init__(
        self,
        layer: int,
        levels: Sequence[np.ndarray],
        network: Mapping[str, Array] | None = None,
        own_cost: Sequence[np.ndarray] = (),
        fixed_cost: Sequence[np.ndarray] = (),
        curves: Sequence[np.ndarray] = (),
        prices: np.ndarray = FALLING_PRICES,
    ):
        floats: dict[str, Array] = {}
        tables: dict[str, Sequence[np.ndarray]] = {"levels": levels}
        if network is not None:
            read, (attention, mlp, bits) = as_numpy(network["read.weight"]), levels
            floats = {
                "read": read.T, "read_bias": network["read.bias"], "head": network["head.weight"],
                "head_bias": network["head.bias"], "scale": network["scale"], "trust": network["trust"],
            }  # fmt: skip
            shares = (attention, mlp, bits / FULL_BITS)
            tables |= {"shares": shares, "own_cost": own_cost, "fixed_cost": fixed_cost, "curve": curves}
        self._floats = {name: np.array(as_numpy(values), np.float32, order="C") for name, values in floats.items()}
        self._tables = {name: [np.array(part, np.float64) for part in table] for name, table in tables.items()}
        self._prices = np.array(prices, np.float64)
        self._struct = border.Decider(
            layer=layer, width=0 if network is None else len(read), points=len(prices),
            hidden=0 if network is None else read.shape[1] - _AXES,
            sizes=tuple(len(part) for part in levels), prices=self._prices.ctypes.data,
            **{name: values.ctypes.data for name, values in self._floats.items()},
            **{name: tuple(part.ctypes.data for part in table) for name, table in self._tables.items()},
        )  # fmt: skip

    @property
    def address(self) -> int:
        """What goes into the field `decider` of `solm.backends.budgets.ROW_STATE`."""
        return ctypes.addressof(self._struct)


def decider_of(engine: Engine, policy: ValuePolicy | Static) -> Decider:
    """The decisions of `policy` in the engine's terms, made once per policy object, and held by the engine as long as
    the policy is there."""
    made = engine.deciders.get(policy)
    if made is not None:
        return made
    space = policy.space
    levels = [np.array(levels, dtype=np.float64) for levels in (space.attention, space.mlp, space.bits)]
    if isinstance(policy, Static):
        made = Decider(engine.sizes.layers, levels)
    else:
        curves, costs = [curve.rising for curve in policy.curves], (policy.own_cost, policy.fixed_cost)
        made = Decider(policy.layer, levels, policy.weights.arrays, *costs, curves)
    return engine.deciders.setdefault(policy, made)  # what another thread has made meanwhile


def sparsity_rules(sparsity: SparsityConfig) -> Any:
    """The engine's part of `sparsity`, a `border.SparsityRules`, which keeps the tables that it points to."""
    site, allocation = sparsity.mlp_site, sparsity.allocation
    rules = border.SparsityRules(
        sinks=sparsity.sinks,
        window=sparsity.window,
        input_site="input" in site,
        hidden_site="hidden" in site,
        experts=site == "experts",
        hidden_power=sparsity.hidden_power,
        group=sparsity.bits_group or 0,
        weight_bits=sparsity.bits_site == "weights",
        heads=1,
        projections=sparsity.projection_part > 0,
        input_part=sparsity.input_part,
        projection_part=sparsity.projection_part,
        upper_bits_part=sparsity.upper_bits_part,
    )
    if allocation is not None:
        rules.table = np.ascontiguousarray(allocation.table)
        rules.layers, rules.heads, rules.allocation = allocation.layers, allocation.heads, rules.table.ctypes.data
        rules.own_sites, rules.bit_curves = allocation.sites - 1, allocation.has_bits
    if sparsity.thresholds is not None:
        sites = sparsity.threshold_sites
        rules.limits = limits = np.array(sparsity.thresholds.array[:, :sites])
        if limits.shape[1] != sites or rules.layers not in (0, len(limits)):
            raise SolmError(
                f"thresholds of {len(limits)} layers and {limits.shape[1]} sites do not fit an allocation of "
                f"{rules.layers or len(limits)} layers and steps that drop channels at {sites} sites"
            )
        rules.layers, rules.thresholds = len(limits), limits.ctypes.data
    return rules


class Computed:
    """The results of one call over Q tokens of N rows, which later calls leave as they are.

    logits: [N, L, V] float32, of the last L tokens of every row, for the tokens that `How.outputs` says; not set unless
    the call reached the last layer.
    """

    # Everything but the logits is in one block: realised, actions, stream. Few callers look at all of them, and an
    # array is only made when it is asked for.
    __slots__ = ("_block", "logits", "shape")

    def __init__(self, shape: tuple[int, int, int], block: np.ndarray, logits: np.ndarray):
        self.shape, self._block, self.logits = shape, block, logits

    @property
    def realised(self) -> np.ndarray:
        """Realised shares [N, Q, 3] float64, of the layers up to the last one that was computed."""
        rows, count, _ = self.shape
        return self._block[: _AXES * rows * count].reshape(rows, count, _AXES)

    @property
    def actions(self) -> np.ndarray:
        """The actions that the engine decided [N, Q] int64; -1 for rows that did not decide."""
        rows, count, _ = self.shape
        steps = rows * count
        return self._block[_AXES * steps : (_AXES + 1) * steps].view(np.int64).reshape(rows, count)

    @property
    def stream(self) -> np.ndarray:
        """The residual stream after the last layer of the call [N, Q, H] float32; after the model's last layer, normed,
        the input of the head."""
        rows, count, hidden = self.shape
        return self._block[4 * rows * count :].view(np.float32)[: rows * count * hidden].reshape(self.shape)


class StepBuffers:
    """Inputs for N rows of Q tokens, which stay at their addresses, and the struct that points to them."""

    def __init__(self, engine: Engine, rules: Any, caches: tuple[Cache, ...], count: int):
        rows, steps = len(caches), len(caches) * count
        self.caches, self.shape = caches, (rows, count, engine.sizes.hidden)
        self.lengths, self.keep = np.empty(rows, dtype=np.int64), np.empty((rows, count, _AXES))
        self.exact_rows, self.counts = np.empty(rows, dtype=bool), np.empty(rows, dtype=np.int32)
        self.message = border.message()
        self.rules = rules
        self.states: np.ndarray | None = None
        self._handles = (ctypes.c_void_p * rows)(*(cache.handle for cache in caches))
        self.words = 4 * steps + (steps * engine.sizes.hidden + 1) // 2  # of a result's block, 8 bytes each
        self.stream_at = 4 * steps * 8
        self.actions_at = _AXES * steps * 8
        self.keep_at, self.exact_rows_at = self.keep.ctypes.data, self.exact_rows.ctypes.data
        self.counts_at = self.counts.ctypes.data
        self.call = border.Call(
            rules=ctypes.addressof(rules),
            rows=rows,
            count=count,
            caches=ctypes.addressof(self._handles),
            lengths=self.lengths.ctypes.data,
            message=ctypes.addressof(self.message),
        )
        self.call_at = ctypes.addressof(self.call)


class How(TypedDict, total=False):
    """How a call is processed.

    counts: [N] integers, how many of its tokens every row has, by default all Q; what the result holds for others
    means nothing. blocks: neighbouring tokens share their attention, which takes less time for more than a few, and
    differs in the last bits from that of single steps; by default above `MOST_ROWS` tokens. decide: rows whose state
    has a decider decide for themselves. first, last: layers [first, last) only; with first above 0, `before` is the
    result of those before. logit_steps: tokens at the end of every row whose logits are wanted, by default all.
    outputs: of how many of the vocabulary's first tokens, by default all. exact_largest: 0, or how many of a token's
    largest logits are exact, at most 64, where others may be approximate. exact_rows: [N] bool, rows whose logits are
    all exact even then. adaptive_head: all may be exact where earlier calls have shown that approximate ones take
    longer. histogram: [layers, 5, `border.MAGNITUDES`] uint32, to which the call adds how many inputs of the sites lie
    in every bin of |x|, and after them how many experts by the part of the probability that they and less likely ones
    hold.
    """

    counts: np.ndarray | None
    blocks: bool
    decide: bool
    first: int
    last: int
    before: Computed | None
    logit_steps: int
    outputs: int | None
    exact_largest: int
    exact_rows: np.ndarray | None
    adaptive_head: bool
    histogram: np.ndarray


class EngineCall:
    """Calls of the engine for the rows of one session, under its sparsity.

    A step reads all weights, which leaves nothing of Python's or NumPy's in the processor's caches. Right after it, a
    look at an attribute takes a microsecond and an operation of NumPy's five. So as few objects are touched here as
    possible. Not for several threads at once; the engine itself is.
    """

    def __init__(self, engine: Engine, sparsity: SparsityConfig):
        self.engine, self.rules = engine, sparsity_rules(sparsity)
        self._buffers: StepBuffers | None = None
        self._layers, self._vocabulary = engine.sizes.layers, engine.sizes.vocabulary
        self._run, self._handle = engine.library.solm_run, engine.handle

    def forget(self) -> None:
        """Let go of the caches of the last call."""
        self._buffers = None

    def run(
        self,
        caches: tuple[Cache, ...],
        tokens: Array,
        lengths: np.ndarray,
        states: np.ndarray,
        keep: Array | None = None,
        **how: Unpack[How],
    ) -> Computed:
        """Process tokens [N, Q], or [N] for one token a row, after the lengths [N] int64 tokens that caches [N] hold.

        states: records of dtype `ROW_STATE` [N], to which the engine adds the steps. keep: [N, Q, 3], or [N, 3] for
        one token, of the rows that do not decide; None: dense.

        The same tuple of caches and the same array of states are the cheapest to pass again. Raises `DataError` for
        what the engine cannot process, `SolmError` without memory; nothing has changed then.
        """
        ids = tokens if type(tokens) is np.ndarray else as_numpy(tokens)
        rows, count = len(caches), ids.shape[1] if ids.ndim > 1 else 1
        if not count or ids.size != rows * count or len(ids) != rows or ids.dtype.kind not in "iu":
            wanted = f"integers [{rows}, at least 1]"
            raise DataError(f"tokens must be {wanted}, got {ids.dtype} {list(ids.shape)}")
        if ids.dtype != np.int64 or not ids.flags.c_contiguous:
            ids = np.ascontiguousarray(ids, np.int64)
        buffers = self._buffers
        if buffers is None or buffers.caches is not caches or buffers.shape[1] != count:
            self._buffers = buffers = StepBuffers(self.engine, self.rules, caches, count)
        call = buffers.call
        if states is not buffers.states:
            _check_states(states, rows)
            buffers.states, call.states = states, states.ctypes.data
        if lengths.shape != (rows,):
            raise DataError(f"lengths must be {[rows]}, got {list(lengths.shape)}")
        buffers.lengths[:] = lengths
        counts = how.get("counts")
        call.counts = None if counts is None else buffers.counts_at
        if counts is not None:
            if counts.shape != (rows,) or counts.min() < 1 or counts.max() > count:
                raise DataError(f"counts must be {rows} numbers in [1, {count}], got {counts.tolist()}")
            buffers.counts[:] = counts
        if keep is None:
            call.keep = None
        else:
            if keep.shape != (rows, count, _AXES) and (count > 1 or keep.shape != (rows, _AXES)):
                raise DataError(
                    f"keep must be {[rows, count, _AXES]} for tokens {[rows, count]}, got {list(keep.shape)}"
                )
            buffers.keep[:] = as_numpy(keep).reshape(rows, count, _AXES)
            call.keep = buffers.keep_at
        first, before = how.get("first", 0), how.get("before")
        if (before is None) != (first == 0) or (before is not None and before.shape != buffers.shape):
            raise DataError(f"layers from {first} on need the result of those before them for {rows} rows of {count}")
        block = np.empty(buffers.words) if before is None else before._block.copy()
        wanted_logits, last = how.get("logit_steps", count), how.get("last", self._layers)
        outputs = how.get("outputs") or self._vocabulary
        shape = (rows, max(wanted_logits, 0) if last == self._layers else 0, max(outputs, 0))
        logits = np.empty(shape, np.float32)
        at = block.ctypes.data
        call.tokens, call.realised = ids.ctypes.data, at
        call.actions, call.stream, call.logits = at + buffers.actions_at, at + buffers.stream_at, logits.ctypes.data
        call.first, call.last, call.logit_steps, call.outputs = first, last, wanted_logits, outputs
        call.decide, call.exact_largest = how.get("decide", False), how.get("exact_largest", 0)
        call.blocks = how.get("blocks", count > MOST_ROWS)
        call.adaptive_head, exact_rows = how.get("adaptive_head", False), how.get("exact_rows")
        call.exact_rows = None if exact_rows is None else buffers.exact_rows_at
        if exact_rows is not None:
            if exact_rows.shape != (rows,) or exact_rows.dtype != bool:
                raise DataError(f"exact_rows must be bool {[rows]}, got {exact_rows.dtype} {list(exact_rows.shape)}")
            buffers.exact_rows[:] = exact_rows
        histogram = how.get("histogram")
        call.histogram = None if histogram is None else self._histogram_at(histogram)
        code = self._run(self._handle, buffers.call_at)
        if code:
            border.check(code, buffers.message)
        return Computed(buffers.shape, block, logits)

    def _histogram_at(self, histogram: np.ndarray) -> int:
        wanted = (self._layers, border.COUNTED, border.MAGNITUDES)
        flags = histogram.flags
        if histogram.shape != wanted or histogram.dtype != np.uint32 or not (flags.c_contiguous and flags.writeable):
            raise DataError(f"a histogram must be writable uint32 {wanted}, got {histogram.dtype} {histogram.shape}")
        return histogram.ctypes.data


def _check_states(states: Any, rows: int) -> None:
    if (
        states.dtype != ROW_STATE
        or states.shape != (rows,)
        or not states.flags.c_contiguous
        or not states.flags.writeable
    ):
        raise DataError(
            f"states must be writable records of dtype ROW_STATE [{rows}], got {states.dtype} {states.shape}"
        )
