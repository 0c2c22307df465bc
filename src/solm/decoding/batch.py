"""Continuous batching: rows of any length, policy and budget that join and leave between steps."""

from dataclasses import dataclass, field
from typing import Any

import torch

from solm.budget import Ledger
from solm.decoding.midpass import MidPass
from solm.decoding.passes import Turn
from solm.decoding.rows import SomeRows
from solm.decoding.session import Session
from solm.errors import SolmError
from solm.policies.observation import Observation, Policy
from solm.policies.prices import Allocator
from solm.policies.schedules import Random


@dataclass
class Seat:
    """One row's place in a batch: who decides for it, and within what budget.

    target: [3] float64 budget shares; it may be changed between steps and holds from then on. horizon: steps the
    budget is meant for.
    """

    policy: Policy | Allocator
    target: torch.Tensor
    horizon: int
    generator: torch.Generator | None = None
    steps: int = 0
    state: Any = None
    previous: int = 0
    early: torch.Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    asked: torch.Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    """What earlier targets allowed for the steps that were booked."""


@dataclass(frozen=True)
class Stepped:
    """One step of a batch: logits [N, V], actions [N], realised [N, 3], controllable [N]."""

    logits: torch.Tensor
    actions: list[int]
    realised: torch.Tensor
    controllable: torch.Tensor


class Batch:
    """Rows that step together. A row decides as it would alone: its ledger, horizon and draws are its own."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.seats: list[Seat] = []

    def join(self, session: Session, seat: Seat) -> None:
        """Add a session of one row, prefilled; it belongs to the batch from here on.

        Raises `SolmError` for a second policy that decides before another layer than the first.
        """
        if isinstance(seat.policy, Allocator):
            layers = {other.policy.layer for other in self.seats if isinstance(other.policy, Allocator)}
            if layers - {seat.policy.layer}:
                raise SolmError(f"policies of one batch must decide before the same layer, got {seat.policy.layer} too")
        seat.previous = seat.policy.space.dense_index
        if not isinstance(seat.policy, Allocator):
            seat.state = seat.policy.start(1, session.device)
        if self.session is None:
            self.session = session
        else:
            self.session.join(session)
        self.seats.append(seat)

    def leave(self, row: int) -> None:
        """Drop a row; the last one takes its place."""
        assert self.session is not None
        self.seats[row] = self.seats[-1]
        self.seats.pop()
        if self.seats:
            self.session.leave(row)
        else:
            self.session = None

    def step(self, tokens: torch.Tensor) -> Stepped:
        """Process one token per row, tokens [N]."""
        session, seats = self.session, self.seats
        assert session is not None
        targets = torch.stack([seat.target for seat in seats])
        # Targets may have changed on the way: what was booked is seen against what was allowed for it.
        shift = targets * session.ledger.steps[:, None] - torch.stack([seat.asked for seat in seats])
        seen = Ledger(session.ledger.spent + shift, session.ledger.steps)
        keep = torch.empty(len(seats), 3, dtype=torch.float64)
        taken: list[int] = [0] * len(seats)
        passes: list[tuple[torch.Tensor, MidPass, torch.Tensor]] = []
        for index in self._groups():
            policy, rows = seats[int(index[0])].policy, SomeRows(session, index, seen.rows(index))
            horizon = torch.tensor([seats[row].horizon for row in index.tolist()]).numpy()
            steps = torch.tensor([seats[row].steps for row in index.tolist()]).numpy()
            if isinstance(policy, Allocator):
                spent = torch.stack([seats[row].early for row in index.tolist()]) + shift[index]
                middle = MidPass(rows, policy, targets[index], horizon, Ledger(spent, rows.ledger.steps), steps)
                actions = middle.before(1)
                passes.append((index, middle, actions))
                actions = actions[:, 0]
            else:
                actions = self._decide(policy, index, rows, tokens, targets, steps, horizon)
            keep[index] = policy.space.table[actions]
            self._note(index, actions, taken)

        def choose(hidden: torch.Tensor) -> torch.Tensor:
            later = keep.clone()
            for index, middle, before in passes:
                actions = middle.decide(hidden[index.to(hidden.device)], before)[:, 0]
                later[index] = middle.policy.space.table[actions]
                self._note(index, actions, taken)
            return later[:, None]

        turn = Turn(passes[0][1].policy.layer, choose) if passes else None
        found = session.extend(tokens[:, None], keep[:, None], turn)
        for index, middle, _ in passes:
            early = middle.early.spent - shift[index]
            for place, row in enumerate(index.tolist()):
                seats[row].early = early[place]
        controllable = found.controllable[:, 0]
        for seat, target, booked, action in zip(seats, targets, controllable.tolist(), taken, strict=True):
            seat.steps, seat.previous = seat.steps + 1, action
            if booked:
                seat.asked = seat.asked + target
        return Stepped(found.logits[:, 0], taken, found.realised[:, 0], controllable)

    def _groups(self) -> list[torch.Tensor]:
        """Rows that can be decided together: one policy, neither draws nor a state of their own."""
        groups: dict[tuple[int, int], list[int]] = {}
        for row, seat in enumerate(self.seats):
            alone = isinstance(seat.policy, Random) or (
                seat.policy.reads_model and not isinstance(seat.policy, Allocator)
            )
            groups.setdefault((id(seat.policy), row if alone else -1), []).append(row)
        return [torch.tensor(rows) for rows in groups.values()]

    def _decide(
        self,
        policy: Policy,
        index: torch.Tensor,
        rows: SomeRows,
        tokens: torch.Tensor,
        targets: torch.Tensor,
        steps: Any,
        horizon: Any,
    ) -> torch.Tensor:
        session, seat = self.session, self.seats[int(index[0])]
        assert session is not None
        observation = Observation(
            session.hidden[index.to(session.hidden.device)] if policy.reads_model else None,
            session.embed(tokens[index]) if policy.reads_model else None,
            targets[index], rows.ledger, rows.levels(policy.space), steps, horizon, rows.controllable,
            torch.tensor([self.seats[row].previous for row in index.tolist()]),
        )  # fmt: skip
        actions, seat.state = policy.act(observation, seat.state, seat.generator)
        return torch.where(rows.controllable, actions, policy.space.dense_index)

    @staticmethod
    def _note(index: torch.Tensor, actions: torch.Tensor, taken: list[int]) -> None:
        for row, action in zip(index.tolist(), actions.tolist(), strict=True):
            taken[row] = action
