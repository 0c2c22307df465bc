"""The result files of evaluations, tasks, studies and benchmarks. The owner of their formats."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from solm.core.curve import TextFacts
from solm.core.provenance import command_line, environment

SCHEMA_VERSION: Literal[3] = 3
"""Of all kinds."""


class Difference(BaseModel):
    """Policy minus this arm, with a paired 95 % interval."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    value: float
    low: float
    high: float


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


class Trials(BaseModel):
    """Nats per token of every whole-set random trial at one budget."""

    model_config = ConfigDict(extra="forbid")

    budget: float
    nats: list[float]


class Use(BaseModel):
    """How many of a group of steps took each level: per axis of the space, by rising level."""

    model_config = ConfigDict(extra="forbid")

    group: str
    counts: dict[str, list[int]]


class ActionUse(BaseModel):
    """What the policy did at one budget, by the step's position after the context and by the class of its token."""

    model_config = ConfigDict(extra="forbid")

    budget: float
    positions: list[Use]
    classes: list[Use]


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
    """Everything an evaluation found, and what is needed to repeat it."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

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
    trials: list[Trials] = Field(default_factory=list)
    use: list[ActionUse] = Field(default_factory=list)
    examples: list[Example] = Field(default_factory=list)

    @property
    def currency(self) -> str:
        """What budgets are, in words."""
        return _in_words(self.settings)

    def spent(self, point: Point) -> float:
        """What a point spent, in the currency of the budgets; net keep where a file names no milliseconds."""
        dense = self.points[0]
        if self.settings.get("currency") != "time" or point.step_ms is None or not dense.step_ms:
            return point.realised
        return point.step_ms / dense.step_ms

    def kept_budgets(self) -> list[tuple[float, float]]:
        """By budget of the policy: what was asked for, and what was spent."""
        return [(point.budget, self.spent(point)) for point in self.points if point.arm == "policy"]

    def arm(self, name: str, budget: float) -> Point | None:
        return next((point for point in self.points if point.arm == name and point.budget == budget), None)

    def static(self, budget: float) -> Point | None:
        """The arm that the policy's gain is told over: allocated, or without an allocation uniform."""
        return self.arm("allocated", budget) or self.arm("uniform", budget)


class TaskPoint(BaseModel):
    """One arm on one task at one budget.

    scores: mean per metric: ``acc``, ``acc_norm`` (by length; where the task has it) and ``margin``, log-likelihood of
    the right answer above the best wrong one in nats (of the target itself where there is no choice). differences:
    policy minus this arm per metric, and at the policy's own points policy minus dense, paired over questions, with
    95 % intervals; positive: the policy is better.
    requested, realised: shares per axis and net, over the steps that could be controlled; with step timings also time,
    the share of the dense step's milliseconds, and ms.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    task: str
    arm: str
    budget: float
    questions: int
    scores: dict[str, float]
    requested: dict[str, float]
    realised: dict[str, float]
    differences: dict[str, Difference] = Field(default_factory=dict)


class TaskResult(BaseModel):
    """Everything a task evaluation found, and what is needed to repeat it."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    kind: Literal["tasks"] = "tasks"
    schema_version: Literal[3] = SCHEMA_VERSION
    command: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    data_fingerprint: str = ""
    points: list[TaskPoint]
    policy: dict[str, Any] = Field(default_factory=dict)

    @property
    def currency(self) -> str:
        """What budgets are, in words."""
        return _in_words(self.settings)

    def kept_budgets(self) -> list[tuple[float, float]]:
        """By task and budget of the policy: what was asked for, and what was spent, where it is known."""
        key = "time" if self.settings.get("currency") == "time" else "net"
        policy = [point for point in self.points if point.arm == "policy" and key in point.realised]
        return [(point.budget, point.realised[key]) for point in policy]


def _in_words(settings: dict[str, Any]) -> str:
    return "share of the dense step's time" if settings.get("currency") == "time" else "net keep"


class Record(BaseModel):
    """What a study or a benchmark found, and what is needed to repeat it. `results` has a form of its own by kind."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    kind: str
    schema_version: Literal[3] = SCHEMA_VERSION
    command: str
    environment: dict[str, Any]
    settings: dict[str, Any]
    results: dict[str, Any]


def record(kind: str, settings: dict[str, Any], results: dict[str, Any]) -> Record:
    """A record of the command being run, on this machine."""
    return Record(kind=kind, command=command_line(), environment=environment(), settings=settings, results=results)
