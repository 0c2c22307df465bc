"""Continuous batching: rows of any length, policy and budget that join and leave between steps."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from solm.backends.budgets import ROW_STATE
from solm.backends.cpu.session import CpuSession
from solm.backends.midpass import MidPass, compiled
from solm.backends.passes import Turn
from solm.backends.rows import SomeRows
from solm.backends.torch.session import Session
from solm.core.actions import DENSE
from solm.core.budget import Ledger
from solm.core.errors import SolmError
from solm.policies.priced import PricedPolicy
from solm.policies.protocol import Observation, Policy
from solm.policies.schedules import Random

_DENSE = torch.tensor(DENSE, dtype=torch.float64)


@dataclass
class Seat:
    """Who decides for a row, and within what budget: target [3] float64 shares, meant for `horizon` steps."""

    policy: Policy | PricedPolicy
    target: torch.Tensor
    horizon: int
    generator: torch.Generator | None = None
    state: Any = None


@dataclass(frozen=True)
class Stepped:
    """One step of a batch: logits [N, V], actions [N], realised [N, 3], controllable [N]."""

    logits: torch.Tensor
    actions: torch.Tensor
    realised: torch.Tensor
    controllable: torch.Tensor


@dataclass
class _Books:
    """What the rows' decisions depend on besides the session: target, asked (what earlier targets allowed for the steps
    that were booked), early (what the layers before a policy's have spent) [N, 3]; horizon, steps, previous [N]."""

    target: torch.Tensor
    asked: torch.Tensor
    early: torch.Tensor
    horizon: torch.Tensor
    steps: torch.Tensor
    previous: torch.Tensor

    @classmethod
    def open(cls, seat: Seat) -> "_Books":
        nothing = torch.zeros(1, 3, dtype=torch.float64)
        previous = torch.tensor([seat.policy.space.dense_index])
        horizon, steps = torch.tensor([seat.horizon]), torch.zeros(1, dtype=torch.int64)
        return cls(seat.target[None].clone(), nothing, nothing.clone(), horizon, steps, previous)

    def join(self, other: "_Books") -> "_Books":
        return _Books(*(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    def rows(self, index: torch.Tensor) -> "_Books":
        return _Books(*(getattr(self, f.name)[index] for f in fields(self)))


class Batch:
    """Rows that step together. A row decides as it would alone: its ledger, horizon and draws are its own."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.seats: list[Seat] = []
        self._books: _Books | None = None
        self._groups: list[torch.Tensor] = []

    def join(self, session: Session, seat: Seat) -> None:
        """Add a session of one row, prefilled; it belongs to the batch from here on.

        Raises `SolmError` for a second policy that decides before another layer than the first.
        """
        if isinstance(seat.policy, PricedPolicy):
            layers = {other.policy.layer for other in self.seats if isinstance(other.policy, PricedPolicy)}
            if layers - {seat.policy.layer}:
                raise SolmError(f"policies of one batch must decide before the same layer, got {seat.policy.layer} too")
        else:
            seat.state = seat.policy.start(1, session.device)
        books = _Books.open(seat)
        if self.session is None or self._books is None:
            self.session, self._books = session, books
        else:
            self.session.join(session)
            self._books = self._books.join(books)
        self.seats.append(seat)
        self._regroup()

    def leave(self, row: int) -> None:
        """Drop a row; the last one takes its place."""
        assert self.session is not None
        assert self._books is not None
        self.seats[row] = self.seats[-1]
        self.seats.pop()
        if self.seats:
            self.session.leave(row)
            index = torch.arange(len(self.seats))
            if row < len(index):
                index[row] = len(index)
            self._books = self._books.rows(index)
        else:
            self.session = self._books = None
        self._regroup()

    def aim(self, target: torch.Tensor) -> None:
        """Budget shares [N, 3] that hold from now on; what was spent before is seen against what was allowed then."""
        assert self._books is not None
        self._books.target = target

    def step(self, tokens: torch.Tensor) -> Stepped:
        """Process one token per row, tokens [N]."""
        session, books = self.session, self._books
        assert session is not None
        assert books is not None
        shift = books.target * session.ledger.steps[:, None] - books.asked
        seen = Ledger(session.ledger.spent + shift, session.ledger.steps)
        keep = torch.empty(len(self.seats), 3, dtype=torch.float64)
        taken = torch.empty(len(self.seats), dtype=torch.int64)
        passes: list[tuple[torch.Tensor, MidPass, torch.Tensor]] = []
        lent: list[tuple[torch.Tensor, MidPass]] = []
        records = np.zeros(len(self.seats), ROW_STATE)
        for index in self._groups:
            policy, here = self.seats[int(index[0])].policy, books.rows(index)
            rows = SomeRows(session, index, seen.rows(index))
            if isinstance(policy, PricedPolicy):
                early = Ledger(here.early + shift[index], rows.ledger.steps)
                middle = MidPass(rows, policy, here.target, here.horizon.numpy(), early, here.steps.numpy())
                decider = compiled(session, policy)
                if decider is not None:
                    some = records[index.numpy()]
                    middle.lend(decider, some)
                    records[index.numpy()] = some
                    lent.append((index, middle))
                    keep[index] = _DENSE
                    continue
                before = middle.before(1)
                passes.append((index, middle, before))
                taken[index] = before[:, 0]
            else:
                taken[index] = self._decide(policy, index, rows, tokens, here)
            keep[index] = policy.space.table[taken[index]]

        def choose(hidden: torch.Tensor) -> torch.Tensor:
            later = keep.clone()
            for index, middle, before in passes:
                taken[index] = middle.decide(hidden[index.to(hidden.device)], before)[:, 0]
                later[index] = middle.policy.space.table[taken[index]]
            return later[:, None]

        if lent:
            assert isinstance(session, CpuSession)
            found, decided = session.decide(tokens[:, None], records, keep[:, None])
            for index, middle in lent:
                taken[index] = decided[index, 0]
                middle.take_back(records[index.numpy()], 1)
        else:
            turn = Turn(passes[0][1].policy.layer, choose) if passes else None
            found = session.extend(tokens[:, None], keep[:, None], turn)
        for index, middle in [*lent, *((index, middle) for index, middle, _ in passes)]:
            books.early[index] = middle.early.spent - shift[index]
        controllable = found.controllable[:, 0]
        books.steps, books.previous = books.steps + 1, taken
        books.asked = books.asked + books.target * controllable[:, None]
        return Stepped(found.logits[:, 0], taken, found.realised[:, 0], controllable)

    def _regroup(self) -> None:
        """Find the rows that can be decided together: one policy, neither draws nor a state of their own."""
        groups: dict[tuple[int, int], list[int]] = {}
        for row, seat in enumerate(self.seats):
            alone = isinstance(seat.policy, Random) or (
                seat.policy.reads_model and not isinstance(seat.policy, PricedPolicy)
            )
            groups.setdefault((id(seat.policy), row if alone else -1), []).append(row)
        self._groups = [torch.tensor(rows) for rows in groups.values()]

    def _decide(
        self, policy: Policy, index: torch.Tensor, rows: SomeRows, tokens: torch.Tensor, books: _Books
    ) -> torch.Tensor:
        session, seat = self.session, self.seats[int(index[0])]
        assert session is not None
        observation = Observation(
            session.hidden[index.to(session.hidden.device)] if policy.reads_model else None,
            session.embed(tokens[index]) if policy.reads_model else None,
            books.target, rows.ledger, rows.levels(policy.space), books.steps.numpy(), books.horizon.numpy(),
            rows.controllable, books.previous,
        )  # fmt: skip
        actions, seat.state = policy.act(observation, seat.state, seat.generator)
        return torch.where(rows.controllable, actions, policy.space.dense_index)
