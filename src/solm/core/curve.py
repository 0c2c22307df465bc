"""`BudgetCurve`: what the budgets of a policy take and lose, measured; a file beside the policy."""

import math
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, model_validator

from solm.core.clock import StepClock
from solm.core.errors import counted

CURVE = "curve.json"
_TOLERANCE = 5e-3
"""Of a share: what steps of a reply may miss a budget by."""
HARMLESS = 0.01
"""Nats per token that nobody notices in a chat."""
COLUMNS = (
    "context",
    "budget",
    "speed",
    "ms per step",
    "loss, nats per token",
    "perplexity",
    "KV pages",
    "MLP channels",
)
"""Of `BudgetCurve.rows`."""


class CurvePoint(BaseModel, frozen=True, extra="ignore", ser_json_inf_nan="strings"):
    """A budget after `context` tokens. budget: share of the dense step's milliseconds; speed: dense over step.

    attention, mlp: shares realised. nats: loss per token above the dense model, with its 95 % interval low to high over
    texts, of which there were `texts`.
    """

    context: int
    budget: float = Field(gt=0, le=1)
    step_ms: float = Field(gt=0)
    speed: float = Field(gt=0)
    attention: float
    mlp: float
    nats: float
    low: float
    high: float
    texts: int = Field(ge=1)

    @property
    def perplexity(self) -> float:
        """As a factor over the dense model's."""
        return math.exp(self.nats)


class BudgetCurve(BaseModel, frozen=True, extra="ignore", ser_json_inf_nan="strings"):
    """The points of a policy. texts, tokens: of those of the first context that was compared.

    data: names of the held-out texts. clock: of the machine that budgets, speeds and milliseconds were measured on.
    here: that of the machine which they are of, where it is another; losses belong to the shares that points realise,
    on any machine.
    """

    format: int = Field(1, ge=1, le=1)
    clock: StepClock
    points: tuple[CurvePoint, ...] = Field(min_length=1)
    texts: int = Field(ge=1)
    tokens: int = Field(ge=1)
    data: str = ""
    here: StepClock | None = Field(None, exclude=True)

    @model_validator(mode="after")
    def _check(self) -> "BudgetCurve":
        places = [(point.context, point.budget) for point in self.points]
        if places != sorted(set(places)):
            raise ValueError("points must be ordered by context and budget, each given once")
        return self

    def on(self, clock: StepClock) -> "BudgetCurve | None":
        """The same points with the time that what they leave out takes on another machine; without those that save
        none there, None where none is left."""
        points = {}
        for point in self.points:
            kept, dense = np.array([point.attention, point.mlp, 1.0]), float(clock.dense_ms(point.context))
            step = float(clock.milliseconds(kept, point.context))
            budget = round(step / dense, 3)
            times = {"budget": budget, "step_ms": step, "speed": dense / step}
            if budget < 1:
                points[point.context, budget] = point.model_copy(update=times)
        ordered = tuple(points[place] for place in sorted(points))
        return self.model_copy(update={"points": ordered, "here": clock}) if ordered else None

    @property
    def contexts(self) -> list[int]:
        return sorted({point.context for point in self.points})

    @property
    def about(self) -> str:
        """What was measured where, in a sentence or two."""
        counts = {point.context: point.texts for point in self.points}
        measured = ", ".join(f"{counted(texts, 'text')} after {context:,} tokens" for context, texts in counts.items())
        where = "" if self.here is None else f"Times of {self.here.measured_on}. "
        return (
            f"{where}Measured on {self.clock.measured_on}, on {self.tokens // self.texts} tokens per text that no "
            f"training saw: {measured}. A budget is a share of the dense step's milliseconds."
        )

    def as_dict(self) -> dict[str, Any]:
        """The same for machines: ``budgets``, the points with what their loss is worth in perplexity, as a factor over
        the dense model's, and ``measured``, on which machine and text."""
        made = self.clock
        return {
            "budgets": [point.model_dump(mode="json") | {"perplexity": point.perplexity} for point in self.points],
            "measured": {
                "backend": made.backend, "threads": made.threads, "processor": made.processor,
                "times": (self.here or made).measured_on,
                "contexts": self.contexts, "texts": self.texts, "tokens": self.tokens,
            },
        }  # fmt: skip

    def rows(self) -> list[tuple[str, ...]]:
        """The points in words, by `COLUMNS`."""
        return [
            (
                f"{point.context:,}", f"{point.budget:.3f}", f"{point.speed:.2f} x", f"{point.step_ms:.2f}",
                f"{point.nats:.3f} [{point.low:.3f}, {point.high:.3f}]", f"{point.perplexity - 1:+.1%}",
                f"{point.attention:.2f}", f"{point.mlp:.2f}",
            )
            for point in self.points
        ]  # fmt: skip

    def markdown(self) -> list[str]:
        """The points as a chapter of a card."""
        rows = (f"| {' | '.join(row)} |" for row in self.rows())
        return [
            "## Budgets", "", f"{self.about} Numbers in brackets are 95 % intervals over texts.", "",
            f"| {' | '.join(COLUMNS)} |", "| ---: " * len(COLUMNS) + "|", *rows, "",
        ]  # fmt: skip

    def share_for_loss(self, nats: float, context: int) -> float:
        """The lowest share of the dense step's milliseconds that loses at most `nats` per token after `context` tokens,
        by the points of the nearest context measured.

        nats: above 0. Between points the loss is interpolated; it is taken to fall as the budget rises and to be 0 at
        1. Never below the lowest budget measured.
        """
        budgets, losses = self._falling(self.nearest(context))
        first = int((losses <= nats).argmax())  # the loss at 1 is 0
        if first == 0:
            return float(budgets[0])
        part = (losses[first - 1] - nats) / (losses[first - 1] - losses[first])
        return float(budgets[first - 1] + part * (budgets[first] - budgets[first - 1]))

    def opening(self) -> float:
        """The lowest share of the dense step's milliseconds that loses at most `HARMLESS` nats after every context."""
        return max(self.share_for_loss(HARMLESS, context) for context in self.contexts)

    def loss(self, share: float, context: int) -> tuple[float, bool]:
        """What `share` of the dense step's milliseconds loses in nats per token after `context` tokens, as
        `share_for_loss` reads the points; and whether that is all, as below the lowest budget measured it is more."""
        budgets, losses = self._falling(self.nearest(context))
        return float(np.interp(share, budgets, losses)), share >= budgets[0] - _TOLERANCE

    def nearest(self, context: int) -> int:
        """Of the contexts measured the nearest to `context`."""
        return min(self.contexts, key=lambda seen: abs(seen - context))

    def _falling(self, context: int) -> tuple[np.ndarray, np.ndarray]:
        """Budgets, rising to 1, and losses, falling to 0."""
        at = [point for point in self.points if point.context == context]
        budgets = [point.budget for point in at if point.budget < 1] + [1.0]
        losses = [max(point.nats, 0.0) for point in at if point.budget < 1] + [0.0]
        return np.array(budgets), np.maximum.accumulate(np.array(losses)[::-1])[::-1]


def spaced_budgets(floor: float, count: int = 5) -> tuple[float, ...]:
    """`count` shares between `floor` and 1, evenly spaced, both ends left out, rounded to thousandths.

    At the floor every step takes its lowest level, and at 1 its highest: there is nothing to decide.
    """
    steps = np.linspace(floor, 1, count + 2)[1:-1]
    return tuple(round(float(step), 3) for step in steps)
