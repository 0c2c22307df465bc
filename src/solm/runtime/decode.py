"""The decode loop: rows that share the passes over the weights, each with its own policy, budget and sampler."""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from solm.backends.results import Result
from solm.backends.session import AnyPolicy, Session
from solm.core.actions import AXES, Action
from solm.core.arrays import Array
from solm.core.budget import Budget
from solm.policies.priced import PricedPolicy
from solm.policies.schedules import Dense, Random, Static
from solm.runtime.controlled import ControlledModel
from solm.runtime.reply import Token
from solm.runtime.sampling import Sampler
from solm.runtime.text import TextStream

StepTaken = tuple[Action, list[float], list[bool]]
"""Action, realised shares [axes], and whether the step could be controlled on each axis [axes]."""


class Draft:
    """The tokens of a reply in the making, each with what its step cost.

    prompt: tokens before the reply. policy: who decides its steps. skip_special_tokens, shown: as of `TextStream`.
    """

    def __init__(
        self,
        lm: ControlledModel,
        sampler: Sampler,
        prompt: int,
        policy: AnyPolicy,
        skip_special_tokens: bool = False,
        shown: Collection[int] = (),
    ):
        self.sampler = sampler
        self.tokens: list[Token] = []
        self.possible: Array = np.zeros(0, np.float32)
        """The logits [V] that the last token was chosen by: the model's, but for what a grammar forbids."""
        self.text = TextStream(lm.tokenizer, skip_special_tokens, shown)
        self._prompt, self._policy, self._budgets = prompt, policy, lm.budgets(policy)
        self._first: StepTaken = (policy.space.actions[-1], [1.0] * len(AXES), [False] * len(AXES))

    def control(self, session: Session, target: np.ndarray, horizon: int) -> None:
        """Put a session of one row, whose prompt is read, under the policy, within target [1, 3] shares."""
        policy, generator = self._policy, None
        if isinstance(policy, Random):
            policy = Random(policy.space, self.sampler.seed)
        elif not isinstance(policy, Dense | Static | PricedPolicy):
            generator = self.sampler.generator
        session.control(policy, target, horizon, generator)

    def add(self, logits: Array, step: StepTaken | None = None) -> Token:
        """Choose the next token from logits [V]. step: the one that gave them, None: the prefill."""
        action, realised, controllable = step or self._first
        self.possible = self.sampler.possible(logits)
        chosen = self.sampler.choose(self.possible)
        text, seen = self.text.push(chosen), self._prompt + len(self.tokens)
        self.tokens.append(Token(chosen, text, action, realised, controllable, seen, self._budgets))
        return self.tokens[-1]


@dataclass
class Row:
    """A prompt and how its reply comes about.

    ids: [1, C] int64. longest: tokens that the reply may have, over which the budget is an average. ended: called
    after every token, whether it was the last. session: has read the first tokens of ids, at least one less than all.
    """

    ids: Array
    policy: AnyPolicy
    budget: Budget
    longest: int
    draft: Draft
    ended: Callable[[Draft], bool]
    session: Session | None = None


def decode(lm: ControlledModel, rows: Sequence[Row], batch_size: int) -> Iterator[tuple[int, Token]]:
    """The tokens of all rows as they come, each with the number of its row.

    At most `batch_size` rows decode together; another one's prompt is read when one has ended.
    """
    waiting, active = deque(range(len(rows))), list[int]()
    batch: Session | None = None
    while waiting or active:
        while waiting and len(active) < batch_size:
            number = waiting.popleft()
            row = rows[number]
            session = row.session or lm.session(capacity=row.ids.shape[1] + row.longest)
            logits = session.prefill(row.ids[:, session.length(0) if session.rows else 0 :])
            row.draft.control(session, row.budget.array(1), row.longest)
            yield number, row.draft.add(logits[0])
            if row.ended(row.draft):
                continue
            if batch is None:
                batch = session
            else:
                batch.join(session)
            active.append(number)
        if batch is None:  # every reply ended with its first token
            continue
        drafts = [rows[number].draft for number in active]
        found = batch.step(
            np.array([draft.tokens[-1].id for draft in drafts]),
            exact_largest=np.array([draft.sampler.largest for draft in drafts]),
        )
        for place, step in enumerate(steps(found, [rows[number].policy for number in active])):
            yield active[place], drafts[place].add(found.logits[place, 0], step)
        for place in reversed(range(len(active))):
            if rows[active[place]].ended(drafts[place]):
                active[place] = active[-1]
                active.pop()
                if active:
                    batch.leave(place)
        batch = batch if active else None


def steps(found: Result, policies: Sequence[AnyPolicy]) -> list[StepTaken]:
    """What a step of N rows under N policies was, row by row."""
    assert found.actions is not None
    parts = zip(policies, found.actions.tolist(), found.realised.tolist(), found.controllable.tolist(), strict=True)
    return [(policy.space.actions[actions[0]], shares[0], could[0]) for policy, actions, shares, could in parts]
