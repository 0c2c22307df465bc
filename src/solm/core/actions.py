"""Efficiency actions: what one decode step of one row may spend."""

import re
from collections.abc import Mapping
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, field_validator

from solm.core.arrays import as_tensor
from solm.core.errors import SolmError

if TYPE_CHECKING:
    import torch

AXES = ("attention", "mlp", "bits")
FULL_BITS = 16
HIGH_BITS = 4
"""Of a weight of 8 bits whose upper half is a model of its own: precision as a level of each step."""
WHOLE = (1, 1, FULL_BITS)
"""Per axis what the whole of it is in the axis's own unit; shares are parts of it."""


class Frozen(BaseModel, frozen=True, extra="forbid", ignored_types=(cached_property,)):
    """A frozen model whose cached properties are of its own fields: pydantic's copies would keep those of the original,
    whatever a copy changes. It is compared and hashed by its fields, in every pass, and remembers the hash."""

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        made = super().model_copy(update=update, deep=deep)
        for name in made.__dict__.keys() - type(self).model_fields.keys():
            del made.__dict__[name]
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and (self is other or self._values == other._values)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in type(self).model_fields)

    @cached_property
    def _hash(self) -> int:
        return hash(self._values)


class Action(NamedTuple):
    """One point of the grid: share of KV tokens read, share of MLP channels computed, activation bits."""

    attention: float
    mlp: float
    bits: int

    @property
    def tag(self) -> str:
        """A readable name such as ``k050-s060-q8``."""
        return f"k{round(self.attention * 100):03d}-s{round(self.mlp * 100):03d}-q{self.bits}"

    @classmethod
    def from_tag(cls, tag: str) -> "Action":
        match = re.fullmatch(r"k(\d{3})-s(\d{3})-q(\d{1,2})", tag)
        if match is None:
            raise SolmError(f"{tag!r} is not an action tag; expected the form k050-s060-q8")
        attention, mlp, bits = (int(group) for group in match.groups())
        return cls(attention / 100, mlp / 100, bits)


DENSE = Action(1.0, 1.0, FULL_BITS)


class ActionSpace(Frozen):
    """The grid attention × mlp × bits, attention outermost and bits innermost. It always holds the dense action."""

    attention: tuple[float, ...] = (1.0,)
    mlp: tuple[float, ...] = (1.0,)
    bits: tuple[int, ...] = (FULL_BITS,)

    @field_validator("attention", "mlp")
    @classmethod
    def _check_shares(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0.01 <= level <= 1 or abs(level * 100 - round(level * 100)) > 1e-9 for level in levels):
            raise ValueError(f"keep rates must be whole percents in [0.01, 1], got {levels}")
        return cls._check_order(levels, 1.0)

    @field_validator("bits")
    @classmethod
    def _check_bits(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 2 <= level <= FULL_BITS for level in levels):
            raise ValueError(f"activation bits must be in [2, {FULL_BITS}], got {levels}")
        return cls._check_order(levels, FULL_BITS)

    @staticmethod
    def _check_order(levels: tuple[Any, ...], top: float) -> tuple[Any, ...]:
        if not levels or list(levels) != sorted(set(levels)) or levels[-1] != top:
            raise ValueError(f"levels must rise strictly and end at the dense level {top}, got {levels}")
        return levels

    @classmethod
    def preset(cls, name: str) -> "ActionSpace":
        """The space called `name` in `PRESETS`."""
        if name not in PRESETS:
            raise SolmError(f"unknown action space {name!r}; choose one of {', '.join(PRESETS)}")
        return PRESETS[name]

    @cached_property
    def actions(self) -> tuple[Action, ...]:
        return tuple(Action(*levels) for levels in product(self.attention, self.mlp, self.bits))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of levels per axis."""
        return len(self.attention), len(self.mlp), len(self.bits)

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def dense_index(self) -> int:
        return len(self) - 1

    @cached_property
    def numbers(self) -> np.ndarray:
        """The actions as numbers: [A, 3] float64, columns κ, ρ and bits (not divided by 16)."""
        return np.array(self.actions, dtype=np.float64)

    @cached_property
    def levels(self) -> np.ndarray:
        """The actions as levels: [A, 3] int64, the position of each on its axis."""
        return np.array(list(product(*(range(size) for size in self.shape))), dtype=np.int64)

    @cached_property
    def table(self) -> "torch.Tensor":
        """`numbers` as a tensor."""
        return as_tensor(self.numbers)

    def controlled(self, actions: np.ndarray, controllable: np.ndarray) -> np.ndarray:
        """The actions [...] int64 with the dense level on every axis that is not controllable [..., 3] bool."""
        if controllable.all():
            return actions
        attention, mlp, bits = np.moveaxis(np.where(controllable, self.levels[actions], self.levels[-1]), -1, 0)
        return np.asarray((attention * len(self.mlp) + mlp) * len(self.bits) + bits)

    @cached_property
    def shares(self) -> tuple[np.ndarray, ...]:
        """Per axis the nominal shares of its levels: [levels] float64 (bits as a share of 16)."""
        return tuple(np.array(levels) / whole for levels, whole in zip(self._values, WHOLE, strict=True))

    @cached_property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """Lowest and highest nominal share per axis."""
        return tuple((float(shares[0]), float(shares[-1])) for shares in self.shares)


def _steps(first: int, last: int, step: int) -> tuple[float, ...]:
    return tuple(level / 100 for level in range(first, last + 1, step))


PRESETS: dict[str, ActionSpace] = {
    # Two of the grids of arXiv 2605.10875; `solm.paper` has them all.
    "joint-8": ActionSpace(attention=(0.1, 1.0), mlp=(0.6, 1.0), bits=(5, 16)),
    "joint-27": ActionSpace(attention=(0.1, 0.6, 1.0), mlp=(0.4, 0.8, 1.0), bits=(5, 7, 16)),
    # What a compiled step can skip; for sparsity `cpu`.
    "cpu": ActionSpace(attention=(0.1, 0.2, 0.3, 0.4, 0.6, 1.0), mlp=(0.5, 0.6, 0.7, 0.8, 0.9, 1.0)),
    # The same, so close that a mixture of two levels costs little more than what lies between.
    "cpu-fine": ActionSpace(attention=(0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0), mlp=_steps(50, 100, 5)),
    # What `solm fit` learns to price. Channels are dealt out by site there, so that low shares are worth having.
    "sites": ActionSpace(attention=(0.1, 0.2, 0.3, 0.4, 0.6, 1.0), mlp=(0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 1.0)),
    # What a policy of `solm fit` chooses from: between levels that lie close little is lost.
    "sites-fine": ActionSpace(attention=(0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0), mlp=_steps(35, 100, 5)),
    # For budgets without a policy: down to where a model still says something, if little of sense.
    "cpu-wide": ActionSpace(attention=(0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0), mlp=_steps(20, 100, 5)),
    # ... with weights that can be read by halves; for sparsity `nested`.
    "nested": ActionSpace(attention=(0.1, 0.2, 0.3, 0.4, 0.6, 1.0), mlp=(0.5, 0.6, 0.7, 0.8, 0.9, 1.0), bits=(4, 16)),
    # Levels so close that a mixture of two costs little more than what lies between; costs are convex, so that coarse
    # grids waste much. None between 0.1 and 0.2, which in contexts of some hundred tokens read the same pages as 0.1.
    "fine": ActionSpace(
        attention=(0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0), mlp=_steps(40, 100, 5), bits=(4, 5, 6, 7, 8, 10, 16)
    ),
}
