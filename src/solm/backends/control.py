"""Decisions in Python for the rows of a session: which policy decides for which rows, and what it decides next.

The torch backend decides everything here. The cpu backend does so for the policies that its engine does not know.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from solm.backends.session import AnyPolicy
from solm.core.actions import DENSE
from solm.core.budget import Ledger
from solm.core.cost import ModelShapes
from solm.core.errors import SolmError
from solm.core.shares import axis_levels
from solm.core.sparsity import SparsityConfig
from solm.policies.learned import features
from solm.policies.mid_pass import decide_known
from solm.policies.network import Features
from solm.policies.priced import PricedPolicy
from solm.policies.protocol import Observation
from solm.policies.schedules import Dense, Random, Static
from solm.policies.unroll import unroll


class Model(Protocol):
    """What a policy may see of the model before a step."""

    def last_hidden(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, H], what the output head read after the last token of `rows` [n]."""

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Input embeddings [n, H] of tokens [n]."""


@dataclass
class Group:
    """Rows [n] that one policy decides for together; its state for them, and the generator that it draws with."""

    policy: AnyPolicy
    rows: torch.Tensor
    state: Any = None
    generator: torch.Generator | None = None
    seen: list[Features] | None = None

    @property
    def alone(self) -> bool:
        """Whether other rows of the same policy must stay apart: it draws, or it has a state."""
        return isinstance(self.policy, Random) or self.stepwise

    @property
    def stepwise(self) -> bool:
        """Whether a decision needs the state that the previous step left."""
        return self.policy.reads_model and not isinstance(self.policy, PricedPolicy)


@dataclass(frozen=True)
class Decision:
    """What a pass follows. keep: [N, Q, 3] float64; actions: [N, Q] int64. With a `layer`, keep is of the layers before
    it, and `choose` gives that of the others, from the residual stream [N, Q, H] that enters it, and sets `actions`."""

    keep: torch.Tensor
    actions: torch.Tensor
    layer: int | None = None
    choose: Callable[[torch.Tensor], torch.Tensor] | None = None


class Control:
    """The policies of a session's rows. Budgets stay in the session's records; this reads and advances them."""

    def __init__(self, sparsity: SparsityConfig, shapes: ModelShapes, groups: list[Group] | None = None):
        self.sparsity, self.shapes = sparsity, shapes
        self.groups = groups or []

    @property
    def stepwise(self) -> bool:
        """Whether known tokens must be decided one after the other."""
        return any(group.stepwise for group in self.groups)

    @property
    def layer(self) -> int | None:
        """The layer before which priced policies decide; None without such a policy."""
        return next((group.policy.layer for group in self.groups if isinstance(group.policy, PricedPolicy)), None)

    @property
    def seen(self) -> Features | None:
        """What the network of the only group's policy saw so far, where it is recorded."""
        if len(self.groups) != 1 or not self.groups[0].seen:
            return None
        return Features(*(torch.cat(parts, 1) for parts in zip(*self.groups[0].seen, strict=True)))

    def assign(
        self, policy: AnyPolicy, rows: int, device: torch.device, generator: torch.Generator | None, record: bool
    ) -> None:
        """Let `policy` decide for all of `rows` rows."""
        state = None if isinstance(policy, PricedPolicy) else policy.start(rows, device)
        self.groups = [Group(policy, torch.arange(rows), state, generator, [] if record else None)]

    def check_join(self, other: "Control") -> None:
        """Raises `SolmError` where the priced policies of both decide before different layers."""
        if None not in (self.layer, other.layer) and self.layer != other.layer:
            raise SolmError(
                f"policies of one batch must decide before the same layer, got {self.layer} and {other.layer}"
            )

    def join(self, other: "Control", rows: int) -> None:
        """Take over the rows of `other`, which follow this one's `rows` rows."""
        for group in other.groups:
            moved = replace(group, rows=group.rows + rows)
            mine = next((g for g in self.groups if g.policy is moved.policy and not moved.alone), None)
            if mine is None:
                self.groups.append(moved)
            else:
                mine.rows = torch.cat([mine.rows, moved.rows])

    def take(self, index: torch.Tensor, sparsity: SparsityConfig, copied: bool = False) -> "Control":
        """The control of rows index [n] of these, in that order, under `sparsity`.

        copied: random generators are copied, so that neither session's draws change the other's.
        """
        kept = []
        for group in self.groups if len(index) else []:
            place = torch.full((int(max(index.max(), group.rows.max())) + 1,), -1)
            place[group.rows] = torch.arange(len(group.rows))
            inside = place[index] >= 0
            if not bool(inside.any()):
                continue
            chosen = place[index[inside]]
            state = None if group.state is None else group.state.rows(chosen)
            generator = group.generator.clone_state() if copied and group.generator is not None else group.generator
            kept.append(Group(group.policy, inside.nonzero()[:, 0], state, generator, None))
        return Control(sparsity, self.shapes, kept)

    def decide(
        self,
        budgets: np.ndarray,
        lengths: torch.Tensor,
        tokens: torch.Tensor,
        model: Model,
        skip: frozenset[int] = frozenset(),
    ) -> Decision:
        """What the next steps of all rows follow: tokens [N, Q] after `lengths` [N] others.

        Rows without a policy are dense. skip: numbers of groups that somebody else decides for. Records of `budgets`
        advance by what is decided, but for what steps realise, which is counted after the pass.
        """
        rows, count = tokens.shape
        keep = torch.tensor(DENSE, dtype=torch.float64).repeat(rows, count, 1)
        actions = torch.zeros(rows, count, dtype=torch.int64)
        later: list[tuple[Group, torch.Tensor]] = []
        for number, group in enumerate(self.groups):
            if number in skip:
                continue
            state, kv_length = budgets[group.rows.numpy()], lengths[group.rows] + 1
            if isinstance(group.policy, PricedPolicy):
                before = self._early(group.policy, state, kv_length, count)
                later.append((group, before))
                actions[group.rows] = before
            elif isinstance(group.policy, Dense):
                actions[group.rows] = group.policy.space.dense_index
            elif group.stepwise:
                actions[group.rows] = self._next(group, state, kv_length, tokens[group.rows], model)
            else:
                actions[group.rows] = self._known(group, state, kv_length, count)
            state["previous"] = actions[group.rows, -1].numpy()
            budgets[group.rows.numpy()] = state
            keep[group.rows] = group.policy.space.table[actions[group.rows]]
        if not later:
            return Decision(keep, actions)

        def choose(hidden: torch.Tensor) -> torch.Tensor:
            rest = keep.clone()
            for group, before in later:
                state, kv_length = budgets[group.rows.numpy()], lengths[group.rows] + 1
                assert isinstance(group.policy, PricedPolicy)
                here = hidden if len(group.rows) == rows else hidden[group.rows.to(hidden.device)]
                decided = decide_known(
                    group.policy, here, before, kv_length, self.sparsity, self.shapes, target=_target(state),
                    spent=_tensor(state, "spent"), counted=_tensor(state, "counted"), taken=_tensor(state, "taken"),
                    horizon=_tensor(state, "horizon"),
                )  # fmt: skip
                actions[group.rows] = decided.actions
                rest[group.rows] = group.policy.space.table[actions[group.rows]]
                budgets["previous"][group.rows.numpy()] = actions[group.rows, -1].numpy()
            return rest

        return Decision(keep, actions, self.layer, choose)

    def _early(self, policy: PricedPolicy, state: np.ndarray, kv_length: torch.Tensor, count: int) -> torch.Tensor:
        """Actions [n, Q] of the layers before a priced policy's: the static schedule of the same budget."""
        ledger = Ledger(_tensor(state, "early"), _tensor(state, "counted"))
        found = unroll(Static(policy.space), kv_length, self.sparsity, self.shapes, count, _target(state), ledger)
        state["early"] = found.ledger.spent.numpy()
        return found.actions

    def _known(self, group: Group, state: np.ndarray, kv_length: torch.Tensor, count: int) -> torch.Tensor:
        """Actions [n, Q] of a policy that depends on budgets alone."""
        assert not isinstance(group.policy, PricedPolicy)
        found = unroll(
            group.policy, kv_length, self.sparsity, self.shapes, count, _target(state), _ledger(state),
            first_step=state["taken"], horizon=state["horizon"], previous=_tensor(state, "previous"),
            state=group.state, generator=group.generator,
        )  # fmt: skip
        group.state = found.state
        return found.actions

    def _next(
        self, group: Group, state: np.ndarray, kv_length: torch.Tensor, tokens: torch.Tensor, model: Model
    ) -> torch.Tensor:
        """Actions [n, 1] of a policy that sees what the previous step left."""
        policy = group.policy
        assert not isinstance(policy, PricedPolicy)
        controllable = kv_length > self.sparsity.always_read
        observation = Observation(
            model.last_hidden(group.rows), model.embed(tokens[:, 0]), _target(state), _ledger(state),
            axis_levels(policy.space, kv_length, self.sparsity, self.shapes), state["taken"], state["horizon"],
            controllable, _tensor(state, "previous"),
        )  # fmt: skip
        if group.seen is not None:
            group.seen.append(features(observation))
        chosen, group.state = policy.act(observation, group.state, group.generator)
        return torch.where(controllable, chosen, policy.space.dense_index)[:, None]


def _tensor(state: np.ndarray, name: str) -> torch.Tensor:
    """A field of records [n], as a copy."""
    return torch.from_numpy(state[name].copy())


def _target(state: np.ndarray) -> torch.Tensor:
    return _tensor(state, "target")


def _ledger(state: np.ndarray) -> Ledger:
    return Ledger(_tensor(state, "spent"), _tensor(state, "counted"))
