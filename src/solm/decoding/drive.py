"""Driving a session with a policy: the loop behind rollouts, evaluation and generation."""

from dataclasses import dataclass
from typing import Any

import torch

from solm.decoding.midpass import MidPassDriver
from solm.decoding.session import Session, log_probabilities
from solm.decoding.unroll import Schedule, unroll
from solm.policies.learned import features
from solm.policies.network import Features
from solm.policies.observation import Observation, Policy
from solm.policies.prices import Allocator


class Driver:
    """A policy's view of one session: it observes, decides, and remembers what it decided.

    target: [N, 3] float64 budget shares; horizon: steps the budget is meant for.
    """

    def __init__(
        self,
        session: Session,
        policy: Policy,
        target: torch.Tensor,
        horizon: int,
        generator: torch.Generator | None = None,
    ):
        self.session, self.policy, self.target, self.horizon = session, policy, target, horizon
        self.generator = generator
        self.state: Any = policy.start(session.rows, session.device)
        self.previous = torch.full((session.rows,), policy.space.dense_index)
        self.steps = 0
        self.table = policy.space.table

    def observe(self, tokens: torch.Tensor) -> Observation:
        """What the policy sees before `tokens` [N] are processed."""
        session = self.session
        return Observation(
            hidden=session.hidden if self.policy.reads_model else None,
            embedding=session.embed(tokens) if self.policy.reads_model else None,
            target=self.target,
            ledger=session.ledger,
            levels=session.levels(self.policy.space),
            step=self.steps,
            horizon=self.horizon,
            controllable=session.controllable,
            previous=self.previous,
        )

    def decide(self, observation: Observation) -> torch.Tensor:
        """Action indices [N]; dense where the step cannot be controlled."""
        actions, self.state = self.policy.act(observation, self.state, self.generator)
        self.previous = torch.where(observation.controllable, actions, self.policy.space.dense_index)
        self.steps += 1
        return self.previous

    def step(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Decide, then process tokens [N]: logits of the next [N, V] and the actions taken [N]."""
        actions = self.decide(self.observe(tokens))
        return self.session.step(tokens, self.table[actions]), actions


def drive(
    session: Session,
    policy: Policy | Allocator,
    target: torch.Tensor,
    horizon: int,
    generator: torch.Generator | None = None,
) -> Driver | MidPassDriver:
    """What steps `session` under `policy`."""
    if isinstance(policy, Allocator):
        return MidPassDriver(session, policy, target, horizon)
    return Driver(session, policy, target, horizon, generator)


@dataclass(frozen=True)
class Episode:
    """A controlled run over known tokens: actions, log-probabilities, controllable [N, T]; realised [N, T, 3].

    features: what the policy's network saw, where it was asked for.
    """

    actions: torch.Tensor
    log_probabilities: torch.Tensor
    realised: torch.Tensor
    controllable: torch.Tensor
    features: Features | None = None


def score_schedule(session: Session, policy: Policy, tokens: torch.Tensor, schedule: Schedule, record: bool) -> Episode:
    """Run a known schedule over tokens [N, T+1] in one pass."""
    before = session.hidden
    scored = session.score(tokens, policy.space.table[schedule.actions])
    seen = None
    if record:
        hidden = torch.cat([before[:, None], scored.hidden[:, :-1]], 1)
        told = (part.to(hidden.device) for part in (schedule.scalars, schedule.previous, schedule.prior))
        seen = Features(hidden, session.embed(tokens[:, :-1]), *told)
    return Episode(schedule.actions, scored.log_probabilities, scored.realised, scored.controllable, seen)


def teacher_forced(
    session: Session,
    policy: Policy | Allocator,
    tokens: torch.Tensor,
    target: torch.Tensor,
    generator: torch.Generator | None = None,
    record: bool = False,
) -> Episode:
    """Run a policy over tokens [N, T+1] whose path is fixed; in one pass unless it reads the previous step's state.

    record: keep the features that a policy's network sees.
    """
    steps = tokens.shape[1] - 1
    if isinstance(policy, Allocator):
        scored, actions = MidPassDriver(session, policy, target, steps).score(tokens)
        return Episode(actions, scored.log_probabilities, scored.realised, scored.controllable)
    if not policy.reads_model:
        return score_schedule(session, policy, tokens, unroll(session, policy, steps, target, generator), record)
    driver = Driver(session, policy, target, steps, generator)
    seen, taken = [], []
    for step in range(steps):
        observation, before = driver.observe(tokens[:, step]), session.ledger.spent
        if record:
            seen.append(features(observation))
        action = driver.decide(observation)
        logits = session.step(tokens[:, step], driver.table[action])
        score = log_probabilities(logits, tokens[:, step + 1])
        taken.append((action, score, session.ledger.spent - before, observation.controllable))
    actions, scores, realised, controllable = (torch.stack(parts, 1) for parts in zip(*taken, strict=True))
    recorded = Features(*(torch.cat(parts, 1) for parts in zip(*seen, strict=True))) if record else None
    return Episode(actions, scores, realised, controllable, recorded)
