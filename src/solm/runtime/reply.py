"""A reply: its text, its tokens with what each cost, and what was spent on average."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from solm.core.actions import AXES, Action
from solm.core.budget import Budgets, Spent, Terms


@dataclass(frozen=True)
class Token:
    """One generated token and the step that processed the token before it.

    taken: its action. shares, on: [axes], what it realised, and whether it could be controlled. seen: keys that it saw.
    The first token of a reply comes from the dense prefill.
    """

    id: int
    text: str
    taken: Action
    shares: Sequence[float]
    on: Sequence[bool]
    seen: int
    budgets: Budgets = field(repr=False, compare=False)

    @property
    def action(self) -> str:
        """The action's name, such as ``k050-s060-q8``."""
        return self.taken.tag

    @property
    def realised(self) -> dict[str, float]:
        """Realised shares by axis."""
        return dict(zip(AXES, self.shares, strict=True))

    @property
    def controllable(self) -> dict[str, bool]:
        """By axis whether the step could be controlled."""
        return dict(zip(AXES, self.on, strict=True))

    @property
    def cost(self) -> float:
        """Bytes read by the step as a share of the dense step's."""
        return float(self.budgets.bytes(np.array(self.shares), self.seen))

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "id": self.id, "text": self.text, "action": self.action, "realised": self.realised, "cost": self.cost,
            "controllable": self.controllable,
        }  # fmt: skip


@dataclass(frozen=True)
class Compute:
    """What was requested and what steps spent on average; for each axis over the steps that could be controlled on it.

    requested, realised: in the units of `solm.core.budget`. whole_attention: number of steps whose attention could not
    be controlled yet.
    """

    requested: Terms
    realised: Terms
    whole_attention: int = 0

    @classmethod
    def of(cls, budgets: Budgets, tokens: Sequence[Token], prompt: int, requested: Terms) -> "Compute":
        """What a reply to `prompt` tokens spent. A loss is told where one is among what was requested."""
        steps, spent = tokens[1:], Spent(budgets)
        if steps:
            spent.add(
                np.array([token.shares for token in steps]), np.array([token.on for token in steps]),
                np.array([token.seen for token in steps]),
            )  # fmt: skip
        realised = spent.terms(prompt + 1, not requested.keys().isdisjoint(("loss", "loss_above")))
        return cls(requested, realised, spent.steps - int(spent.counted[AXES.index("attention")]))

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
            "tokens": [token.as_dict() for token in self.tokens],
            "requested": self.compute.requested,
            "realised": self.compute.realised,
        }


def step_milliseconds(moments: list[float]) -> float | None:
    """The mean step between `moments`, seconds at which tokens were chosen; None for fewer than three.

    The first step is left out: it also takes over the prompt.
    """
    return None if len(moments) < 3 else 1000 * (moments[-1] - moments[1]) / (len(moments) - 2)
