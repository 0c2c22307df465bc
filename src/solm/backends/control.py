"""Decisions in Python for the rows of a session: which policy decides for which rows, and what it decides next.

The torch backend decides everything here. The cpu backend does so for the policies that its engine does not know.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from solm.backends.session import AnyPolicy
from solm.core.actions import DENSE
from solm.core.arrays import Array, as_numpy, as_tensor
from solm.core.budget import Ledger
from solm.core.cost import ModelShapes, axis_levels
from solm.core.errors import SolmError
from solm.core.sparsity import SparsityConfig
from solm.policies.priced import PricedPolicy
from solm.policies.protocol import Observation
from solm.policies.schedules import BlindSchedule, Dense, Random, Static
from solm.policies.unroll import unroll

if TYPE_CHECKING:
    import torch

    from solm.policies.network import Features


class Model(Protocol):
    """What a policy may see of the model before a step."""

    def last_hidden(self, rows: np.ndarray) -> Array:
        """[n, H], what the output head read after the last token of `rows` [n]."""

    def embed(self, tokens: Array) -> Array:
        """Input embeddings [n, H] of tokens [n], in their kind."""


@dataclass
class Group:
    """Rows [n] that one policy decides for together; its state for them, and the generator that it draws with."""

    policy: AnyPolicy
    rows: np.ndarray
    state: Any = None
    generator: "torch.Generator | np.random.Generator | None" = None
    seen: "list[Features] | None" = None

    @property
    def alone(self) -> bool:
        """Whether other rows of the same policy must stay apart: it has a state."""
        return self.stepwise

    @property
    def stepwise(self) -> bool:
        """Whether a decision needs the state that the previous step left."""
        return self.policy.reads_model and not isinstance(self.policy, PricedPolicy)


@dataclass(frozen=True)
class Decision:
    """What a pass follows. keep: [N, Q, 3] float64; actions: [N, Q] int64. With a `layer`, keep is of the layers before
    it, and `choose` gives that of the others, from the residual stream [N, Q, H] that enters it, and sets `actions`."""

    keep: np.ndarray
    actions: np.ndarray
    layer: int | None = None
    choose: "Callable[[torch.Tensor], np.ndarray] | None" = None


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
    def seen(self) -> "Features | None":
        """What the network of the only group's policy saw so far, where it is recorded."""
        if len(self.groups) != 1 or not self.groups[0].seen:
            return None
        import torch

        from solm.policies.network import Features

        return Features(*(torch.cat(parts, 1) for parts in zip(*self.groups[0].seen, strict=True)))

    def assign(
        self,
        policy: AnyPolicy,
        rows: int,
        device: "torch.device | None",
        generator: "torch.Generator | np.random.Generator | None",
        record: bool,
    ) -> None:
        """Let `policy` decide for all of `rows` rows. device: where its state is, None: the host."""
        state = None
        if not isinstance(policy, PricedPolicy | BlindSchedule):
            import torch

            state = policy.start(rows, device or torch.device("cpu"))
        self.groups = [Group(policy, np.arange(rows), state, generator, [] if record else None)]

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
                mine.rows = np.concatenate([mine.rows, moved.rows])

    def take(self, index: np.ndarray, sparsity: SparsityConfig, copied: bool = False) -> "Control":
        """The control of rows index [n] of these, in that order, under `sparsity`.

        copied: random generators are copied, so that neither session's draws change the other's.
        """
        kept = []
        for group in self.groups if len(index) else []:
            place = np.full(int(max(index.max(), group.rows.max())) + 1, -1)
            place[group.rows] = np.arange(len(group.rows))
            inside = place[index] >= 0
            if not inside.any():
                continue
            chosen = place[index[inside]]
            state = None if group.state is None else group.state.rows(as_tensor(chosen))
            generator = _copied(group.generator) if copied else group.generator
            kept.append(Group(group.policy, np.flatnonzero(inside), state, generator, None))
        return Control(sparsity, self.shapes, kept)

    def decide(
        self,
        budgets: np.ndarray,
        lengths: np.ndarray,
        tokens: Array,
        model: Model,
        skip: frozenset[int] = frozenset(),
    ) -> Decision:
        """What the next steps of all rows follow: tokens [N, Q] after `lengths` [N] others.

        Rows without a policy are dense. skip: numbers of groups that somebody else decides for. Records of `budgets`
        advance by what is decided, but for what steps realise, which is counted after the pass.
        """
        rows, count = tokens.shape
        keep = np.tile(np.array(DENSE, dtype=np.float64), (rows, count, 1))
        actions = np.zeros((rows, count), dtype=np.int64)
        later: list[tuple[Group, np.ndarray]] = []
        for number, group in enumerate(self.groups):
            if number in skip:
                continue
            state, kv_length = budgets[group.rows], lengths[group.rows] + 1
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
            state["previous"] = actions[group.rows, -1]
            budgets[group.rows] = state
            keep[group.rows] = group.policy.space.numbers[actions[group.rows]]
        if not later:
            return Decision(keep, actions)

        from solm.policies.mid_pass import decide_known

        def choose(hidden: "torch.Tensor") -> np.ndarray:
            rest = keep.copy()
            for group, before in later:
                state, kv_length = budgets[group.rows], as_tensor(lengths[group.rows] + 1)
                assert isinstance(group.policy, PricedPolicy)
                here = hidden if len(group.rows) == rows else hidden[as_tensor(group.rows).to(hidden.device)]
                decided = decide_known(
                    group.policy, here, as_tensor(before), kv_length, self.sparsity, self.shapes,
                    target=_tensor(state, "target"), spent=_tensor(state, "spent"), expected=_tensor(state, "expected"),
                    counted=_tensor(state, "counted"), taken=_tensor(state, "taken"), horizon=_tensor(state, "horizon"),
                )  # fmt: skip
                actions[group.rows] = decided.actions.numpy()
                rest[group.rows] = group.policy.space.numbers[actions[group.rows]]
                budgets["previous"][group.rows] = actions[group.rows, -1]
                budgets["expected"][group.rows] = decided.expected.numpy()
            return rest

        return Decision(keep, actions, self.layer, choose)

    def _early(self, policy: PricedPolicy, state: np.ndarray, kv_length: np.ndarray, count: int) -> np.ndarray:
        """Actions [n, Q] of the layers before a priced policy's: the static schedule of the same budget."""
        ledger = Ledger(state["early"].copy(), state["counted"].copy())
        found = unroll(Static(policy.space), kv_length, self.sparsity, self.shapes, count, state["target"], ledger)
        state["early"] = found.ledger.spent
        return as_numpy(found.actions)

    def _known(self, group: Group, state: np.ndarray, kv_length: np.ndarray, count: int) -> np.ndarray:
        """Actions [n, Q] of a policy that depends on budgets alone."""
        assert not isinstance(group.policy, PricedPolicy)
        arrays = isinstance(group.policy, Static | Random)  # others know tensors alone

        def of(values: np.ndarray) -> Any:
            return values.copy() if arrays else as_tensor(values.copy())

        found = unroll(
            group.policy, of(kv_length), self.sparsity, self.shapes, count, of(state["target"]),
            Ledger(of(state["spent"]), of(state["counted"])), first_step=state["taken"], horizon=state["horizon"],
            previous=of(state["previous"]), state=group.state, generator=group.generator,
        )  # fmt: skip
        group.state = found.state
        return as_numpy(found.actions)

    def _next(self, group: Group, state: np.ndarray, kv_length: np.ndarray, tokens: Array, model: Model) -> np.ndarray:
        """Actions [n, 1] of a policy that sees what the previous step left."""
        policy = group.policy
        assert not isinstance(policy, PricedPolicy)
        controllable = self.sparsity.controllable(kv_length)
        observation = Observation(
            as_tensor(model.last_hidden(group.rows)), as_tensor(model.embed(tokens[:, 0])), _tensor(state, "target"),
            Ledger(_tensor(state, "spent"), _tensor(state, "counted")),
            axis_levels(policy.space, as_tensor(kv_length), self.sparsity, self.shapes), state["taken"],
            state["horizon"], as_tensor(controllable), _tensor(state, "previous"),
        )  # fmt: skip
        if group.seen is not None:
            from solm.policies.learned import features

            group.seen.append(features(observation))
        chosen, group.state = policy.act(observation, group.state, group.generator)  # type: ignore[arg-type]
        return policy.space.controlled(as_numpy(chosen), controllable)[:, None]


def _copied(generator: Any) -> Any:
    """A generator that draws the same from here on."""
    return generator.clone_state() if hasattr(generator, "clone_state") else deepcopy(generator)


def _tensor(state: np.ndarray, name: str) -> "torch.Tensor":
    """A field of records [n], as a copy."""
    return as_tensor(state[name].copy())
