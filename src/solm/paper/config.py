"""Training configurations: one YAML file, every field also a flag."""

import difflib
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from solm.core.actions import PRESETS as SPACES
from solm.core.actions import ActionSpace
from solm.core.budget import Budget
from solm.core.errors import BudgetError, SolmError
from solm.core.provenance import MOST_SEED
from solm.core.sparsity import PRESETS as SPARSITY
from solm.core.sparsity import SparsityConfig


def read_values(path: Path | None) -> dict[str, Any]:
    """The keys and values of a YAML file; none without one. Raises `SolmError`."""
    if path is None:
        return {}
    try:
        values: Any = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SolmError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise SolmError(f"{path}: expected keys and values, got {type(values).__name__}")
    return values


Config = TypeVar("Config", bound="RunConfig")


class RunConfig(BaseModel):
    """Settings of every training run. Equal configurations give equal policies on one CPU."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "builtin:smollm2-135m"
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    data: tuple[str, ...] = ("pydoc:train",)
    """Sources of text; ``self:N`` adds N texts sampled from the model itself."""
    space: ActionSpace
    sparsity: SparsityConfig = SPARSITY["default"]
    context: int = Field(512, ge=1)
    """Tokens read densely before an episode."""
    length: int = Field(16, ge=1)
    """Controlled tokens per episode."""
    texts: int = Field(4, ge=1)
    """Different texts per batch."""
    seed: int = Field(0, ge=0, le=MOST_SEED)

    @model_validator(mode="before")
    @classmethod
    def _resolve_names(cls, values: Any) -> Any:
        """Spaces and sparsity may be given by the name of a preset; data as one string."""
        if isinstance(values, dict):
            values = dict(values)
            for key in ("space", "choose"):
                if isinstance(values.get(key), str):
                    values[key] = ActionSpace.preset(values[key])
            if isinstance(values.get("sparsity"), str):
                values["sparsity"] = SparsityConfig.preset(values["sparsity"])
            if isinstance(values.get("data"), str):
                values["data"] = tuple(part.strip() for part in values["data"].split(","))
        return values

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if len(self.space.attention) > 1 and self.context + self.length <= self.sparsity.always_read:
            raise ValueError(
                f"context {self.context} leaves no step whose attention can be controlled: it always reads "
                f"{self.sparsity.always_read} tokens"
            )
        return self

    @classmethod
    def build(cls: type[Config], values: dict[str, Any], origin: str) -> Config:
        """A configuration from keys and values; `origin` is named in errors.

        Raises `SolmError` that names the key, with a suggestion for an unknown one.
        """
        for key in values:
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(cls.model_fields)}"
                raise SolmError(f"{origin}: unknown key {key!r}{hint}")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise SolmError(f"{origin}: {where or 'value'}: {first['msg']} (got {first['input']!r})") from error


class TrainConfig(RunConfig):
    """Group-relative policy optimisation, as in arXiv 2605.10875."""

    method: Literal["grpo"] = "grpo"
    space: ActionSpace = SPACES["joint-8"]
    rollouts: int = Field(16, ge=2)
    """Counterfactual schedules per text."""
    updates: int = Field(400, ge=1)

    learning_rate: float = Field(1e-4, gt=0)
    entropy: float = Field(0.05, ge=0)
    epochs: int = Field(1, ge=1)
    """Optimiser steps per batch. With one, the ratio is always 1 and the objective is REINFORCE with a group
    baseline."""
    gamma: float = Field(0.85, gt=0, le=1)
    advantage: Literal["priced", "process", "outcome"] = "priced"
    """How advantages are computed: see `solm.paper.objective.advantages`."""
    budgets: tuple[float, ...] = ()
    """Net keeps to train at. Empty: every axis is drawn uniformly from its range, independently."""

    width: int = Field(256, ge=8)
    heads: int = Field(4, ge=1)
    budget_prior: bool = True
    checkpoint_every: int = Field(50, ge=1)
    accumulate: int = Field(1, ge=1)
    """Parts in which a process computes the gradient of an update. More parts need less memory; the result is the same
    but for rounding."""

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        for net in self.budgets:
            try:
                Budget.from_net(net, self.space)
            except BudgetError as error:
                raise ValueError(f"budgets: {error}") from error
        return self
