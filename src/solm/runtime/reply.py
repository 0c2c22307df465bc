"""A reply: its text, its tokens with what each cost, and what was spent on average."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from solm.core.actions import AXES, Action, ActionSpace
from solm.core.budget import Budgets, Spent, Terms, loss_terms
from solm.runtime.guess import Allowance

_UNFINISHED = "\ufffd"
_LONGEST = 16
"""Tokens after which a character counts as finished: one has four bytes at most, and a token has at least one."""


class TextStream:
    """The text of a growing list of tokens, piece by piece, without ever showing half a character.

    Only the last few tokens are decoded anew, so that a long reply costs no more per token than a short one (as
    text-generation-inference and vLLM do).

    skip_special_tokens: the text has none of them but `shown`.
    """

    def __init__(self, tokenizer: Any, skip_special_tokens: bool = False, shown: Collection[int] = ()):
        self.tokenizer, self.skip, self._always = tokenizer, skip_special_tokens, shown
        self.ids: list[int] = []
        self._context = self._shown = 0
        self._before = ""
        """The text of the tokens from `_context` to `_shown`, which is final."""

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is unfinished."""
        self.ids.append(token)
        return self._read(finished=False)

    def flush(self) -> str:
        """What is left at the end, unfinished characters as replacement characters."""
        return self._read(finished=True)

    def _read(self, finished: bool) -> str:
        now = self.whole(self.ids[self._context :])
        finished = finished or len(self.ids) - self._shown >= _LONGEST
        if not finished and (len(now) <= len(self._before) or now.endswith(_UNFINISHED)):
            return ""
        new, last = now[len(self._before) :], self._shown
        self._shown, self._before = len(self.ids), now
        if self._shown - self._context >= _LONGEST:
            self._context, self._before = last, self.whole(self.ids[last:])
        return new

    def whole(self, ids: list[int]) -> str:
        """The text of tokens, apart from those that were pushed."""
        if self.tokenizer is None or not ids:
            return ""
        place = next((place for place, token in enumerate(ids) if token in self._always), None)
        if place is not None:
            shown = str(self.tokenizer.decode(ids[place : place + 1]))
            return self.whole(ids[:place]) + shown + self.whole(ids[place + 1 :])
        return str(self.tokenizer.decode(ids, skip_special_tokens=self.skip))


def hidden_token(tokenizer: Any, mark: str) -> int | None:
    """The token that `mark` is, where text does not show it; None: it is text like any other."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    token: int | None = None if backend is None else backend.token_to_id(mark)
    return None if token is None or backend.decode([token], skip_special_tokens=True) else token


def overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a prefix of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)


@dataclass(frozen=True)
class Token:
    """One generated token and the step that processed the token before it.

    taken: its action. shares, on: [axes], what it realised, and whether it could be controlled. seen: keys that it saw.
    guessed: the source that had guessed it; None: nobody had. The first token of a reply comes from the dense prefill.
    """

    id: int
    text: str
    taken: Action
    shares: Sequence[float]
    on: Sequence[bool]
    seen: int
    budgets: Budgets = field(repr=False, compare=False)
    guessed: str | None = None

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
            "controllable": self.controllable, "guessed": self.guessed,
        }  # fmt: skip


@dataclass(frozen=True)
class Compute:
    """What was requested and what steps spent on average; for each axis over the steps that could be controlled on it.

    requested, realised: in the units of `solm.core.budget`. verified: the loss was measured, since every token was
    verified by a dense pass; else it is what the policy's curve predicts.
    """

    requested: Terms
    realised: Terms
    verified: bool = False

    @property
    def bytes(self) -> float:
        """Bytes read as a share of what dense steps read."""
        return self.realised["bytes"]


class Trace:
    """The tokens of a reply to `prompt` tokens, and the steps that processed all of them but the last.

    ids: the tokens. actions: of every step, its index in `space`; realised, controllable: of every step, its shares
    [axes], and whether it could be controlled. guesses: by source how many tokens were guessed, and how many of them
    were kept; kept: by its place in the reply, the source of every token that was. allowance: what it may lose by
    guesses; None: nothing. joules: energy that they and the prompt took; None: not told. Costs are computed where
    somebody reads them.
    """

    def __init__(self, prompt: int, space: ActionSpace):
        self.prompt, self.space = prompt, space
        self.ids: list[int] = []
        self.actions: list[int] = []
        self.realised: list[list[float]] = []
        self.controllable: list[list[bool]] = []
        self.guesses: dict[str, list[int]] = {}
        self.kept: dict[int, str] = {}
        self.allowance: Allowance | None = None
        self.joules: float | None = None

    @property
    def guessed(self) -> int:
        """Tokens that were guessed."""
        return sum(guessed for guessed, _ in self.guesses.values())

    @property
    def accepted(self) -> int:
        """Those of them that a dense pass chose, too, or that the reply was allowed to keep."""
        return len(self.kept)

    @property
    def per_pass(self) -> float:
        """Tokens that a pass gave on average."""
        return len(self.actions) / max(1, len(self.actions) - self.accepted)

    def guessing(self, source: str, count: int) -> None:
        """So many tokens were guessed."""
        if count:
            self.guesses.setdefault(source, [0, 0])[0] += count

    def accept(self, source: str) -> None:
        """The last token had been guessed."""
        self.guesses[source][1] += 1
        self.kept[len(self.ids) - 1] = source

    def stepped(self, action: int, realised: list[float], controllable: list[bool]) -> None:
        """A step took place."""
        self.actions.append(action)
        self.realised.append(realised)
        self.controllable.append(controllable)

    def token(self, place: int, text: str, budgets: Budgets) -> Token:
        """The token at `place`, whose text is `text`. budgets: of the policy that decided."""
        seen, step = self.prompt + place, place - 1
        if not place:
            dense, shares, on = self.space.actions[-1], [1.0] * len(AXES), [False] * len(AXES)
            return Token(self.ids[0], text, dense, shares, on, seen, budgets)
        taken = self.space.actions[self.actions[step]]
        shares, on = self.realised[step], self.controllable[step]
        return Token(self.ids[place], text, taken, shares, on, seen, budgets, self.kept.get(place))

    def tokens(self, tokenizer: Any, budgets: Budgets) -> list[Token]:
        """All tokens."""
        text = TextStream(tokenizer)
        return [self.token(place, text.push(token), budgets) for place, token in enumerate(self.ids)]

    def compute(self, budgets: Budgets, requested: Terms, first: int = 0, last: int | None = None) -> Compute:
        """What the steps from `first` to before `last` spent, by default all. A loss is told where one is among what
        was requested."""
        spent, steps = Spent(budgets), slice(first, last)
        if self.actions[steps]:
            seen = self.prompt + 1 + np.arange(len(self.actions))[steps]
            spent.add(np.array(self.realised[steps]), np.array(self.controllable[steps]), seen)
        realised = spent.terms(self.prompt + 1 + first, not requested.keys().isdisjoint(("loss", "loss_above")))
        if self.allowance is not None:
            realised |= loss_terms(self.allowance.average)
        return Compute(requested, realised, self.allowance is not None)


@dataclass(frozen=True)
class Reply:
    """A generated reply: its text without special tokens and thinking, what was requested and spent, and the steps
    behind it. reasoning: what a model that thinks before it answers has thought."""

    text: str
    compute: Compute
    trace: Trace = field(repr=False)
    tokenizer: Any = field(repr=False)
    budgets: Budgets = field(repr=False)
    reasoning: str = ""

    @cached_property
    def tokens(self) -> list[Token]:
        """Its tokens, each with what its step cost."""
        return self.trace.tokens(self.tokenizer, self.budgets)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: text, tokens with their actions, requested and realised compute."""
        return {
            "text": self.text,
            "reasoning": self.reasoning,
            "tokens": [token.as_dict() for token in self.tokens],
            "requested": self.compute.requested,
            "realised": self.compute.realised,
            "loss_verified": self.compute.verified,
            "guessed_tokens": self.trace.guessed,
            "accepted_tokens": self.trace.accepted,
            "guesses": {source: dict(zip(("guessed", "accepted"), counts, strict=True))
                        for source, counts in self.trace.guesses.items()},
            "tokens_per_pass": self.trace.per_pass,
            "energy_joules": self.trace.joules,
        }  # fmt: skip


def step_milliseconds(moments: list[float]) -> float | None:
    """The mean step between `moments`, seconds at which tokens were chosen; None for fewer than three.

    The first step is left out: it also takes over the prompt.
    """
    return None if len(moments) < 3 else 1000 * (moments[-1] - moments[1]) / (len(moments) - 2)
