"""The result file of an evaluation, the owner of its format."""

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field

SCHEMA_VERSION: Literal[3] = 3
"""Of result files."""
_PICKS = 1 << 22
"""Texts of all resamples that are drawn together."""


class Difference(BaseModel, extra="forbid", ser_json_inf_nan="strings"):
    """A mean difference, such as policy minus an arm in nats per token, with its paired 95 % interval."""

    value: float
    low: float
    high: float


def paired_difference(ours: np.ndarray, theirs: np.ndarray, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Mean of ours - theirs with its 95 % percentile interval from resampling texts.

    ours, theirs: [texts] mean nats per token of the same, equally long texts. One text has no spread to
    resample; its interval is the whole line.
    """
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    if len(difference) < 2:
        return Difference(value=float(difference.mean()), low=-np.inf, high=np.inf)
    random, size = np.random.default_rng(seed), len(difference)
    some = max(1, _PICKS // size)  # resamples at a time, of which thousands of texts would not fit into memory
    means = [
        difference[random.integers(size, size=(min(some, resamples - done), size))].mean(1)
        for done in range(0, resamples, some)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Difference(value=float(difference.mean()), low=float(low), high=float(high))


class Point(BaseModel, extra="forbid", ser_json_inf_nan="strings"):
    """One arm at one budget: a net keep, or where the settings' currency is ``time`` a share of the dense step's
    milliseconds. `realised` is net keep; `axes` holds (κ, ρ, b/16); `cost` is relative to dense; `step_ms` is the mean
    step by the timings that budgets were told by; `nats` and `perplexity` are per token, `low` and `high` the 95 %
    interval of `nats`. `divergence` is the mean KL per token, in nats, from the dense model's predictions to this
    arm's, and `divergence_difference` the policy's minus this arm's. Both are None in results of before they were
    measured, and where the dense logits of a text would take more than 1 GiB."""

    arm: str
    budget: float
    realised: float
    axes: dict[str, float]
    cost: dict[str, float]
    step_ms: float | None = None
    nats: float
    low: float
    high: float
    perplexity: float
    tokens: int
    difference: Difference | None = None
    divergence: float | None = None
    divergence_difference: Difference | None = None


class EvaluationResult(BaseModel, extra="ignore", ser_json_inf_nan="strings"):
    """What an evaluation measured, and what is needed to repeat it. Fields of older files that are not here are left
    out."""

    kind: Literal["evaluation"] = "evaluation"
    schema_version: Literal[3] = SCHEMA_VERSION
    command: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    data_fingerprint: str
    points: list[Point]
    policy: dict[str, Any] = Field(default_factory=dict)

    @property
    def currency(self) -> str:
        """What budgets are, in words."""
        return "share of the dense step's time" if self.settings.get("currency") == "time" else "net keep"

    def spent(self, point: Point) -> float:
        """What a point spent, in the currency of the budgets; net keep where a file names no milliseconds."""
        dense = self.points[0]
        if self.settings.get("currency") != "time" or point.step_ms is None or not dense.step_ms:
            return point.realised
        return point.step_ms / dense.step_ms

    def arm(self, name: str, budget: float) -> Point | None:
        return next((point for point in self.points if point.arm == name and point.budget == budget), None)


def shares_of(texts: int, sources: int) -> list[int]:
    """How many of `texts` come from each of `sources`: as many, within one."""
    return [(texts + sources - 1 - index) // sources for index in range(sources)]
