"""The result file of an evaluation, the owner of its format, and what it says of the texts."""

from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from solm.core.curve import BudgetCurve, TextFacts
from solm.evaluation.texts import TokenStream
from solm.runtime.language_model import LanguageModel

SCHEMA_VERSION: Literal[3] = 3
"""Of result files."""
_PICKS = 1 << 22
"""Texts of all resamples that are drawn together."""
_ALIKE = 0.8
"""Characters per token, as a share of the lowest that a policy was measured on, below which text is another language.

Measured with SmolLM2's tokenizer: the lowest of eight kinds of English prose has 0.83 of the highest, French 0.72 of
the lowest, German 0.61, Russian 0.33."""


class Difference(BaseModel):
    """A mean difference, such as policy minus an arm in nats per token, with its paired 95 % interval."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

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


class Point(BaseModel):
    """One arm at one budget: a net keep, or where the settings' currency is ``time`` a share of the dense step's
    milliseconds. `realised` is net keep; `axes` holds (κ, ρ, b/16); `cost` is relative to dense; `step_ms` is the mean
    step by the timings that budgets were told by; `nats` and `perplexity` are per token, `low` and `high` the 95 %
    interval of `nats`. `divergence` is the mean KL per token, in nats, from the dense model's predictions to this
    arm's, and `divergence_difference` the policy's minus this arm's. Both are None in results of before they were
    measured, and where the dense logits of a text would take more than 1 GiB."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

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


class ExampleToken(BaseModel):
    """A token and the step that processed it: its action, its cost in bytes as a share of dense, and the nats that the
    token after it lost."""

    model_config = ConfigDict(extra="forbid")

    text: str
    action: str
    cost: float
    nats: float


class Example(BaseModel):
    """One text under the policy at one budget."""

    model_config = ConfigDict(extra="forbid")

    budget: float
    tokens: list[ExampleToken]


class EvaluationResult(BaseModel):
    """What an evaluation measured, and what is needed to repeat it. Fields of older files that are not here are left
    out."""

    model_config = ConfigDict(extra="ignore", ser_json_inf_nan="strings")

    kind: Literal["evaluation"] = "evaluation"
    schema_version: Literal[3] = SCHEMA_VERSION
    command: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    data_fingerprint: str
    sources: list[TextFacts] = Field(default_factory=list)
    """What the dense model makes of each source."""
    points: list[Point]
    policy: dict[str, Any] = Field(default_factory=dict)
    examples: list[Example] = Field(default_factory=list)

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


def text_facts(
    lm: LanguageModel, streams: list[TokenStream], windows: torch.Tensor, nats: np.ndarray
) -> list[TextFacts]:
    """The sources of windows [texts, length] that lose nats [texts] per token under the dense model; none for a model
    without a tokenizer."""
    if lm.tokenizer is None:
        return []
    found, counts = [], shares_of(len(windows), len(streams))
    for stream, some, lost in zip(streams, windows.split(counts), torch.from_numpy(nats).split(counts), strict=True):
        if len(some):
            said = sum(len(lm.tokenizer.decode(row.tolist())) for row in some)
            characters = max(said, 1) / some.numel()
            found.append(TextFacts(name=stream.name, nats=float(lost.mean()), characters_per_token=characters))
    return found


def unlike(result: EvaluationResult, curve: BudgetCurve) -> str | None:
    """What to say where a source is unlike all text that the policy's curve was measured on, such as one in another
    language. None where there is no such source.

    It shows in the characters per token. The dense model's loss does not tell: measured on the same messages in nine
    languages, a token of a language that the tokenizer cuts into pieces is no harder to foresee than one of English.
    """
    if not curve.sources:
        return None
    known = [source.characters_per_token for source in curve.sources]
    low, high = _ALIKE * min(known), max(known) / _ALIKE
    other = [source for source in result.sources if not low <= source.characters_per_token <= high]
    if not other:
        return None
    which = ", ".join(f"{source.name} has {source.characters_per_token:.1f}" for source in other)
    return (
        f"{which} characters per token, the policy was measured on text of {min(known):.1f} to {max(known):.1f}: "
        "another language, perhaps, on which it may lose more than its curve says"
    )
