"""Grids, sparsity and training settings of arXiv 2605.10875."""

from typing import Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from solm.core.actions import ActionSpace
from solm.core.budget import Budget
from solm.core.errors import BudgetError, SolmError
from solm.core.provenance import MOST_SEED
from solm.core.sparsity import SparsityConfig

GRIDS = {
    "attention-10": ActionSpace(attention=(0.1, 1.0)),
    "attention-20": ActionSpace(attention=(0.2, 1.0)),
    "attention-40": ActionSpace(attention=(0.4, 1.0)),
    "mlp-30": ActionSpace(mlp=(0.3, 1.0)),
    "mlp-40": ActionSpace(mlp=(0.4, 1.0)),
    "mlp-50": ActionSpace(mlp=(0.5, 1.0)),
    "bits-5": ActionSpace(bits=(5, 16)),
    "bits-6": ActionSpace(bits=(6, 16)),
    # The paper's {5, 10} bit grid gains the dense level that every space must have.
    "bits-5-10": ActionSpace(bits=(5, 10, 16)),
    "attention-fine": ActionSpace(attention=(0.1, 0.2, 0.4, 1.0)),
    "mlp-fine": ActionSpace(mlp=(0.4, 0.5, 0.6, 0.7, 0.8, 1.0)),
    "bits-fine": ActionSpace(bits=(4, 5, 6, 8, 16)),
    "joint-8": ActionSpace(attention=(0.1, 1.0), mlp=(0.6, 1.0), bits=(5, 16)),
    "joint-27": ActionSpace(attention=(0.1, 0.6, 1.0), mlp=(0.4, 0.8, 1.0), bits=(5, 7, 16)),
    "joint-336": ActionSpace(
        attention=(0.1, 0.4, 0.7, 1.0), mlp=(0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), bits=tuple(range(5, 17))
    ),
    "joint-1560": ActionSpace(
        attention=tuple(level / 10 for level in range(1, 11)),
        mlp=tuple(level / 100 for level in range(40, 101, 5)),
        bits=tuple(range(5, 17)),
    ),
}
SPARSITY = SparsityConfig(
    sinks=0, window=0, select_per="query_head", keep_ties=True, mlp_site="input", bits_site="output", bits_group=None
)
"""No sinks or window, pages chosen per query head, input channels only, MLP output quantised with one scale a token."""


class TrainConfig(BaseModel, frozen=True, extra="forbid"):
    """Settings of a training run. Equal ones give equal policies on one CPU."""

    model: str = "builtin:smollm2-135m"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    data: tuple[str, ...] = ("pydoc:train",)
    """Sources of text, as for `solm.evaluation.texts.documents`."""
    space: ActionSpace = GRIDS["joint-8"]
    sparsity: SparsityConfig = SPARSITY
    context: int = Field(512, ge=1)
    """Tokens read densely before an episode."""
    length: int = Field(16, ge=1)
    """Controlled tokens per episode."""
    texts: int = Field(4, ge=1)
    """Different texts per update."""
    rollouts: int = Field(16, ge=2)
    """Counterfactual schedules per text."""
    updates: int = Field(400, ge=1)
    seed: int = Field(0, ge=0, le=MOST_SEED)

    learning_rate: float = Field(1e-4, gt=0)
    entropy: float = Field(0.05, ge=0)
    epochs: int = Field(1, ge=1)
    """Optimiser steps per update. With one, the ratio is always 1 and the objective is REINFORCE with a group
    baseline."""
    gamma: float = Field(0.85, gt=0, le=1)
    advantage: Literal["process", "outcome"] = "process"
    """How advantages are computed: see `solm.paper.grpo.advantages`."""
    budgets: tuple[float, ...] = ()
    """Net keeps to train at. Empty: every axis is drawn uniformly from its range, independently."""

    width: int = Field(256, ge=8)
    heads: int = Field(4, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _resolve_names(cls, values: Any) -> Any:
        """The space may be given by its name; data as one string."""
        if isinstance(values, dict):
            values = dict(values)
            if isinstance(values.get("space"), str):
                values["space"] = grid(values["space"])
            if isinstance(values.get("data"), str):
                values["data"] = tuple(part.strip() for part in values["data"].split(","))
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.space.attention) > 1 and self.context + self.length <= self.sparsity.always_read:
            raise ValueError(
                f"context {self.context} leaves no step whose attention can be controlled: it always reads "
                f"{self.sparsity.always_read} tokens"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        for net in self.budgets:
            try:
                Budget.from_net(net, self.space)
            except BudgetError as error:
                raise ValueError(f"budgets: {error}") from error
        return self

    @classmethod
    def build(cls, values: dict[str, Any], origin: str) -> "TrainConfig":
        """A configuration from keys and values; `origin` is named in errors. Raises `SolmError` that names the key."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise SolmError(f"{origin}: {where or 'value'}: {first['msg']} (got {first['input']!r})") from error


def grid(name: str) -> ActionSpace:
    """The space called `name` in `GRIDS`; raises `SolmError` for an unknown one."""
    if name not in GRIDS:
        raise SolmError(f"unknown action space {name!r}; choose one of {', '.join(GRIDS)}")
    return GRIDS[name]
