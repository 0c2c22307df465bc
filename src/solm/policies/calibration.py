"""`Calibration`: what a model without a policy leaves out first, found in seconds; a file in the cache folder."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import BaseModel

from solm.core.actions import ActionSpace
from solm.core.budget import Budget
from solm.core.sparsity import Allocation, ChannelThresholds, SparsityConfig
from solm.policies.priced import PriceCurve, equal_prices


class Calibration(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How large an activation must be to be kept, which layers and sites leave out how much, and how budgets are split
    over the axes.

    input_part, projection_part: as in `SparsityConfig`. space: the actions to choose among. costs: per axis, nats per
    token that its levels are estimated to cost, falling to 0. groups: how many groups of layers were told
    apart.
    """

    format: Literal[1] = 1
    input_part: float
    projection_part: float
    thresholds: ChannelThresholds
    allocation: Allocation
    space: ActionSpace
    costs: tuple[tuple[float, ...], ...]
    groups: int
    curve: ClassVar[None] = None

    def applied(self, sparsity: SparsityConfig) -> SparsityConfig:
        """The rules `sparsity` under this calibration."""
        return sparsity.changed(
            input_part=self.input_part, projection_part=self.projection_part, thresholds=self.thresholds,
            allocation=self.allocation,
        )  # fmt: skip

    def split(
        self, cost: float, rates: np.ndarray, levels: tuple[np.ndarray, ...], context: int | None = None
    ) -> Budget:
        """As `solm.core.budget.Split`."""
        curves = [PriceCurve(np.array([c]), np.asarray(share)) for c, share in zip(self.costs, levels, strict=True)]
        return equal_prices(curves, cost, rates)
