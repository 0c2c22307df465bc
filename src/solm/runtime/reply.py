"""A reply: its text, its tokens with what each cost, and what was spent on average."""

from dataclasses import asdict, dataclass
from typing import Any


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
    """What was requested and what steps spent on average; for each axis over the steps that could be controlled on it.

    requested, realised: by the keys of `solm.runtime.terms`. whole_attention: number of steps whose attention could not
    be controlled yet.
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
    """A generated reply: its text without special tokens, its tokens, and what was requested and spent."""

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


def step_milliseconds(moments: list[float]) -> float | None:
    """The mean step between `moments`, seconds at which tokens were chosen; None for fewer than three.

    The first step is left out: it also takes over the prompt.
    """
    return None if len(moments) < 3 else 1000 * (moments[-1] - moments[1]) / (len(moments) - 2)
