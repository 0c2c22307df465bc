"""Training configurations: one YAML file, every field also a flag."""

import difflib
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from solm.core.actions import PRESETS as SPACES
from solm.core.actions import ActionSpace
from solm.core.errors import SolmError
from solm.core.seeds import MOST_SEED
from solm.core.sparsity import PRESETS as SPARSITY
from solm.core.sparsity import SparsityConfig
from solm.policies.value_policy import known_levels


class FitConfig(BaseModel):
    """How a value network is fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(8, ge=1)
    batch: int = Field(2048, ge=1)
    """Samples per optimiser step."""
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.5, ge=0)
    dropout: float = Field(0.5, ge=0, lt=1)
    held_out: float = Field(0.1, ge=0, lt=1)
    """Share of the texts that the fit does not see. They measure how much it explains, and set the trust in it."""
    seed: int = Field(0, ge=0, le=MOST_SEED)


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


class ValueTrainConfig(RunConfig):
    """Counterfactual regression: score random schedules, and fit a network that predicts level costs.

    `space` is the grid whose level costs are learned. The policy can be used in any space within that grid.
    """

    method: Literal["values"] = "values"
    space: ActionSpace = SPACES["grid"]
    choose: ActionSpace | None = None
    """Action space that the policy is saved with. None: `fine` for the grid `grid`, `cpu-fine` for `cpu`, else `space`
    itself."""
    context: int = Field(384, ge=1)
    length: int = Field(256, ge=1)
    schedules: int = Field(3, ge=1)
    """Random schedules per text."""
    batches: int = Field(60, ge=1)
    layer: int = Field(4, ge=0)
    """Decision layer: the policy reads the residual stream that enters it, for the current token."""
    level_cost_context: int = Field(512, ge=1)
    """Tokens read densely before level costs are measured."""
    level_cost_length: int = Field(64, ge=1)
    """Tokens of every text on which level costs are measured."""
    level_cost_texts: int = Field(64, ge=1)
    """Texts on which level costs are measured. Costs differ more between texts than between tokens of a text."""
    width: int = Field(64, ge=8)
    """Hidden units of the network. More of them overfit earlier."""
    fit: FitConfig = FitConfig()

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        known_levels(self.space, self.choices)
        if int(self.batches * self.texts * (1 - self.fit.held_out)) < 1:
            raise ValueError(
                f"batches {self.batches} × texts {self.texts} leave none to fit to: {self.fit.held_out:g} is held out"
            )
        return self

    @property
    def choices(self) -> ActionSpace:
        if self.choose is not None:
            return self.choose
        finer = {"grid": "fine", "cpu": "cpu-fine"}
        return next((SPACES[fine] for grid, fine in finer.items() if self.space == SPACES[grid]), self.space)


METHODS: dict[str, type[ValueTrainConfig]] = {"values": ValueTrainConfig}
