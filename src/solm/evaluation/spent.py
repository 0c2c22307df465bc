"""What the steps of a job spent, and the budget that it makes for others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from solm.backends.session import AnyPolicy
from solm.core.actions import AXES, FULL_BITS
from solm.core.budget import Budget, Ledger
from solm.core.cost import CostModel, relative_cost
from solm.core.sparsity import SparsityConfig
from solm.runtime.language_model import LanguageModel


def budget_of(realised: Mapping[str, float]) -> Budget:
    """The average shares that steps realised, by axis, as the budget that other arms are given."""
    attention, mlp, bits = (min(1.0, realised[axis]) for axis in AXES)  # averages of floats may exceed 1 by rounding
    return Budget(attention=attention, mlp=mlp, bits=bits * FULL_BITS)


def step_costs(
    lm: LanguageModel,
    policy: AnyPolicy,
    sparsity: SparsityConfig | None,
    realised: torch.Tensor,
    kv_length: torch.Tensor,
    model: CostModel = "bytes",
) -> torch.Tensor:
    """What steps of realised shares [..., 3] that see kv_length [...] keys cost as a share of dense ones [...], the
    weights of `policy`, which decides, included. sparsity: where it is not the model's."""
    return relative_cost(realised, kv_length, lm.shapes, sparsity or lm.sparsity, model, lm.overhead(policy))


@dataclass(frozen=True)
class Spent:
    """Sums over the steps of a job: bytes as a share of dense, and how many steps they were; shares per axis [3]
    float64 of the steps that could be controlled on it, and how many those were, controllable [3] int64; milliseconds
    of the steps and of dense ones in their place by the model's step timings, 0 without such."""

    shares: torch.Tensor
    bytes: float
    controllable: torch.Tensor
    steps: int
    milliseconds: float = 0.0
    dense_milliseconds: float = 0.0

    @classmethod
    def sum(cls, parts: "Sequence[Spent]") -> "Spent":
        """What several jobs spent."""
        ledger = Ledger.empty(1)
        shares = sum((part.shares for part in parts), ledger.spent[0])
        controllable = sum((part.controllable for part in parts), ledger.steps[0])
        return cls(
            shares, sum(part.bytes for part in parts), controllable, sum(part.steps for part in parts),
            sum(part.milliseconds for part in parts), sum(part.dense_milliseconds for part in parts),
        )  # fmt: skip

    @property
    def average(self) -> torch.Tensor:
        """Mean share per axis [3]; 1 where no step was controllable."""
        average: torch.Tensor = Ledger(self.shares, self.controllable).average
        return average
