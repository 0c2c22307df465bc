"""A reply: its text, its tokens with what each cost, and what was spent in all."""

from dataclasses import asdict, dataclass
from typing import Any

from solm.core.actions import AXES


@dataclass(frozen=True)
class Token:
    """One generated token and the action of the step that processed the token before it.

    realised: shares per axis. controllable: whether the step could be controlled, per axis. cost: bytes read by that
    step as a share of the dense step. The first token of a reply comes from the dense prefill.
    """

    id: int
    text: str
    action: str
    realised: dict[str, float]
    cost: float
    controllable: dict[str, bool]


@dataclass(frozen=True)
class Compute:
    """What was asked for and what steps spent on average, on every axis those that could be controlled on it.

    Both by axis, with ``net`` (the mean of the axes) and ``bytes`` (a share of what dense steps read). whole_attention:
    number of steps whose attention could not be controlled yet.
    """

    requested: dict[str, float]
    realised: dict[str, float]
    whole_attention: int = 0

    @property
    def bytes(self) -> float:
        """Bytes read as a share of what dense steps read."""
        return self.realised["bytes"]


@dataclass(frozen=True)
class Reply:
    text: str
    tokens: list[Token]
    compute: Compute

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: text, tokens with their actions, requested and realised compute."""
        return {
            "text": self.text,
            "tokens": [asdict(token) for token in self.tokens],
            "requested": self.compute.requested,
            "realised": self.compute.realised,
        }


def compute(tokens: list[Token], requested: dict[str, float]) -> Compute:
    """What a reply's tokens spent, beside what was asked for."""
    steps = tokens[1:]
    realised = {axis: _mean([step.realised[axis] for step in steps if step.controllable[axis]]) for axis in AXES}
    realised["net"] = sum(realised.values()) / 3
    realised["bytes"] = _mean([step.cost for step in steps])
    return Compute(requested, realised, sum(not step.controllable["attention"] for step in steps))


def step_milliseconds(moments: list[float]) -> float | None:
    """The mean step between `moments`, seconds at which tokens were chosen; None for fewer than three.

    The first step is left out: it also takes over the prompt.
    """
    return None if len(moments) < 3 else 1000 * (moments[-1] - moments[1]) / (len(moments) - 2)


def _mean(values: list[float]) -> float:
    """Mean, 1 (dense) where nothing could be controlled."""
    return sum(values) / len(values) if values else 1.0
