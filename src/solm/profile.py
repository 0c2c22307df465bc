"""How an action is dealt out to the layers: more to those that lose more without it, the same on average."""

from functools import cached_property

import torch
from pydantic import BaseModel, ConfigDict, model_validator

KNOTS = 21
"""Points of a curve, evenly spaced over the shares from 0 to 1."""
Curves = tuple[tuple[float, ...], ...]


class Profile(BaseModel):
    """Per layer, what it keeps where the average layer keeps a share s = 0, .05, ... 1: [layers, KNOTS].

    attention: of the pages that may be skipped (all but sinks and window); mlp: of the MLP's channels (ρ). Curves rise
    to 1; their mean over layers is s where `solm.training.profile` found them. What is realised is booked in any case.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attention: Curves
    mlp: Curves

    @model_validator(mode="after")
    def _check(self) -> "Profile":
        for name, curves in (("attention", self.attention), ("mlp", self.mlp)):
            if not curves or any(len(curve) != KNOTS for curve in curves) or len(curves) != self.layers:
                raise ValueError(f"{name} needs {KNOTS} points for every layer")
            table = torch.tensor(curves, dtype=torch.float64)
            if bool((table < 0).any() or (table.diff(dim=1) < 0).any()) or not torch.all(table[:, -1] == 1):
                raise ValueError(f"{name}: the shares of a layer must rise from at least 0 to 1")
        return self

    @property
    def layers(self) -> int:
        return len(self.attention)

    # Semantics are compared and hashed at every pass.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Profile) and (self.attention, self.mlp) == (other.attention, other.mlp)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.attention, self.mlp))

    @cached_property
    def table(self) -> torch.Tensor:
        """[2, layers, KNOTS] float64: attention and MLP."""
        return torch.tensor([self.attention, self.mlp], dtype=torch.float64)

    def deal(self, axis: int, share: torch.Tensor) -> torch.Tensor:
        """What layers keep where the average one keeps `share` [...]: [layers, ...]; axis 0: attention, 1: MLP."""
        place = share.to(torch.float64) * (KNOTS - 1)
        below = place.floor().clamp(0, KNOTS - 2).long()
        curves = self.table[axis].to(share.device)
        low, high = curves[:, below], curves[:, below + 1]
        return low + (place - below) * (high - low)
