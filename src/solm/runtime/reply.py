"""A reply: its text, its tokens with what each cost, and what was spent in all."""

from dataclasses import asdict, dataclass
from typing import Any

from solm.core.actions import AXES


@dataclass(frozen=True)
class Token:
    """One generated token and the action of the step that processed the token before it.

    realised: shares per axis. cost: bytes read by that step as a share of the dense step. The first token of a
    reply comes from the dense prefill.
    """

    id: int
    text: str
    action: str
    realised: dict[str, float]
    cost: float
    controllable: bool


@dataclass(frozen=True)
class Compute:
    """What was asked for and what the controllable steps spent on average.

    Both by axis, with ``net`` (the mean of the axes) and ``bytes`` (a share of what dense steps read). dense_steps:
    steps that ran dense before any could be controlled.
    """

    requested: dict[str, float]
    realised: dict[str, float]
    dense_steps: int = 0

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
    counted = [token for token in tokens if token.controllable]
    realised = {axis: _mean([token.realised[axis] for token in counted]) for axis in AXES}
    realised["net"] = sum(realised.values()) / 3
    realised["bytes"] = _mean([token.cost for token in counted])
    return Compute(requested, realised, len(tokens[1:]) - len(counted))


def step_milliseconds(moments: list[float]) -> float | None:
    """The mean step between `moments`, seconds at which tokens were chosen; None for fewer than three.

    The first step is left out: it also takes over the prompt.
    """
    return None if len(moments) < 3 else 1000 * (moments[-1] - moments[1]) / (len(moments) - 2)


def _mean(values: list[float]) -> float:
    """Mean, 1 (dense) where no step was controllable."""
    return sum(values) / len(values) if values else 1.0
