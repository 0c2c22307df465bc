"""Driving a session with a policy: the loop behind rollouts, evaluation and generation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from solm.backends.midpass import MidPassDriver
from solm.backends.passes import Extended, Scored, log_probabilities
from solm.backends.torch.session import Session
from solm.policies.learned import features
from solm.policies.network import Features
from solm.policies.priced import PricedPolicy
from solm.policies.protocol import Observation, Policy
from solm.policies.schedules import Dense
from solm.policies.unroll import unroll

Found = TypeVar("Found", Extended, Scored)


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
        return self._walk(tokens, tokens.shape[1], self.session.extend, 1)

    def score(self, tokens: torch.Tensor) -> tuple[Scored, torch.Tensor]:
        """Process the first T of tokens [N, T+1] step by step and score the next ones, as `Session.score`, so that no
        step's logits outlive it; also the actions taken [N, T]."""
        return self._walk(tokens, tokens.shape[1] - 1, self.session.score, 2)

    @property
    def seen(self) -> Features | None:
        """What the policy's network saw so far, where it was to be recorded."""
        return None if self.told is None else Features(*(torch.cat(p, 1) for p in zip(*self.told, strict=True)))

    def _walk(
        self, tokens: torch.Tensor, steps: int, process: Callable[[torch.Tensor, torch.Tensor], Found], given: int
    ) -> tuple[Found, torch.Tensor]:
        """Decide and `process` step by step, `given` tokens at a time; what it found, joined along the steps."""
        actions, parts = [], []
        for step in range(steps):
            actions.append(self.decide(self.observe(tokens[:, step])))
            parts.append(process(tokens[:, step : step + given], self.table[actions[-1]][:, None]))
        kind = type(parts[0])
        joined = (torch.cat([getattr(part, name) for part in parts], 1) for name in kind.__dataclass_fields__)
        return kind(*joined), torch.stack(actions, 1)


def drive(
    session: Session,
    policy: Policy | PricedPolicy,
    target: torch.Tensor,
    horizon: int,
    generator: torch.Generator | None = None,
) -> Driver | MidPassDriver:
    """What steps `session` under `policy`."""
    if isinstance(policy, PricedPolicy):
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
    policy: Policy | PricedPolicy,
    tokens: torch.Tensor,
    target: torch.Tensor,
    horizon: int,
    generator: torch.Generator | None = None,
    record: bool = False,
) -> Run:
    """Process known tokens [N, Q] under a policy; in one pass unless it reads the previous step's state.

    target, horizon: as for `drive`. record: keep the features that a policy's network sees.
    """
    if isinstance(policy, PricedPolicy):
        return Run(*MidPassDriver(session, policy, target, horizon).extend(tokens))
    if not policy.reads_model:
        before = session.hidden
        schedule = unroll(
            policy, session.kv_length, session.sparsity, session.control.shapes, tokens.shape[1], target,
            session.ledger, generator=generator, record=record,
        )  # fmt: skip
        found = session.extend(tokens, policy.space.table[schedule.actions])
        seen = None
        if schedule.inputs is not None:
            hidden = torch.cat([before[:, None], found.hidden[:, :-1]], 1)
            seen = Features(hidden, session.embed(tokens), *(part.to(hidden.device) for part in schedule.inputs))
        return Run(found, schedule.actions, seen)
    driver = Driver(session, policy, target, horizon, generator, record)
    return Run(*driver.extend(tokens), driver.seen)


def teacher_forced(
    session: Session,
    policy: Policy | PricedPolicy,
    tokens: torch.Tensor,
    target: torch.Tensor,
    generator: torch.Generator | None = None,
    record: bool = False,
) -> Episode:
    """Run a policy over tokens [N, T+1] whose path is fixed, and score every next token."""
    horizon = tokens.shape[1] - 1
    if not isinstance(policy, PricedPolicy) and policy.reads_model:
        driver = Driver(session, policy, target, horizon, generator, record)
        scored, actions = driver.score(tokens)
        return Episode(actions, scored.log_probabilities, scored.realised, scored.controllable, driver.seen)
    run = run_over(session, policy, tokens[:, :-1], target, horizon, generator, record)
    scores = log_probabilities(run.found.logits, tokens[:, 1:])
    return Episode(run.actions, scores, run.found.realised, run.found.controllable, run.features)
