"""Budgets: what is requested (`BudgetRequest`), what it comes to on a model (`Budgets`), what steps spent (`Spent`).

In all units that are measured, a budget or what steps spent is a dictionary (`Terms`). Keys: ``attention``, ``mlp``
and ``bits``, shares per axis; ``net``, their mean; ``bytes``, a share of what dense steps read. Where step times are
measured also ``time``, a share of the dense step's milliseconds ``dense_ms``, ``speed``, its inverse, and ``ms`` per
step. Where a policy with a measured curve splits the budget also ``loss``, nats per token above the dense model, and
``perplexity``, the factor that this is worth; below the lowest budget measured ``loss_above`` instead.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from numbers import Real
from typing import Any, Literal, Protocol, Union

import numpy as np
from pydantic import BaseModel, ValidationInfo, field_validator

from solm.core.actions import AXES, FULL_BITS, WHOLE, ActionSpace
from solm.core.arrays import Array
from solm.core.clock import UNSURE, StepClock
from solm.core.cost import ModelShapes, level_shares, relative_bytes
from solm.core.curve import BudgetCurve
from solm.core.errors import BudgetError
from solm.core.sparsity import SparsityConfig

Kind = Literal["compute", "speed", "ms", "loss", "keep", "shares"]
"""The unit of a budget; see `BudgetRequest`."""
BudgetLike = Union[float, str, Mapping[str, float], "Budget", "BudgetRequest", None]
Terms = dict[str, float]
_TOLERANCE = 1e-9
NET_RATES = np.full(len(AXES), 1 / len(AXES))
"""What the whole of every axis is worth in net keep, the mean of the shares."""
_WORTH = 0.99
"""Share of the dense step's time above which the lowest levels save nothing."""
_HALVINGS = 14
"""Of the range of net keeps: a share of bytes is met to less than a thousandth."""
_LEAST: dict[Literal["speed", "ms", "loss"], tuple[float, str]] = {
    "speed": (1.0, "a speed must be at least 1, the dense step's, and finite"),
    "ms": (0.0, "milliseconds must be above 0 and finite"),
    "loss": (0.0, "a loss must be above 0 nats per token and finite"),
}
"""By form of a budget that needs measurements, its least value, and what errors say of others."""


class Budget(BaseModel, frozen=True, extra="forbid"):
    """Episode averages per axis: share of KV tokens read, share of MLP channels computed, activation bits.

    Raises `BudgetError` for a value outside (0, 1] for the shares or [2, 16] for the bits.
    """

    attention: float = 1.0
    mlp: float = 1.0
    bits: float = float(FULL_BITS)

    @field_validator("attention", "mlp")
    @classmethod
    def _check_share(cls, value: float, info: ValidationInfo) -> float:
        return _share(value, f"{info.field_name}={value:g}")

    @field_validator("bits")
    @classmethod
    def _check_bits(cls, value: float) -> float:
        if not 2 <= value <= FULL_BITS:
            raise BudgetError(f"budget bits={value:g} is out of range: bits must be in [2, {FULL_BITS}]")
        return value

    @property
    def shares(self) -> tuple[float, ...]:
        """Per axis the share of the whole: attention, MLP and bits / 16."""
        return tuple(getattr(self, axis) / whole for axis, whole in zip(AXES, WHOLE, strict=True))

    @classmethod
    def of(cls, shares: Sequence[float]) -> "Budget":
        """The budget of shares [axes]; those that exceed 1 by rounding, as averages may, are 1."""
        return cls(**{axis: min(share, 1.0) * whole for axis, share, whole in zip(AXES, shares, WHOLE, strict=True)})

    @property
    def net(self) -> float:
        """Net keep: the mean of the shares."""
        return sum(self.shares) / len(AXES)

    @classmethod
    def from_net(cls, net: float, space: ActionSpace) -> "Budget":
        """The budget of net keep `net` that lies at the same fraction of every axis's range in `space`.

        Raises `BudgetError` where the space cannot spend so little (or so much).
        """
        low, high = (sum(ends) / len(AXES) for ends in zip(*space.ranges, strict=True))
        if not low - _TOLERANCE <= net <= high + _TOLERANCE:
            raise BudgetError(f"budget {net} is unreachable: net keeps of this space are {low:.4g} to {high:.4g}")
        fraction = 1.0 if high == low else min(1.0, max(0.0, (net - low) / (high - low)))
        return cls.of([least + fraction * (most - least) for least, most in space.ranges])


@dataclass(frozen=True)
class BudgetRequest:
    """A budget as it is requested. What it comes to per axis depends on the model: see `LanguageModel.budget`.

    kind: ``compute``, the share of the dense step's milliseconds, or of its bytes where none were measured; ``speed``,
    the dense step's milliseconds over those of the average step; ``ms``, milliseconds per step; ``loss``, nats per
    token above the dense model; ``keep``, net keep; ``shares``, averages per axis. value: a `Budget` for ``shares``,
    else a number.
    """

    kind: Kind
    value: "float | Budget"

    @property
    def in_time(self) -> bool:
        """Whether what it comes to depends on the time of steps."""
        return self.kind in ("compute", "speed", "ms", "loss") and self.value != 1

    def __str__(self) -> str:
        """As it is typed."""
        if not isinstance(self.value, Budget):
            return f"{self.value:g}" if self.kind == "compute" else f"{self.kind}={self.value:g}"
        return ",".join(f"{axis}={getattr(self.value, axis):g}" for axis in AXES)

    @classmethod
    def parse(cls, given: BudgetLike) -> "BudgetRequest":
        """The request in ``0.7``, ``speed=1.5``, ``ms=4.5``, ``loss=0.05``, ``keep=0.6`` or
        ``attention=0.5,mlp=0.7,bits=8``; None is the dense one.

        Raises `BudgetError` for anything else and for values out of range. What a model can meet is not checked.
        """
        if isinstance(given, BudgetRequest):
            return given
        if given is None or isinstance(given, Budget):
            return cls("shares", given or Budget())
        if isinstance(given, Mapping):
            given = ",".join(f"{axis}={share}" for axis, share in given.items())
        if isinstance(given, bool) or not isinstance(given, Real | str):
            raise BudgetError(f"a budget is a number, a text or a Budget, got {given!r}")
        try:
            return cls("compute", _share(float(given), given))
        except ValueError:
            pass
        values: dict[str, float] = {}
        for part in str(given).split(","):
            name, equals, number = (piece.strip() for piece in part.partition("="))
            if not equals or name not in (*AXES, "keep", *_LEAST):
                raise BudgetError(
                    f"budget {given!r} is not a number, speed=1.5, ms=4.5, loss=0.05, keep=0.6 or a list such as "
                    f"attention=0.5,mlp=0.7,bits=8 ({part!r})"
                )
            if name in values:
                raise BudgetError(f"budget {given!r} gives {name} twice")
            try:
                values[name] = float(number)
            except ValueError:
                raise BudgetError(f"budget {part!r}: {number!r} is not a number") from None
        if len(values) > 1 and not values.keys() <= set(AXES):
            raise BudgetError(f"budget {given!r} says several things; give keep, speed, ms and loss alone")
        if "keep" in values:
            return cls("keep", _share(values["keep"], given))
        for kind, (least, words) in _LEAST.items():
            if kind in values:
                if not least <= values[kind] < math.inf or not values[kind]:
                    raise BudgetError(f"budget {given} is out of range: {words}")
                return cls(kind, values[kind])
        return cls("shares", Budget(**values))


def _share(value: float, given: object) -> float:
    if not 0 < value <= 1:
        raise BudgetError(f"budget {given} is out of range: a share must be above 0 and at most 1")
    return value


@dataclass(frozen=True)
class Ledger:
    """What N rows have spent, in realised shares. Every axis counts the steps that could be controlled on it.

    spent: [N, axes] float64 sums of realised shares; steps: [N, axes] int64 number of steps counted. Both are tensors,
    or both are arrays.
    """

    spent: Any
    steps: Any

    def add(self, realised: Array, controllable: Array) -> "Ledger":
        """The ledger after one step of realised [N, axes] shares; only what is controllable [N, axes] bool counts."""
        return Ledger(self.spent + realised * controllable, self.steps + controllable)

    @property
    def average(self) -> Any:
        """Mean realised share per axis [N, axes]; 1 where no step was counted."""
        counted = self.steps > 0
        return self.spent / self.steps.clip(min=1) * counted + ~counted


class Split(Protocol):
    """How a trained policy splits a budget over the axes."""

    @property
    def curve(self) -> BudgetCurve | None:
        """What its budgets lose, where that was measured."""

    def split(
        self, cost: float, rates: np.ndarray, levels: tuple[np.ndarray, ...], context: int | None = None
    ) -> Budget:
        """The budget of this share of the dense step's cost, at one price for that cost on every axis; the nearest
        there is.

        rates: [axes], what the whole of every axis costs, as a share of the dense step's cost. levels: per axis
        [levels] float64, the shares that the levels of the space realise. context: tokens before; None: as many as the
        costs of levels were measured after.
        """


@dataclass(frozen=True)
class ResolvedBudget:
    """What a request comes to in some context.

    budget: averages per axis. terms: the same in all units that are measured. floor: below which a governor may not
    lower it; the budget itself until `above` gives another. loss: nats per token that a dense reply may give up by
    guesses; None where it may not.
    """

    request: BudgetRequest
    budget: Budget
    terms: Terms
    floor: Budget
    loss: float | None = None

    def above(self, floor: Budget) -> "ResolvedBudget":
        """The same with a floor, as far as it is below the budget."""
        return replace(self, floor=Budget.of(list(map(min, floor.shares, self.budget.shares))))

    @cached_property
    def lowerable(self) -> bool:
        """Whether a governor has anything to lower."""
        return self.floor != self.budget

    def target(self, dial: float) -> tuple[float, ...]:
        """Target shares [axes] at `dial`: 0 is the floor, 1 the budget."""
        ends = zip(self.floor.shares, self.budget.shares, strict=True)
        return tuple(low + dial * (high - low) for low, high in ends)


@dataclass(frozen=True)
class Budgets:
    """The budgets of one model under one policy: the one place that turns a request into shares per axis.

    space: the actions to choose among. trained: what splits a budget over the axes; None: the same fraction of every
    axis's range. overhead: weights that the policy reads at every step. timings: of this model on this backend; with
    them a share is one of the dense step's milliseconds, without them one of its bytes. priced: `trained` also decides
    the steps, so that its curve says what they lose. verified: else a budget as a loss is kept by dense passes that
    verify guesses, see `resolve`.
    """

    space: ActionSpace
    sparsity: SparsityConfig
    shapes: ModelShapes
    trained: Split | None = None
    overhead: int = 0
    timings: StepClock | None = None
    priced: bool = False
    verified: bool = False

    def resolve(self, requested: BudgetLike, context: int) -> ResolvedBudget:
        """A request for steps that see `context` keys on average. Raises `BudgetError` where it cannot be read or
        met.

        A loss is what the curve of the policy that decides predicts. Where none does and passes are exact, steps are
        dense, and the loss is what guesses may give up, which is measured.
        """
        request = BudgetRequest.parse(requested)
        if request.kind == "loss" and self.verified and not (self.priced and self.curve is not None):
            dense, loss = Budget(), float(request.value)  # type: ignore[arg-type]
            return ResolvedBudget(request, dense, self.terms(dense, context) | loss_terms(loss), dense, loss)
        budget = self.budget(request, context)
        return ResolvedBudget(request, budget, self.terms(budget, context, request), budget)

    def budget(self, requested: BudgetLike, context: int, clamp: bool = False) -> Budget:
        """The averages per axis that a request comes to, for steps that see `context` keys.

        Raises `BudgetError` where it cannot be met. clamp: the least there is instead where it is below that, axis by
        axis where it is given per axis. So it is, too, where a machine could not be timed well enough to refuse what
        the bytes that steps read do not rule out, and where it has slowed down since it was timed.
        """
        request = BudgetRequest.parse(requested)
        if isinstance(request.value, Budget):
            return self._checked(request.value, clamp)
        if request.kind == "keep":
            return self.of_net(max(request.value, self.lowest_net) if clamp else request.value)
        timed, seen = request.kind != "compute" or self.timings is not None, self._controllable(context)
        share = self.time_share(request, context) if timed else request.value
        if share == 1:
            return Budget()
        cost = self._clock().share if timed else self._read
        lowest = self.lowest(context)
        floor = cost(lowest.shares, seen)
        if share <= floor + _TOLERANCE:
            if (
                clamp
                or self._met_once(request, share, context)
                or request.kind == "loss"
                or share >= floor - _TOLERANCE
            ):
                return lowest
            raise BudgetError(f"budget {request} is unreachable: at {seen} tokens {self._reach(request, floor, seen)}")
        if timed and self.trained is not None:  # at one price for a millisecond on every axis
            measured = self._clock()
            dense = measured.dense_ms(seen)
            share -= measured.extra(seen) / dense
            return self.trained.split(share, measured.rates(seen) / dense, self._levels(seen), seen)
        return self._densest(lambda budget: cost(budget.shares, seen) <= share, context)

    def _met_once(self, request: BudgetRequest, share: float, context: int) -> bool:
        """Whether the machine may have met a request for a `share` that it does not meet now."""
        if self.timings is None:
            return False
        if self.timings.error > UNSURE:
            return share >= self._untimed_floor(context)
        before, lowest = replace(self, timings=self.timings.as_measured), self.lowest(context).shares
        seen = self._controllable(context)
        return before.time_share(request, context) > before._clock().share(lowest, seen) + _TOLERANCE

    def _reach(self, request: BudgetRequest, floor: float, seen: int) -> str:
        """What budgets in the unit of `request` can be, in words and with the reason, where the lowest is a share
        `floor` of a dense step that sees `seen` keys."""
        if self.timings is None:
            return f"this model reads {_up(floor, 100):g} to 1 of the dense step's bytes"
        weights = self.shapes.layers * self.shapes.layer_weights * self.shapes.weight_bits
        head = self.shapes.head_weights * self.shapes.head_bits
        why = f"; {head / (weights + head):.0%} of the bytes of weights are the head's, which no budget leaves out"
        if floor > _WORTH:
            return f"steps of this model take no less time, whatever they leave out{why}"
        if request.kind == "speed":
            return f"speeds are 1 to {math.floor(100 / floor) / 100:g}{why}"
        if request.kind == "ms":
            dense = self.timings.dense_ms(seen)
            return f"steps take {_up(floor * dense, 100):g} to {dense:.4g} ms{why}"
        return f"steps take {_up(floor, 1000):g} to 1 of the dense step's milliseconds{why}"

    def terms(self, budget: Budget, context: int, requested: BudgetLike = None) -> Terms:
        """A budget in all units that are measured, for steps that see `context` tokens. requested: what it came from,
        which says whether the policy split it."""
        seen = self._controllable(context)
        terms = dict(zip(AXES, budget.shares, strict=True))
        terms |= {"net": budget.net, "bytes": self._read(budget.shares, seen)}
        if self.timings is not None:
            terms |= _timed(self.timings.share(budget.shares, seen), self.timings.dense_ms(seen))
            if self.priced and BudgetRequest.parse(requested).kind not in ("keep", "shares"):
                terms |= self.loss(terms["time"], context)
        return terms

    def loss(self, share: float, context: int) -> Terms:
        """What a share of the dense step's milliseconds loses, where that was measured."""
        if self.curve is None:
            return {}
        loss, exact = self.curve.loss(share, context)
        return loss_terms(loss) if exact else {"loss_above": loss}

    @cached_property
    def curve(self) -> BudgetCurve | None:
        """What the policy's budgets lose, where it was measured, and take on the machine of `timings`."""
        known = None if self.trained is None else self.trained.curve
        other = known is not None and self.timings is not None and self.timings != known.clock
        return known.on(self.timings) if other else known  # type: ignore[union-attr,arg-type]

    def bytes(self, realised: np.ndarray, kv_length: np.ndarray | int) -> np.ndarray:
        """What steps of realised shares [..., axes] that see kv_length [...] keys read, as a share of the dense step's
        bytes: [...] float64."""
        return relative_bytes(realised, kv_length, self.shapes, self.sparsity, self.overhead)

    def _read(self, shares: tuple[float, ...], seen: int) -> float:
        """The same of one step of realised shares [axes]."""
        return float(self.bytes(np.array(shares), seen))

    def time_floor(self, context: int) -> float:
        """The least share of the dense step's milliseconds that can be met. Raises `BudgetError` without timings."""
        return self._clock().share(self.lowest(context).shares, self._controllable(context))

    def time_share(self, request: BudgetRequest, context: int) -> float:
        """The share of the dense step's milliseconds that a budget as a share, speed, milliseconds or loss comes down
        to, at most 1; it may be below what can be met. Raises `BudgetError` where nothing was measured."""
        seen, value = self._controllable(context), request.value
        assert not isinstance(value, Budget)
        if request.kind == "loss" and self.curve is None:
            raise BudgetError(
                "a budget as a loss needs a policy with a measured curve, which solm fit makes, or a reply on the "
                "cpu backend with weights in integers, where it is measured"
            )
        measured = self._clock()
        share = value
        if request.kind == "speed":
            share = 1 / value
        elif request.kind == "ms":
            share = value / measured.dense_ms(seen)
        elif request.kind == "loss":
            assert self.curve is not None
            share = self.curve.share_for_loss(value, seen)
        return min(share, 1.0)

    def check_untimed(self, request: BudgetRequest, context: int) -> None:
        """Raises `BudgetError` for a share of the time, or a speed, that no machine meets."""
        if request.kind in ("compute", "speed") and not isinstance(request.value, Budget):
            share, floor = (
                request.value if request.kind == "compute" else 1 / request.value,
                self._untimed_floor(context),
            )
            if share < floor:
                raise BudgetError(
                    f"budget {request} is unreachable: steps of this model read {_up(2 * floor, 100):g} to 1 of the "
                    "dense step's bytes"
                )

    def _untimed_floor(self, context: int) -> float:
        """The share of the dense step's time that no machine goes below: half of the bytes that the lowest levels
        read."""
        return self._read(self.lowest(context).shares, self._controllable(context)) / 2

    def _clock(self) -> StepClock:
        if self.timings is None:
            raise BudgetError(
                "a budget in time needs step timings of this machine: the cpu backend measures them, and solm bench "
                "--out FILE does for --timings FILE"
            )
        return self.timings

    def lowest(self, context: int) -> Budget:
        """What the lowest levels realise after `context` tokens."""
        return self._realised(self.lowest_net, context)

    @property
    def lowest_net(self) -> float:
        """The lowest net keep of the action space."""
        return sum(low for low, _ in self.space.ranges) / len(AXES)

    def of_net(self, net: float) -> Budget:
        """The budget of net keep `net`. Raises `BudgetError` for one that the action space cannot meet."""
        return self._of_nets(net)

    @cached_property
    def _of_nets(self) -> Callable[[float], Budget]:
        """`of_net`, remembered: servers ask again and again, and a policy takes a millisecond."""

        @lru_cache(1024)
        def of_net(net: float) -> Budget:
            plain = Budget.from_net(net, self.space)
            return plain if self.trained is None else self.trained.split(net, NET_RATES, self.space.shares)

        return of_net

    def _densest(self, fits: Callable[[Budget], bool], context: int) -> Budget:
        """The budget of the highest net keep that `fits`, which the lowest one does."""
        low, high = self.lowest_net, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(self._realised(middle, context)) else (low, middle)
        return self._realised(low, context)

    def _realised(self, net: float, context: int) -> Budget:
        """What net keep `net` realises after `context` tokens. Bits that save no bytes are left alone."""
        levels = self._levels(self._controllable(context))
        axes = zip(self.of_net(net).shares, self.space.shares, levels, strict=True)
        budget = Budget.of([float(np.interp(share, nominal, realised)) for share, nominal, realised in axes])
        return budget if self.sparsity.bits_site == "weights" else budget.model_copy(update={"bits": float(FULL_BITS)})

    def _levels(self, context: int) -> tuple[np.ndarray, ...]:
        """Per axis the shares [levels] that a step which sees `context` keys realises."""
        return _levels(self.space, context, self.sparsity, self.shapes)

    def _controllable(self, context: int) -> int:
        """`context`, or where attention cannot be saved so early, the first in which it can."""
        return max(context, self.sparsity.always_read + 1)

    def _checked(self, budget: Budget, clamp: bool) -> Budget:
        """`budget`, if averages over actions of the space can meet it after a context that is long enough."""
        # A level of 0.5 computes 0.375 of the channels where hidden ones keep its square.
        least = (1.0, *(float(levels[0]) for levels in self._levels(self._controllable(1))[1:]))
        met: list[float] = []
        for axis, whole, share, (low, high), realised in zip(
            AXES, WHOLE, budget.shares, self.space.ranges, least, strict=True
        ):
            lowest = min(low, realised)
            met.append(max(share, lowest) if clamp else share)
            if not lowest - _TOLERANCE <= met[-1] <= high + _TOLERANCE:
                raise BudgetError(
                    f"budget {axis}={share * whole:g} is unreachable: this action space offers "
                    f"{lowest * whole:g} to {high * whole:g}"
                )
        return Budget.of(met)


class Spent:
    """What steps spent: sums over them, in the units of `budgets`.

    ledger: realised shares [axes], as one row. steps: number of all; keys: that they saw. bytes: as shares of the dense
    step's. milliseconds: by the model's timings, with those of dense steps in their place; 0 without timings.
    """

    def __init__(self, budgets: Budgets):
        self.budgets = budgets
        self.ledger = Ledger(np.zeros(len(AXES)), np.zeros(len(AXES), np.int64))
        self.steps = self.keys = 0
        self.bytes = self.milliseconds = self.dense_milliseconds = 0.0

    def add(self, realised: np.ndarray, controllable: np.ndarray, kv_length: np.ndarray) -> None:
        """Add steps of realised shares [T, axes], controllable [T, axes] bool, that saw kv_length [T] keys."""
        shares = np.where(controllable, realised, 1.0)
        ledger = self.ledger
        self.ledger = Ledger(ledger.spent + (realised * controllable).sum(0), ledger.steps + controllable.sum(0))
        self.steps += len(kv_length)
        self.keys += int(kv_length.sum())
        self.bytes += float(self.budgets.bytes(shares, kv_length).sum())
        if self.budgets.timings is not None:
            self.milliseconds += float(self.budgets.timings.milliseconds(shares, kv_length).sum())
            self.dense_milliseconds += float(self.budgets.timings.milliseconds(np.ones_like(shares), kv_length).sum())

    def terms(self, context: int, priced: bool = False) -> Terms:
        """The averages over all steps. context: keys that a step would have seen, where there was none. priced: with
        what the policy's curve says that they lost."""
        average: list[float] = self.ledger.average.tolist()
        terms = dict(zip(AXES, average, strict=True)) | {"net": sum(average) / len(AXES)}
        terms["bytes"] = self.bytes / self.steps if self.steps else 1.0
        if self.budgets.timings is not None:
            if self.steps:
                share, dense = self.milliseconds / self.dense_milliseconds, self.dense_milliseconds / self.steps
            else:
                share, dense = 1.0, self.budgets.timings.dense_ms(context)
            terms |= _timed(share, dense)
            if priced:
                terms |= self.budgets.loss(share, self.keys // self.steps if self.steps else context)
        return terms


@lru_cache(maxsize=256)
def _levels(space: ActionSpace, context: int, sparsity: SparsityConfig, shapes: ModelShapes) -> tuple[np.ndarray, ...]:
    attention, *others = level_shares(space, np.array([context]), sparsity, shapes)
    return attention[0], *others


def mean_terms(terms: Sequence[Terms], weights: Sequence[int]) -> Terms:
    """The mean of several, by what all of them have."""
    names = [name for name in terms[0] if all(name in each for each in terms)]
    means = {name: float(np.average([each[name] for each in terms], weights=weights)) for name in names}
    if "speed" in means:
        means["speed"] = 1 / means["time"]
    if "perplexity" in means:
        means["perplexity"] = math.exp(means["loss"])
    return means


def in_words(terms: Terms) -> str:
    """A budget, or what steps spent, for people."""
    axes = ", ".join(f"{axis} {terms[axis]:.3f}" for axis in AXES)
    words = f"{terms['bytes']:.3f} of the dense step's bytes ({axes}; net keep {terms['net']:.3f})"
    if "loss" in terms:
        words = f"loss {terms['loss']:.3f} nats per token (perplexity {terms['perplexity'] - 1:+.1%}), {words}"
    elif "loss_above" in terms:
        words = f"loss above {terms['loss_above']:.3f} nats per token, {words}"
    return f"{in_time(terms)}, {words}" if "time" in terms else words


def in_time(terms: Terms) -> str:
    """The units of time."""
    times = f"speed {terms['speed']:.2f}, {terms['ms']:.2f} ms per step, dense {terms['dense_ms']:.2f}"
    return f"{terms['time']:.3f} of the dense step's time ({times})"


def loss_terms(loss: float) -> Terms:
    """A loss in nats per token, and the factor of perplexity that it is worth."""
    return {"loss": loss, "perplexity": math.exp(loss)}


def _timed(share: float, dense: float) -> Terms:
    return {"time": share, "speed": 1 / share, "ms": share * dense, "dense_ms": dense}


def _up(value: float, parts: int) -> float:
    """`value` rounded up to the next of `parts` parts of 1."""
    return math.ceil(parts * value) / parts
