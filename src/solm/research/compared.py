"""Options and arms of studies that compare what a policy writes with what its baselines write at equal shares."""

from pathlib import Path

from pydantic import Field, field_validator

from solm.core.budget import Budget, BudgetRequest, Budgets
from solm.core.cost import ModelShapes, read_timings
from solm.core.curve import spaced_budgets
from solm.core.errors import BudgetError, SolmError
from solm.evaluation.arms import Arm, static_arms
from solm.evaluation.baselines import BaselineRequest, constant
from solm.policies.artifact import TrainedPolicy
from solm.research.studies import ModelOptions, Names
from solm.runtime.language_model import LanguageModel
from solm.runtime.load import engine_sparsity

BASELINES = ("constant", "uniform", "allocated")
_BUDGETS = 3
"""Budgets of auto."""


class ComparedOptions(ModelOptions):
    """A policy, its budgets and its baselines."""

    policy: str = Field("auto", description="Folder or hub id of a trained policy; auto: solm's own for the model.")
    budgets: str = Field(
        "auto", description="Shares of the dense step's time, by the policy's step times (net keeps without), or auto."
    )
    timings: Path | None = Field(
        None, description="Step times, from solm bench --out; by default the policy's, if any."
    )
    baselines: Names = Field(("constant", "uniform"), description=f"Some of {', '.join(BASELINES)}.")
    backend: str = Field("cpu", description="torch, or cpu.")

    @field_validator("baselines")
    @classmethod
    def _check_baselines(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in BASELINES:
                raise ValueError(f"unknown baseline {name!r}; choose among {', '.join(BASELINES)}")
        return names

    @field_validator("budgets")
    @classmethod
    def _check_budgets(cls, text: str) -> str:
        if text != "auto":
            values = shares_of(text)
            if len(set(values)) < len(values):
                raise ValueError(f"{text!r} gives a budget twice")
        return text

    def loaded(self) -> LanguageModel:
        """The model under the policy."""
        return self.load(self.policy, backend=self.backend, timings=self.timings)

    def offer(self, trained: TrainedPolicy | None, shapes: ModelShapes) -> Budgets:
        """What can be asked for, before the model is loaded. Raises `SolmError` without a policy."""
        if trained is None:
            raise SolmError("--policy: this study needs a policy")
        timings = None if trained.curve is None else trained.curve.timings
        if self.timings is not None:
            try:
                timings = read_timings(self.timings)
            except SolmError as error:
                raise SolmError(f"--timings: {error}") from error
        return Budgets(trained.config.space, engine_sparsity(trained), shapes, trained, timings=timings)

    def values(self, offer: Budgets, seen: int) -> tuple[float, ...]:
        """The budgets as numbers: shares of the dense step's milliseconds, or net keeps without step times. Raises
        `BudgetError` for one that steps after `seen` tokens cannot meet."""
        timed = offer.timings is not None
        try:
            if self.budgets == "auto":
                return spaced_budgets(offer.time_floor(seen) if timed else offer.lowest_net, _BUDGETS)
            values = shares_of(self.budgets)
            for value in values:
                budget_at(offer, value, seen)
        except BudgetError as error:
            raise BudgetError(f"--budgets: {error}") from error
        return values

    def arms(self, lm: LanguageModel) -> dict[str, Arm]:
        """The baselines by name; ``allocated`` is left out where the model has no allocation."""
        statics = static_arms(lm, lm.space)
        return {
            name: constant(BaselineRequest(lm, lm.space)) if name == "constant" else statics[name]
            for name in self.baselines
            if name == "constant" or name in statics
        }


def budget_at(offer: Budgets, share: float, seen: int, clamp: bool = False) -> Budget:
    """The budget that `share` stands for in steps after `seen` tokens. clamp: the least there is where it is less.
    Raises `BudgetError` otherwise."""
    return offer.budget(BudgetRequest("keep" if offer.measured is None else "compute", share), seen, clamp=clamp)


def shares_of(text: str) -> tuple[float, ...]:
    """The budgets in a list such as 0.9,0.8; raises `ValueError` for anything else."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not a list of numbers such as 0.9,0.8, or auto") from None
    for value in found:
        if not 0 < value <= 1:
            raise ValueError(f"{value:g} is out of range: a share must be above 0 and at most 1")
    return found
