"""Driving a session with a policy that decides in mid-pass: the layers before its own follow the static schedule."""

import numpy as np
import torch

from solm.backends.budgets import ROW_STATE
from solm.backends.cpu.decider import Decider
from solm.backends.cpu.session import CpuSession
from solm.backends.passes import Extended, Turn
from solm.backends.rows import Rows
from solm.backends.torch.plan import axis_levels
from solm.backends.torch.session import Session
from solm.core.budget import Ledger
from solm.policies.priced import PricedPolicy
from solm.policies.protocol import Count, Observation
from solm.policies.schedules import Static
from solm.policies.unroll import unroll
from solm.policies.value_policy import ValuePolicy


class MidPass:
    """The decisions of some rows over known tokens, in one pass: none depends on what an earlier one did to the model.

    target: [N, 3] float64 budget shares; horizon: steps the budget is meant for, steps: those taken, of all rows or of
    each. early: what the layers before the policy's have spent so far.
    """

    def __init__(
        self, rows: Rows, policy: PricedPolicy, target: torch.Tensor, horizon: Count, early: Ledger, steps: Count = 0
    ):
        self.rows, self.policy, self.target, self.horizon, self.steps = rows, policy, target, horizon, steps
        self.early = early
        """What the layers before the policy's spent, as if they were the whole model."""

    def before(self, count: int) -> torch.Tensor:
        """Actions [N, count] of the layers before the policy's over the next steps."""
        schedule = unroll(self.rows, Static(self.policy.space), count, self.target, ledger=self.early)
        self.early = schedule.ledger
        return schedule.actions

    def decide(self, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Actions [N, Q] for residual streams [N, Q, H] after actions `before` [N, Q]; pure bookkeeping but for the
        network's one call."""
        session, policy, space = self.rows, self.policy, self.policy.space

        layers = session.control.shapes.layers
        gains = policy.gains(hidden, space.table[before])
        ledger, rows = session.ledger, torch.arange(session.rows)
        kv_length = session.kv_length[:, None] + torch.arange(before.shape[1])
        controllable = kv_length > session.sparsity.always_read
        own = axis_levels(space, kv_length, session.sparsity, session.control.shapes)
        begun = axis_levels(space, kv_length, session.sparsity, session.control.shapes, before=policy.layer)
        rest = [whole - first for whole, first in zip(own, begun, strict=True)]
        early = space.level_table[before].split(1, -1)
        mixed = [first.gather(-1, index) + after for first, index, after in zip(begun, early, rest, strict=True)]
        ahead = torch.stack(
            [_on_average(*axis, policy.layer / layers) for axis in zip(self.target.unbind(1), own, begun, strict=True)],
            -1,
        )
        later = [ahead + torch.stack([levels[..., end] for levels in rest], -1) for end in (0, -1)]
        previous = torch.full((session.rows,), space.dense_index)
        taken = []
        for step in range(before.shape[1]):
            seen = Observation(
                None, None, self.target, ledger, (mixed[0][:, step], mixed[1][:, step], mixed[2][:, step]),
                self.steps + step, self.horizon, controllable[:, step], previous,
                (later[0][:, step], later[1][:, step]),
            )  # fmt: skip
            now = (gains[0][:, step], gains[1][:, step], gains[2][:, step])
            actions = torch.where(seen.controllable, policy.allocate(now, seen), space.dense_index)
            chosen = space.level_table[actions]
            realised = torch.stack([axis[rows, chosen[:, index]] for index, axis in enumerate(seen.levels)], 1)
            ledger, previous = ledger.book(realised, seen.controllable), actions
            taken.append(actions)
        self.steps = self.steps + before.shape[1]
        return torch.stack(taken, 1)

    def lend(self, decider: Decider, rows: np.ndarray) -> None:
        """Write the books into records of dtype `ROW_STATE` [N], for the engine to decide by."""
        ledger = self.rows.ledger
        rows["decider"], rows["target"], rows["early"] = decider.address, self.target, self.early.spent
        rows["spent"], rows["booked"] = ledger.spent, ledger.steps
        rows["horizon"], rows["taken"] = self.horizon, self.steps

    def take_back(self, rows: np.ndarray, count: int) -> None:
        """Go on from what the engine booked over `count` steps."""
        self.early = Ledger(torch.from_numpy(rows["early"].copy()), torch.from_numpy(rows["booked"].copy()))
        self.steps = self.steps + count


def compiled(session: Rows, policy: object) -> Decider | None:
    """The policy in the engine's terms, where the session steps on the engine and the engine can decide by it."""
    return policy.compiled if isinstance(session, CpuSession) and isinstance(policy, ValuePolicy) else None


class MidPassDriver:
    """A session driven by such decisions, any number of known tokens a call.

    target: [N, 3] float64 budget shares; horizon: steps the budget is meant for. early: what the layers before the
    policy's have spent so far.
    """

    def __init__(
        self, session: Session, policy: PricedPolicy, target: torch.Tensor, horizon: int, early: Ledger | None = None
    ):
        self.session, self.policy = session, policy
        early = Ledger.empty(session.rows) if early is None else early
        self._decisions = MidPass(session, policy, target, horizon, early)
        # The books as the engine goes on with them, how many steps it took since, and the session's mark after them.
        self._decider = compiled(session, policy)
        self._lent: np.ndarray = np.zeros(0, ROW_STATE)
        self._taken, self._mark = 0, -1

    @property
    def decisions(self) -> MidPass:
        if self._taken:
            self._decisions.take_back(self._lent, self._taken)
            self._taken, self._mark = 0, -1
        return self._decisions

    def step(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Process tokens [N]: logits of the next [N, V] and the actions taken [N]."""
        session, decider = self.session, self._decider
        if decider is None:
            found, actions = self.extend(tokens[:, None])
            return found.logits[:, 0], actions[:, 0]
        assert isinstance(session, CpuSession)
        if self._mark != session.mark:  # somebody else has stepped or booked
            self._lend(decider)
        logits, actions = session.decide_step(tokens, self._lent)
        self._taken, self._mark = self._taken + 1, session.mark
        return logits, actions

    def _lend(self, decider: Decider) -> None:
        decisions = self.decisions
        self._lent = np.zeros(self.session.rows, ROW_STATE)
        decisions.lend(decider, self._lent)

    def extend(self, tokens: torch.Tensor) -> tuple[Extended, torch.Tensor]:
        """Process known tokens [N, Q]; also the actions taken [N, Q]."""
        decider = self._decider
        if decider is not None:
            assert isinstance(self.session, CpuSession)
            self._lend(decider)
            found, actions = self.session.decide(tokens, self._lent)
            self._taken = tokens.shape[1]
            return found, actions
        table, before = self.policy.space.table, self.decisions.before(tokens.shape[1])
        taken: list[torch.Tensor] = []

        def choose(hidden: torch.Tensor) -> torch.Tensor:
            taken.append(self.decisions.decide(hidden, before))
            return table[taken[0]]

        found = self.session.extend(tokens, table[before], Turn(self.policy.layer, choose))
        return found, taken[0]


def _on_average(target: torch.Tensor, whole: torch.Tensor, first: torch.Tensor, part: float) -> torch.Tensor:
    """What the first layers, this `part` of all, contribute [N, Q] on a schedule that realises `target` [N] on average;
    whole, first [N, Q, levels]: what levels realise, and what these layers contribute to it."""
    more = first - part * whole  # than their number says
    goal = target[:, None, None]
    upper = (whole <= goal).sum(-1, keepdim=True).clamp(min(1, whole.shape[-1] - 1), whole.shape[-1] - 1)
    lower = (upper - 1).clamp(min=0)
    low, high = whole.gather(-1, lower), whole.gather(-1, upper)
    place = ((goal - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    mixed = more.gather(-1, lower) + place * (more.gather(-1, upper) - more.gather(-1, lower))
    return (part * goal + mixed)[..., 0]
