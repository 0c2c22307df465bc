"""Driving a session with a policy that decides in mid-pass: the layers before its own follow the static schedule."""

import torch

from solm.budget import Ledger
from solm.decoding.session import Scored, Session, Turn, axis_levels
from solm.decoding.unroll import unroll
from solm.policies.observation import Observation
from solm.policies.prices import Allocator
from solm.policies.schedules import Static


class MidPassDriver:
    """Any number of known tokens a call, in one pass: no decision depends on what an earlier one did to the model.

    target: [N, 3] float64 budget shares; horizon: steps the budget is meant for.
    """

    def __init__(self, session: Session, policy: Allocator, target: torch.Tensor, horizon: int):
        self.session, self.policy, self.target, self.horizon = session, policy, target, horizon
        self.static = Static(policy.space)
        self.early = Ledger.empty(session.rows)
        """What the layers before the policy's spent, as if they were the whole model."""
        self.steps = 0

    def step(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Process tokens [N]: logits of the next [N, V] and the actions taken [N]."""
        turn, before, actions = self._turn(1)
        logits = self.session.step(tokens, before[:, 0], turn)
        return logits, actions[0][:, 0]

    def score(self, tokens: torch.Tensor) -> tuple[Scored, torch.Tensor]:
        """Process tokens[:, :T] of [N, T+1]: what `Session.score` returns, and the actions taken [N, T]."""
        turn, before, actions = self._turn(tokens.shape[1] - 1)
        return self.session.score(tokens, before, turn), actions[0]

    def _turn(self, count: int) -> tuple[Turn, torch.Tensor, list[torch.Tensor]]:
        """The decision over the next `count` steps, what the layers before it do [N, count, 3], and a list that will
        hold the actions once the pass has run."""
        session, space = self.session, self.policy.space
        schedule = unroll(session, self.static, count, self.target, ledger=self.early)
        self.early, before = schedule.ledger, schedule.actions
        taken: list[torch.Tensor] = []

        def choose(hidden: torch.Tensor) -> torch.Tensor:
            taken.append(self._decide(hidden, before))
            return space.table[taken[0]]

        return Turn(self.policy.layer, choose), space.table[before], taken

    def _decide(self, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Actions [N, Q] for residual streams [N, Q, H] after actions `before` [N, Q]; pure bookkeeping but for the
        network's one call."""
        session, policy, space = self.session, self.policy, self.policy.space
        layers = session.control.shapes.layers
        gains = policy.gains(hidden, space.table[before])
        kv_length, ledger = session.kv_length, session.ledger
        rows, previous = torch.arange(session.rows), torch.full((session.rows,), space.dense_index)
        early = torch.unravel_index(before, space.shape)
        taken = []
        for step in range(before.shape[1]):
            own = axis_levels(space, kv_length, session.semantics, session.control)
            controllable = kv_length > session.semantics.always_read
            spent = [levels[rows, index[:, step]] for levels, index in zip(own, early, strict=True)]
            mixed = [_blend(policy.layer, layers, b[:, None], levels) for b, levels in zip(spent, own, strict=True)]
            low, high = (torch.stack([levels[:, end] for levels in own], 1) for end in (0, -1))
            later = tuple(_blend(policy.layer, layers, self.target, bound) for bound in (low, high))
            seen = Observation(
                None, None, self.target, ledger, (mixed[0], mixed[1], mixed[2]), self.steps + step, self.horizon,
                controllable, previous, (later[0], later[1]),
            )  # fmt: skip
            now = (gains[0][:, step], gains[1][:, step], gains[2][:, step])
            actions = torch.where(controllable, policy.allocate(now, seen), space.dense_index)
            chosen = torch.unravel_index(actions, space.shape)
            realised = torch.stack([axis[rows, index] for axis, index in zip(mixed, chosen, strict=True)], 1)
            ledger, kv_length, previous = ledger.book(realised, controllable), kv_length + 1, actions
            taken.append(actions)
        self.steps += before.shape[1]
        return torch.stack(taken, 1)


def _blend(layer: int, layers: int, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The mean share over all layers, `before` up to layer `layer` and `after` from it on."""
    return (layer * before + (layers - layer) * after) / layers
