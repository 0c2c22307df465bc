"""Budgets: how one is asked for (`BudgetRequest`), averages per axis (`Budget`), and what rows spent (`Ledger`)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from solm.core.actions import AXES, FULL_BITS, ActionSpace
from solm.core.arrays import Array
from solm.core.errors import BudgetError

if TYPE_CHECKING:
    import torch

Kind = Literal["compute", "speed", "ms", "loss", "keep", "shares"]
"""What a budget is told in; see `BudgetRequest`."""
BudgetLike = Union[float, str, Mapping[str, float], "Budget", "BudgetRequest", None]
_TOLERANCE = 1e-9
_LEAST: dict[Literal["speed", "ms", "loss"], tuple[float, str]] = {
    "speed": (1.0, "a speed must be at least 1, the dense step's, and finite"),
    "ms": (0.0, "milliseconds must be above 0 and finite"),
    "loss": (0.0, "a loss must be above 0 nats per token and finite"),
}
"""By form of a budget that needs measurements, its least value, and what is said of others."""


class Budget(BaseModel):
    """Episode averages per axis: share of KV tokens read, share of MLP channels computed, activation bits.

    Raises `BudgetError` for a value outside (0, 1] for the shares or [2, 16] for the bits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    def shares(self) -> tuple[float, float, float]:
        """Attention, MLP and bits / 16."""
        return self.attention, self.mlp, self.bits / FULL_BITS

    @property
    def net(self) -> float:
        """Net keep: the mean of the three shares."""
        return sum(self.shares) / 3

    @classmethod
    def from_net(cls, net: float, space: ActionSpace) -> "Budget":
        """The budget of net keep `net` that lies at the same fraction of every axis's range in `space`.

        Raises `BudgetError` where the space cannot spend so little (or so much).
        """
        lows, highs = zip(*space.ranges, strict=True)
        low, high = sum(lows) / 3, sum(highs) / 3
        if not low - _TOLERANCE <= net <= high + _TOLERANCE:
            raise BudgetError(f"budget {net} is unreachable: net keeps of this space are {low:.4g} to {high:.4g}")
        fraction = 1.0 if high == low else min(1.0, max(0.0, (net - low) / (high - low)))
        attention, mlp, bits = (a + fraction * (b - a) for a, b in space.ranges)
        return cls(attention=attention, mlp=mlp, bits=bits * FULL_BITS)

    def array(self, rows: int) -> np.ndarray:
        """The shares for `rows` rows: [rows, 3] float64."""
        return np.tile(np.array(self.shares, dtype=np.float64), (rows, 1))

    def tensor(self, rows: int) -> "torch.Tensor":
        """The same as a tensor."""
        import torch

        return torch.tensor(self.shares, dtype=torch.float64).expand(rows, 3)


@dataclass(frozen=True)
class BudgetRequest:
    """A budget as it was asked for. What it is per axis depends on the model: see `LanguageModel.budget`.

    kind: ``compute``, the share of the dense step's milliseconds, or of its bytes where none were measured; ``speed``,
    the dense step's milliseconds over those of the average step; ``ms``, milliseconds per step; ``loss``, nats per
    token above the dense model; ``keep``, net keep; ``shares``, averages per axis. value: a `Budget` for ``shares``,
    else a number.
    """

    kind: Kind
    value: "float | Budget"

    def __str__(self) -> str:
        """As it is typed."""
        if not isinstance(self.value, Budget):
            return f"{self.value:g}" if self.kind == "compute" else f"{self.kind}={self.value:g}"
        return f"attention={self.value.attention:g},mlp={self.value.mlp:g},bits={self.value.bits:g}"

    @classmethod
    def parse(cls, asked: BudgetLike) -> "BudgetRequest":
        """The request in ``0.7``, ``speed=1.5``, ``ms=4.5``, ``loss=0.05``, ``keep=0.6`` or
        ``attention=0.5,mlp=0.7,bits=8``; None asks for all.

        Raises `BudgetError` for anything else and for values out of range. What a model can meet is not checked.
        """
        if isinstance(asked, BudgetRequest):
            return asked
        if asked is None or isinstance(asked, Budget):
            return cls("shares", asked or Budget())
        if isinstance(asked, Mapping):
            asked = ",".join(f"{axis}={share}" for axis, share in asked.items())
        if isinstance(asked, bool) or not isinstance(asked, Real | str):
            raise BudgetError(f"a budget is a number, a text or a Budget, got {asked!r}")
        try:
            return cls("compute", _share(float(asked), asked))
        except ValueError:
            pass
        values: dict[str, float] = {}
        for part in str(asked).split(","):
            name, equals, number = (piece.strip() for piece in part.partition("="))
            if not equals or name not in (*AXES, "keep", *_LEAST):
                raise BudgetError(
                    f"budget {asked!r} is not a number, speed=1.5, ms=4.5, loss=0.05, keep=0.6 or a list such as "
                    f"attention=0.5,mlp=0.7,bits=8 ({part!r})"
                )
            if name in values:
                raise BudgetError(f"budget {asked!r} gives {name} twice")
            try:
                values[name] = float(number)
            except ValueError:
                raise BudgetError(f"budget {part!r}: {number!r} is not a number") from None
        if len(values) > 1 and not values.keys() <= set(AXES):
            raise BudgetError(f"budget {asked!r} says several things; give keep, speed, ms and loss alone")
        if "keep" in values:
            return cls("keep", _share(values["keep"], asked))
        for kind, (least, words) in _LEAST.items():
            if kind in values:
                if not least <= values[kind] < math.inf or not values[kind]:
                    raise BudgetError(f"budget {asked} is out of range: {words}")
                return cls(kind, values[kind])
        return cls("shares", Budget(**values))


def _share(value: float, asked: object) -> float:
    if not 0 < value <= 1:
        raise BudgetError(f"budget {asked} is out of range: a share must be above 0 and at most 1")
    return value


@dataclass(frozen=True)
class Ledger:
    """What N rows have spent, in realised shares. Every axis counts the steps that could be controlled on it.

    spent: [N, 3] float64 sums of realised shares per axis; steps: [N, 3] int64 number of steps counted. Both are
    tensors, or both are arrays, and so is what methods return.
    """

    spent: Any
    steps: Any

    @classmethod
    def empty(cls, rows: int, device: "torch.device | str" = "cpu") -> "Ledger":
        """Tensors of rows that have spent nothing."""
        import torch

        return cls(
            torch.zeros(rows, 3, dtype=torch.float64, device=device),
            torch.zeros(rows, 3, dtype=torch.int64, device=device),
        )

    def add(self, realised: Array, controllable: Array) -> "Ledger":
        """The ledger after one step of realised [N, 3] shares; only what is controllable [N, 3] bool counts."""
        return Ledger(self.spent + realised * controllable, self.steps + controllable)

    @property
    def average(self) -> Any:
        """Mean realised share per axis [N, 3]; 1 where no step was counted."""
        counted = self.steps > 0
        return self.spent / self.steps.clip(min=1) * counted + ~counted

    def deviation(self, target: Any) -> Any:
        """Average minus target [N, 3]; 0 where no step was counted."""
        return (self.average - target) * (self.steps > 0)

    def rows(self, index: Array) -> "Ledger":
        """The ledger of rows index [n] int64, of which some may occur several times."""
        return Ledger(self.spent[index], self.steps[index])
