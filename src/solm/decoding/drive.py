"""Driving a session with a policy: the loop behind rollouts, evaluation and generation."""

from dataclasses import dataclass
from typing import Any

import torch

from solm.decoding.midpass import MidPassDriver
from solm.decoding.passes import Extended, log_probabilities
from solm.decoding.session import Session
from solm.decoding.unroll import unroll
from solm.policies.learned import features
from solm.policies.network import Features
from solm.policies.observation import Observation, Policy
from solm.policies.prices import Allocator
from solm.policies.schedules import Dense


class Driver:
    """A policy's view of one session: it observes, decides, and remembers what it decided.

    target: [N, 3] float64 budget shares; horizon: steps the budget is meant for. record: keep what it saw.
    """

    def __init__(
        self,
        session: Session,
        policy: Policy,
        target: torch.Tensor,
        horizon: int,
        generator: torch.Generator | None = None,
        record: bool = False,
    ):
        self.session, self.policy, self.target, self.horizon = session, policy, target, horizon
        self.generator = generator
        self.state: Any = policy.start(session.rows, session.device)
        self.previous = torch.full((session.rows,), policy.space.dense_index)
        self.steps = 0
        self.table = policy.space.table
        self.told: list[Features] | None = [] if record else None

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
        if self.told is not None:
            self.told.append(features(observation))
        actions, self.state = self.policy.act(observation, self.state, self.generator)
        self.previous = torch.where(observation.controllable, actions, self.policy.space.dense_index)
        self.steps += 1
        return self.previous

    def step(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Decide, then process tokens [N]: logits of the next [N, V] and the actions taken [N]."""
        if isinstance(self.policy, Dense):  # which needs to see nothing
            self.steps += 1
            return self.session.step(tokens), self.previous
        actions = self.decide(self.observe(tokens))
        return self.session.step(tokens, self.table[actions]), actions

    def extend(self, tokens: torch.Tensor) -> tuple[Extended, torch.Tensor]:
        """Process known tokens [N, Q] step by step; also the actions taken [N, Q]."""
        actions, parts = [], []
        for token in tokens.split(1, 1):
            actions.append(self.decide(self.observe(token[:, 0])))
            parts.append(self.session.extend(token, self.table[actions[-1]][:, None]))
        joined = (torch.cat([getattr(part, name) for part in parts], 1) for name in Extended.__dataclass_fields__)
        return Extended(*joined), torch.stack(actions, 1)


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


@dataclass(frozen=True)
class Run:
    """A controlled run over known tokens: what the passes gave, the actions [N, Q], and, where they were asked for,
    the features that the policy's network saw."""

    found: Extended
    actions: torch.Tensor
    features: Features | None = None


def run_over(
    session: Session,
    policy: Policy | Allocator,
    tokens: torch.Tensor,
    target: torch.Tensor,
    horizon: int,
    generator: torch.Generator | None = None,
    record: bool = False,
) -> Run:
    """Process known tokens [N, Q] under a policy; in one pass unless it reads the previous step's state.

    target, horizon: as for `drive`. record: keep the features that a policy's network sees.
    """
    if isinstance(policy, Allocator):
        return Run(*MidPassDriver(session, policy, target, horizon).extend(tokens))
    if not policy.reads_model:
        before = session.hidden
        schedule = unroll(session, policy, tokens.shape[1], target, generator, record=record)
        found = session.extend(tokens, policy.space.table[schedule.actions])
        seen = None
        if schedule.told is not None:
            hidden = torch.cat([before[:, None], found.hidden[:, :-1]], 1)
            seen = Features(hidden, session.embed(tokens), *(part.to(hidden.device) for part in schedule.told))
        return Run(found, schedule.actions, seen)
    driver = Driver(session, policy, target, horizon, generator, record)
    found, actions = driver.extend(tokens)
    told = driver.told
    recorded = None if told is None else Features(*(torch.cat(parts, 1) for parts in zip(*told, strict=True)))
    return Run(found, actions, recorded)


def teacher_forced(
    session: Session,
    policy: Policy | Allocator,
    tokens: torch.Tensor,
    target: torch.Tensor,
    generator: torch.Generator | None = None,
    record: bool = False,
) -> Episode:
    """Run a policy over tokens [N, T+1] whose path is fixed, and score every next token."""
    run = run_over(session, policy, tokens[:, :-1], target, tokens.shape[1] - 1, generator, record)
    scores = log_probabilities(run.found.logits, tokens[:, 1:])
    return Episode(run.actions, scores, run.found.realised, run.found.controllable, run.features)
