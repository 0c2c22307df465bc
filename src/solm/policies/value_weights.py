"""The sizes and the weights of the value policy's network, as arrays: all that the compiled engine needs of it."""

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, Field, model_validator

from solm.core.actions import AXES, ActionSpace
from solm.core.errors import PolicyMismatchError

_NOT_FITTED = ("training_sensitivities", "scale", "trust")


CostsAfter = tuple[tuple[int, tuple[float, float, float]], ...]
"""Contexts in tokens, and for each the factors, per axis, by which level costs are multiplied after it."""


class ValueConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes of a value network: it reads the residual stream that enters `layer` and knows level costs on `grid`."""

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
    def _check(self) -> "ValueConfig":
        contexts = [context for context, _ in self.costs_after]
        if sorted({*contexts}) != contexts or min(contexts, default=1) < 1:
            raise ValueError(f"costs_after needs rising contexts from 1 on, got {contexts}")
        if any(not 0.001 <= factor <= 1000 for _, factors in self.costs_after for factor in factors):
            raise ValueError(f"factors of costs_after must lie between 0.001 and 1000, got {self.costs_after}")
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
    width, axes = config.width, len(AXES)
    costs = {f"level_costs.{axis}": (size - 1,) for axis, size in enumerate(config.grid.shape)}
    return costs | {
        "read.weight": (width, config.base_hidden + axes), "read.bias": (width,), "head.weight": (axes, width),
        "head.bias": (axes,), "training_sensitivities": (config.kept_sensitivities, axes), "scale": (axes,),
        "trust": (axes,),
    }  # fmt: skip
