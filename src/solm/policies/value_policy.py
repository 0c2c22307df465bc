"""The value policy: a small network predicts how sensitive the current token is to each axis.

Here are its sizes, its weights as arrays, which is all that the compiled engine needs of it, and the policy.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from solm.core.actions import AXES, FULL_BITS, ActionSpace
from solm.core.arrays import Array, as_numpy, in_kind
from solm.core.errors import PolicyMismatchError
from solm.policies.priced import LevelCosts, PricedPolicy, price_curves

if TYPE_CHECKING:
    import torch

    from solm.policies.value_network import ValueNetwork

_LEAST_COST = 1e-9  # nats; the logarithm of a level cost needs a positive one
_NOT_FITTED = ("training_sensitivities", "scale", "trust")


CostsAfter = tuple[tuple[int, tuple[float, float, float]], ...]
"""Contexts in tokens, and for each the factors, per axis, by which level costs are multiplied after it."""


class ValueConfig(BaseModel):
    """Sizes of a value network: it reads the residual stream that enters `layer` and knows level costs on `grid`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_hidden: int = Field(ge=1)
    layer: int = Field(ge=0)
    grid: ActionSpace
    width: int = Field(64, ge=8, le=4096)
    kept_sensitivities: int = Field(2048, ge=1, le=65536)
    """Training tokens whose sensitivities are kept; they tell which price gives which average share."""
    attention_own: tuple[float, ...] = ()
    """Per attention level of the grid but the dense one, the part of its level cost that the step itself bears and that
    is multiplied with the token's sensitivity. Later steps, which read this step's keys and values, bear the rest.
    Empty: all of it."""
    costs_after: CostsAfter = ()
    """Level costs after longer contexts, as multiples of those after the first one. Empty: the same after all."""

    def cost_factors(self, context: int) -> tuple[float, float, float]:
        """Per axis the factor by which level costs after `context` tokens differ: interpolated between known contexts
        by logarithms, beyond them that of the nearest."""
        if not self.costs_after:
            return (1.0, 1.0, 1.0)
        contexts, factors = (np.log(part) for part in zip(*self.costs_after, strict=True))
        attention, mlp, bits = (float(np.exp(np.interp(np.log(context), contexts, axis))) for axis in factors.T)
        return attention, mlp, bits

    @model_validator(mode="after")
    def _check_costs_after(self) -> "ValueConfig":
        contexts = [context for context, _ in self.costs_after]
        if sorted({*contexts}) != contexts or min(contexts, default=1) < 1:
            raise ValueError(f"costs_after needs rising contexts from 1 on, got {contexts}")
        if any(not 0.001 <= factor <= 1000 for _, factors in self.costs_after for factor in factors):
            raise ValueError(f"factors of costs_after must lie between 0.001 and 1000, got {self.costs_after}")
        return self

    @model_validator(mode="after")
    def _check_own(self) -> "ValueConfig":
        levels = len(self.grid.attention) - 1
        if self.attention_own and len(self.attention_own) != levels:
            raise ValueError(f"attention_own needs {levels} parts, one per level below the dense one")
        if any(not 0 <= part <= 1 for part in self.attention_own):
            raise ValueError(f"attention_own must lie between 0 and 1, got {self.attention_own}")
        return self


@dataclass(frozen=True, eq=False)
class ValueWeights:
    """What a value network consists of: arrays by the names of `solm.policies.value_network.ValueNetwork`'s state."""

    config: ValueConfig
    arrays: dict[str, np.ndarray]

    @property
    def level_costs(self) -> list[np.ndarray]:
        """Per axis [levels - 1]."""
        return [self.arrays[f"level_costs.{axis}"] for axis in range(len(AXES))]

    @property
    def size(self) -> int:
        """Numbers that were fitted."""
        return sum(values.size for name, values in self.arrays.items() if name not in _NOT_FITTED)

    def check(self) -> None:
        """Raises `PolicyMismatchError` for arrays that are missing, have other shapes, or hold values that no fit
        gives: not finite, level costs below 0, a scale of at most 0, or a trust outside [0, 1]."""
        shapes = _shapes(self.config)
        for name in sorted(shapes.keys() | self.arrays.keys()):
            if name not in self.arrays or name not in shapes:
                what = "lack" if name in shapes else "hold the unknown tensor"
                raise PolicyMismatchError(f"the weights of the policy {what} {name}")
            got, wanted = list(self.arrays[name].shape), list(shapes[name])
            if got != wanted:
                raise PolicyMismatchError(f"{name} of the policy has shape {got}; it must be {wanted}")
            if not np.isfinite(self.arrays[name]).all():
                raise PolicyMismatchError(f"{name} of the policy holds values that are not finite")
        bounds = [
            *((f"level_costs.{axis}", 0.0, np.inf) for axis in range(len(AXES))),
            ("scale", np.nextafter(0, 1, dtype=np.float32), np.inf),
            ("trust", 0.0, 1.0),
            ("training_sensitivities", 0.0, np.inf),
        ]
        for name, low, high in bounds:
            values = self.arrays[name]
            outside = values[(values < low) | (values > high)]
            if len(outside):
                above = "above 0" if name == "scale" else f"at least {low:g}"
                limit = above if high == np.inf else f"in [{low:g}, {high:g}]"
                raise PolicyMismatchError(f"{name} of the policy holds {float(outside[0]):g}; it must be {limit}")


def _shapes(config: ValueConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's arrays by their names."""
    width = config.width
    costs = {f"level_costs.{axis}": (size - 1,) for axis, size in enumerate(config.grid.shape)}
    return costs | {
        "read.weight": (width, config.base_hidden + 3), "read.bias": (width,), "head.weight": (3, width),
        "head.bias": (3,), "training_sensitivities": (config.kept_sensitivities, 3), "scale": (3,), "trust": (3,),
    }  # fmt: skip


def known_levels(grid: ActionSpace, space: ActionSpace) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per axis the levels of `grid` and of `space` as shares, float64.

    Raises `PolicyMismatchError` for a level of `space` below those of `grid`.
    """
    found = []
    for name, known, wanted in zip(
        AXES, (grid.attention, grid.mlp, grid.bits), (space.attention, space.mlp, space.bits), strict=True
    ):
        full = FULL_BITS if name == "bits" else 1
        if wanted[0] < known[0] - 1e-9:
            raise PolicyMismatchError(
                f"{name} level {wanted[0]:g} is below what this policy was trained on, {known[0]:g} to {known[-1]:g}"
            )
        found.append((np.array(known, dtype=np.float64) / full, np.array(wanted, dtype=np.float64) / full))
    return found


def costs_between(known: np.ndarray, costs: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Level costs [W] float64, nats, of levels `wanted` [W], from the `costs` [K - 1] of levels `known` [K], the dense
    one, which costs nothing, last. Levels are shares.

    Between known levels the cost falls exponentially with the share, and from the last but one to the dense level with
    the square of what is left out. Both are convex, as measured costs are. With straight lines no level between two
    known ones would ever be the cheapest.
    """
    if len(known) == 1:
        return np.zeros(len(wanted))
    costs = np.maximum(costs.astype(np.float64), _LEAST_COST)
    between = np.exp(np.interp(wanted, known[:-1], np.log(costs)))
    above = costs[-1] * ((1 - wanted) / (1 - known[-2])) ** 2
    return np.where(wanted > known[-2], above, between)


class ValuePolicy(PricedPolicy):
    """Buys by the level costs that a value network predicts, in an action space within the network's grid.

    own_cost: per axis [levels] float64, the part of a level's cost that is multiplied with the token's sensitivity;
    fixed_cost: the part that is not. Raises `PolicyMismatchError` where the space has levels below the grid's.
    """

    def __init__(self, network: "ValueNetwork | ValueWeights", space: ActionSpace, clamp: bool = True):
        """network: what predicts, or its weights alone, which is all that the compiled engine needs."""
        self.weights = network if isinstance(network, ValueWeights) else network.weights()
        self._network = None if isinstance(network, ValueWeights) else network
        config, own, fixed = self.weights.config, [], []
        for (known, wanted), costs, part in zip(
            known_levels(config.grid, space), self.weights.level_costs, (config.attention_own, (), ()), strict=True
        ):
            cost = costs_between(known, costs, wanted)
            borne = cost * (np.interp(wanted, known[:-1], part) if part else 1.0)
            own.append(borne)
            fixed.append(cost - borne)
        self.own_cost, self.fixed_cost = LevelCosts(*own), LevelCosts(*fixed)
        super().__init__(space, config.layer, price_curves(space, self.training_costs), clamp)

    @property
    def size(self) -> int:
        """Fitted numbers that are read at every step."""
        return self.weights.size

    @property
    def training_costs(self) -> LevelCosts:
        return self.level_costs(self.weights.arrays["training_sensitivities"])

    def cost_factors(self, context: int) -> tuple[float, float, float]:
        return self.weights.config.cost_factors(context)

    @property
    def network(self) -> "ValueNetwork":
        """What predicts, on the host where it was made from weights alone."""
        if self._network is None:
            from solm.policies.value_network import ValueNetwork

            self._network = ValueNetwork.of(self.weights)
        return self._network

    def level_costs(self, sensitivities: Array) -> LevelCosts:
        """Level costs [..., levels] float64 on the host, of tokens of sensitivities [..., 3]; tensors for a tensor."""
        known = as_numpy(sensitivities).astype(np.float64)
        kind: Any = sensitivities.cpu() if not isinstance(sensitivities, np.ndarray) else known
        return LevelCosts(
            *(
                in_kind(fixed + known[..., axis, None] * own, kind)
                for axis, (own, fixed) in enumerate(zip(self.own_cost, self.fixed_cost, strict=True))
            )
        )

    def sensitivities(self, hidden: "torch.Tensor", before: "torch.Tensor") -> "torch.Tensor":
        """Predicted sensitivities [N, Q, 3], 1 on average in training; arguments as for `costs`."""
        import torch

        with torch.no_grad():
            hidden = hidden.to(self.network.read.weight.device)
            shares = before.clone()
            shares[..., 2] /= FULL_BITS
            return self.network(hidden, shares.to(hidden.device))

    def costs(self, hidden: "torch.Tensor", before: "torch.Tensor") -> LevelCosts:
        return self.level_costs(self.sensitivities(hidden, before))
