"""How an action is dealt out to layers and heads: more to those that lose more without it, the same on average."""

from functools import cached_property

import torch
from pydantic import BaseModel, ConfigDict, model_validator

KNOTS = 21
"""Points of a curve, evenly spaced over the shares from 0 to 1."""
Curves = tuple[tuple[float, ...], ...]


class Allocation(BaseModel):
    """What each keeps where the average one keeps a share s = 0, .05, ... 1: curves of KNOTS points.

    attention: of the pages that may be skipped (all but sinks and window), a curve for every layer or, layer by layer,
    for every KV head; mlp: of the MLP's channels (ρ), a curve for every layer. Curves rise to 1; their mean is s where
    `solm.training.allocate` found them. What is realised is booked in any case.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attention: Curves
    mlp: Curves

    @model_validator(mode="after")
    def _check(self) -> "Allocation":
        for name, curves in (("mlp", self.mlp), ("attention", self.attention)):
            if not curves or any(len(curve) != KNOTS for curve in curves) or len(curves) % self.layers:
                raise ValueError(f"{name} needs {KNOTS} points for every layer")
            table = torch.tensor(curves, dtype=torch.float64)
            if bool((table < 0).any() or (table.diff(dim=1) < 0).any()) or not torch.all(table[:, -1] == 1):
                raise ValueError(f"{name}: the shares of a layer must rise from at least 0 to 1")
        return self

    @property
    def layers(self) -> int:
        return len(self.mlp)

    @property
    def heads(self) -> int:
        """Curves of attention for every layer: its KV heads, or 1 for all of them."""
        return len(self.attention) // self.layers

    # SparsityConfig are compared and hashed at every pass.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Allocation) and (self.attention, self.mlp) == (other.attention, other.mlp)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.attention, self.mlp))

    @cached_property
    def table(self) -> torch.Tensor:
        """[layers · heads + layers, KNOTS] float64: attention, then MLP."""
        return torch.tensor(self.attention + self.mlp, dtype=torch.float64)

    def pages(self, share: torch.Tensor) -> torch.Tensor:
        """The share of pages that may be skipped which heads read, the average one reading `share` [...]: [layers,
        heads, ...]."""
        return self._deal(self.table[: len(self.attention)], share).unflatten(0, (self.layers, self.heads))

    def channels(self, share: torch.Tensor) -> torch.Tensor:
        """The share of channels ρ that layers keep, the average one keeping `share` [...]: [layers, ...]."""
        return self._deal(self.table[len(self.attention) :], share)

    def _deal(self, curves: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        place = share.to(torch.float64) * (KNOTS - 1)
        below = place.floor().clamp(0, KNOTS - 2).long()
        curves = curves.to(share.device)
        low, high = curves[:, below], curves[:, below + 1]
        return low + (place - below) * (high - low)
