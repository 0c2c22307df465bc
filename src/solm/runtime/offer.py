"""What budgets a model can meet, and what each is per axis: the one place that turns a request into shares."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from solm.core.actions import AXES, FULL_BITS, ActionSpace
from solm.core.budget import Budget, BudgetLike, BudgetRequest
from solm.core.cost import ModelShapes, step_cost
from solm.core.curve import BudgetCurve
from solm.core.errors import BudgetError
from solm.core.measured import MeasuredCost
from solm.core.shares import bits_share, kv_budget, realised_mlp
from solm.core.sparsity import SparsityConfig
from solm.core.timings import StepTimings
from solm.policies.artifact import TrainedPolicy
from solm.policies.priced import PricedPolicy

_HALVINGS = 14
"""Of the range of net keeps: a share of bytes is met to less than a thousandth."""
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Offer:
    """The budgets of one model under one policy.

    space: the actions to choose among. trained: whose split over the axes is used; None: the same fraction of every
    axis's range. overhead: weights that the policy reads at every step. timings: of this model on this backend; with
    them a share is one of the dense step's milliseconds, without them one of its bytes.
    """

    space: ActionSpace
    sparsity: SparsityConfig
    shapes: ModelShapes
    trained: TrainedPolicy | None = None
    overhead: int = 0
    timings: StepTimings | None = None

    def budget(self, asked: BudgetLike, context: int, clamp: bool = False) -> Budget:
        """What was asked for per axis, for steps that see `context` keys.

        Raises `BudgetError` where it is out of reach. clamp: the least there is instead where it is below that, axis by
        axis where it is given per axis.
        """
        request = BudgetRequest.parse(asked)
        if isinstance(request.value, Budget):
            return self._checked(request.value, clamp)
        if request.kind == "keep":
            return self.of_net(max(request.value, self.lowest_net) if clamp else request.value)
        if request.kind == "compute" and self.measured is None:
            return self._of_bytes(request.value, context, clamp)
        return self._of_time(request, context, clamp)

    @cached_property
    def measured(self) -> MeasuredCost | None:
        """The milliseconds of steps, where there are timings."""
        return None if self.timings is None else MeasuredCost(self.timings, self.sparsity, self.shapes)

    def time_floor(self, context: int) -> float:
        """The least share of the dense step's milliseconds that can be met. Raises `BudgetError` without timings."""
        return self._measured().share(self.lowest(context).shares, self._controllable(context))

    def time(self, budget: Budget, context: int) -> tuple[float, float] | None:
        """The share of the dense step's milliseconds that steps at `budget` take, and these milliseconds; None without
        timings."""
        if self.measured is None:
            return None
        seen = self._controllable(context)
        return self.measured.share(budget.shares, seen), self.measured.dense(seen)

    @property
    def curve(self) -> BudgetCurve | None:
        """What the policy's budgets lose, where it was measured."""
        return None if self.trained is None else self.trained.curve

    def _measured(self) -> MeasuredCost:
        if self.measured is None:
            raise BudgetError(
                "a budget in time needs step timings of this machine: a policy of solm fit brings them, and solm bench "
                "--out FILE measures them for --timings FILE"
            )
        return self.measured

    def time_share(self, request: BudgetRequest, context: int) -> float:
        """The share of the dense step's milliseconds that a budget as a share, speed, milliseconds or loss comes down
        to, at most 1; it may be below what can be met. Raises `BudgetError` where nothing tells it."""
        known, seen = self._measured(), self._controllable(context)
        assert not isinstance(request.value, Budget)
        value = request.value
        share = {
            "compute": lambda: value, "speed": lambda: 1 / value, "ms": lambda: value / known.dense(seen),
            "loss": lambda: self._share_for_loss(value, seen),
        }[request.kind]()  # fmt: skip
        return min(share, 1.0)

    def _of_time(self, request: BudgetRequest, context: int, clamp: bool) -> Budget:
        """The budget of a share of the dense step's milliseconds, or of what comes down to one, at one price for a
        millisecond on every axis."""
        known, seen, share = self._measured(), self._controllable(context), self.time_share(request, context)
        if share == 1:
            return Budget()
        dense, lowest = known.dense(seen), self.lowest(context)
        floor = known.share(lowest.shares, seen)
        if share <= floor + _TOLERANCE:
            if clamp or request.kind == "loss" or share >= floor - _TOLERANCE:
                return lowest
            least = _up(floor, 1000)
            reach = {
                "compute": f"steps take {least:g} to 1 of the dense step's milliseconds",
                "speed": f"speeds are 1 to {math.floor(100 / floor) / 100:g}",
                "ms": f"steps take {_up(floor * dense, 100):g} to {dense:.4g} ms",
            }
            raise BudgetError(f"budget {request} is unreachable: at {seen} tokens {reach[request.kind]}")
        policy = None if self.trained is None else self.trained.policy()
        rates = tuple(rate / dense for rate in known.rates(seen))
        if isinstance(policy, PricedPolicy):
            return policy.split_cost(share, self._levels(seen), rates, 1 - sum(rates), seen)
        return self._densest(lambda budget: known.share(budget.shares, seen) <= share, context)

    def _share_for_loss(self, nats: float, context: int) -> float:
        if self.curve is None:
            raise BudgetError("a budget as a loss needs a policy with a measured curve: solm fit makes one")
        return self.curve.share_for_loss(nats, context)

    def lowest(self, context: int) -> Budget:
        """What the lowest levels realise after `context` tokens."""
        return self._realised(self.lowest_net, context)

    def _densest(self, fits: Callable[[Budget], bool], context: int) -> Budget:
        """The budget of the highest net keep that `fits`, which the lowest one does."""
        low, high = self.lowest_net, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(self._realised(middle, context)) else (low, middle)
        return self._realised(low, context)

    @property
    def lowest_net(self) -> float:
        """The lowest net keep of the action space."""
        return sum(low for low, _ in self.space.ranges) / 3

    def of_net(self, net: float) -> Budget:
        """The budget of net keep `net`."""
        return Budget.from_net(net, self.space) if self.trained is None else self.trained.budget(net)

    def bytes(self, budget: Budget, context: int) -> float:
        """What steps at `budget` that see `context` keys read, as a share of the dense step's bytes."""
        return step_cost(budget.shares, self._controllable(context), self.shapes, self.sparsity, "bytes", self.overhead)

    def _of_bytes(self, share: float, context: int, clamp: bool) -> Budget:
        if share == 1:
            return Budget()
        lowest = self.lowest(context)
        least = self.bytes(lowest, context)
        if share < least - _TOLERANCE:
            if clamp:
                return lowest
            raise BudgetError(
                f"budget {share:g} is unreachable: at {self._controllable(context)} tokens this model reads "
                f"{_up(least, 100):g} to 1 of the dense step's bytes"
            )
        return self._densest(lambda budget: self.bytes(budget, context) <= share, context)

    def _realised(self, net: float, context: int) -> Budget:
        """What net keep `net` realises after `context` tokens. Bits that save no bytes are left alone."""
        nominal = self.of_net(net)
        levels = self._levels(self._controllable(context))
        axes = (self.space.attention, self.space.mlp, [bits / FULL_BITS for bits in self.space.bits])
        attention, mlp, bits = (
            float(np.interp(share, axis, realised))
            for share, axis, realised in zip(nominal.shares, axes, levels, strict=True)
        )
        saved = self.sparsity.bits_site == "weights"
        return Budget(attention=attention, mlp=mlp, bits=bits * FULL_BITS if saved else FULL_BITS)

    def _levels(self, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per axis the shares [levels] that a step which sees `context` keys realises."""
        keep = np.array(self.space.attention, dtype=np.float64)[None]
        read = kv_budget(keep, np.full(keep.shape, context), self.sparsity)[1]
        return (read.reshape(-1, keep.shape[1]).mean(0), *self._fixed_levels)

    @cached_property
    def _fixed_levels(self) -> tuple[np.ndarray, np.ndarray]:
        """The same of MLP and bits, which do not depend on the context."""
        mlp = realised_mlp(np.array(self.space.mlp, dtype=np.float64), self.sparsity, self.shapes)
        bits = bits_share(np.array(self.space.bits, dtype=np.float64), self.sparsity)
        return mlp.reshape(-1, len(self.space.mlp)).mean(0), bits

    def _controllable(self, context: int) -> int:
        """`context`, or where attention cannot be saved so early, the first in which it can."""
        return max(context, self.sparsity.always_read + 1)

    def _checked(self, budget: Budget, clamp: bool) -> Budget:
        """`budget`, if averages over actions of the space can meet it after a context that is long enough."""
        met: list[float] = []
        mlp, bits = (float(levels[0]) for levels in self._fixed_levels)
        for axis, share, (low, high), least in zip(
            AXES, budget.shares, self.space.ranges, (1.0, mlp, bits), strict=True
        ):
            lowest = min(low, least)  # a level of 0.5 computes 0.375 of the channels where hidden ones keep its square
            met.append(max(share, lowest) if clamp else share)
            if not lowest - _TOLERANCE <= met[-1] <= high + _TOLERANCE:
                unit = FULL_BITS if axis == "bits" else 1
                raise BudgetError(
                    f"budget {axis}={share * unit:g} is unreachable: this action space offers "
                    f"{lowest * unit:g} to {high * unit:g}"
                )
        return Budget(attention=met[0], mlp=met[1], bits=met[2] * FULL_BITS)


def _up(value: float, parts: int) -> float:
    """`value` rounded up to the next of `parts` parts of 1."""
    return math.ceil(parts * value) / parts
