"""Decisions in Python for the rows of a session: which policy decides for which rows, and what it decides next.

The torch backend decides everything here. The cpu backend does so for the policies that its engine does not know.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from solm.backends.results import Split
from solm.core.actions import DENSE, ActionSpace
from solm.core.arrays import as_tensor
from solm.core.budget import Ledger
from solm.core.cost import ModelShapes, axis_levels
from solm.core.errors import SolmError
from solm.core.sparsity import SparsityConfig
from solm.policies.schedules import Dense, Levels, Policy, Static, take, two_levels, unroll
from solm.policies.value_policy import ValuePolicy

if TYPE_CHECKING:
    import torch

AnyPolicy = Policy | ValuePolicy


class Group(NamedTuple):
    """Rows [n] that one policy decides for together."""

    policy: AnyPolicy
    rows: np.ndarray


def groups_of(policies: Sequence[AnyPolicy | None]) -> list[Group]:
    """The rows under policies [N], by policy; rows without one are in no group.

    Raises `SolmError` where priced policies decide before different layers.
    """
    rows: dict[int, list[int]] = {}
    for row, policy in enumerate(policies):
        if policy is not None:
            rows.setdefault(id(policy), []).append(row)
    groups = [Group(policies[some[0]], np.array(some)) for some in rows.values()]  # type: ignore[arg-type]
    layers = list(dict.fromkeys(group.policy.layer for group in groups if isinstance(group.policy, ValuePolicy)))
    if len(layers) > 1:
        raise SolmError(f"policies of one batch must decide before the same layer, got {layers[0]} and {layers[1]}")
    return groups


@dataclass(frozen=True)
class Decision:
    """What a pass follows. keep: [N, Q, 3] float64; actions: [N, Q] int64. With a `split`, keep is of the layers before
    it, and its `choose` sets `actions`."""

    keep: np.ndarray
    actions: np.ndarray
    split: Split | None = None


@dataclass(frozen=True)
class Control:
    """Decisions for rows of a model of these shapes, whose actions are carried out under `sparsity`. Budgets stay in
    the session's records; this reads and advances them."""

    sparsity: SparsityConfig
    shapes: ModelShapes

    def decide(
        self,
        groups: Sequence[Group],
        budgets: np.ndarray,
        lengths: np.ndarray,
        count: int,
        skip: frozenset[int] = frozenset(),
    ) -> Decision:
        """What the next `count` steps of all N rows follow, after `lengths` [N] tokens.

        Rows without a policy are dense. skip: numbers of groups that somebody else decides for. Records of `budgets`
        advance by what is decided, but for what steps realise, which is counted after the pass.
        """
        rows = len(lengths)
        keep = np.tile(np.array(DENSE, dtype=np.float64), (rows, count, 1))
        actions = np.zeros((rows, count), dtype=np.int64)
        later: list[tuple[Group, np.ndarray, np.ndarray]] = []
        for number, group in enumerate(groups):
            if number in skip:
                continue
            state, policy = budgets[group.rows], group.policy
            kv_lengths = lengths[group.rows, None] + np.arange(1, count + 1)
            if isinstance(policy, ValuePolicy):
                # The layers before the policy's follow the static schedule of the same budget.
                ledger = Ledger(state["early"].copy(), state["counted"].copy())
                found = unroll(Static(policy.space), *self._possible(policy.space, kv_lengths), state["target"], ledger)
                state["early"], actions[group.rows] = found.ledger.spent, found.actions
                later.append((group, kv_lengths, found.actions))
            elif isinstance(policy, Dense):
                actions[group.rows] = policy.space.dense_index
            else:
                ledger = Ledger(state["spent"].copy(), state["counted"].copy())
                levels, on = self._possible(policy.space, kv_lengths)
                actions[group.rows] = unroll(policy, levels, on, state["target"], ledger).actions
            state["previous"] = actions[group.rows, -1]
            budgets[group.rows] = state
            keep[group.rows] = policy.space.numbers[actions[group.rows]]
        if not later:
            return Decision(keep, actions)

        def choose(hidden: "torch.Tensor") -> np.ndarray:
            rest = keep.copy()
            for group, kv_lengths, before in later:
                policy, state = group.policy, budgets[group.rows]
                assert isinstance(policy, ValuePolicy)
                here = hidden if len(group.rows) == rows else hidden[as_tensor(group.rows).to(hidden.device)]
                actions[group.rows] = self.decide_inside(policy, here, before, kv_lengths, state)
                rest[group.rows] = policy.space.numbers[actions[group.rows]]
                budgets["previous"][group.rows] = actions[group.rows, -1]
                budgets["expected"][group.rows] = state["expected"]
            return rest

        layer = next(group.policy.layer for group, *_ in later if isinstance(group.policy, ValuePolicy))
        return Decision(keep, actions, Split(layer, choose))

    def _possible(
        self, space: ActionSpace, kv_lengths: np.ndarray, before: int | None = None
    ) -> tuple[Levels, np.ndarray]:
        """What the levels of `space` realise in steps that see kv_lengths [n, Q] keys, and whether the steps can be
        controlled per axis [n, Q, 3]. before: the contribution of the layers before this one alone."""
        levels = axis_levels(space, kv_lengths, self.sparsity, self.shapes, before)
        return levels, self.sparsity.controllable(kv_lengths)

    def decide_inside(
        self,
        policy: ValuePolicy,
        hidden: "torch.Tensor",
        before: np.ndarray,
        kv_lengths: np.ndarray,
        state: np.ndarray,
    ) -> np.ndarray:
        """The actions [n, Q] of the layers from `policy.layer` on in Q known steps. No decision depends on what an
        earlier one did to the model.

        hidden: [n, Q, H] residual stream that enters the layer. before: [n, Q] int64 actions of the layers before it.
        kv_lengths: [n, Q] int64 keys that the steps see, their own included. state: budget records [n]; what prices
        were set for is added to ``expected``, while ``spent`` and ``counted`` are left to who counts the pass.
        """
        space, steps = policy.space, before.shape[1]
        costs = policy.costs(hidden, space.table[as_tensor(before)])
        whole, on = self._possible(space, kv_lengths)
        first, _ = self._possible(space, kv_lengths, policy.layer)
        rest = [axis - part for axis, part in zip(whole, first, strict=True)]
        # Per axis [n, Q, levels]: what the step realises under each level, the layers before the policy's being known.
        early = space.levels[before]
        levels = [
            take(part, early[..., axis])[..., None] + after
            for axis, (part, after) in enumerate(zip(first, rest, strict=True))
        ]
        goal, part = state["target"], policy.layer / self.shapes.layers
        ahead = np.stack(
            [_first_layers_share(goal[:, axis, None], whole[axis], first[axis], part) for axis in range(len(levels))],
            -1,
        )
        lowest, highest = (ahead + np.stack([axis[..., end] for axis in rest], -1) for end in (0, -1))
        spent, expected, counted = state["spent"].copy(), state["expected"].copy(), state["counted"].copy()
        actions = np.empty(before.shape, dtype=np.int64)
        for step in range(steps):
            now = tuple(axis[:, step] for axis in levels)
            action, due = policy.allocate(
                tuple(axis[:, step] for axis in costs), now, goal, spent, expected, counted,
                np.maximum(1, state["horizon"] - state["taken"] - step), (lowest[:, step], highest[:, step]),
            )  # fmt: skip
            actions[:, step] = space.controlled(action, on[:, step])
            index = space.levels[actions[:, step]]
            realised = np.stack([take(axis, index[:, number]) for number, axis in enumerate(now)], 1)
            spent += realised * on[:, step]
            expected += due * on[:, step]
            counted += on[:, step]
        state["expected"] = expected
        return actions


def _first_layers_share(target: np.ndarray, whole: np.ndarray, first: np.ndarray, part: float) -> np.ndarray:
    """What the first layers contribute [n, Q] under a schedule that mixes two levels to realise `target` [n, 1].

    whole, first: [n, Q, levels] shares that levels realise, and what these layers contribute to them. part: these
    layers' number over that of all layers.
    """
    excess = first - part * whole  # what these layers contribute beyond their number
    goal = np.broadcast_to(target, whole.shape[:2])
    lower, upper = two_levels(whole, goal, 0.0)
    low, high = take(whole, lower), take(whole, upper)
    place = ((goal - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    low_excess = take(excess, lower)
    return np.asarray(part * goal + (low_excess + place * (take(excess, upper) - low_excess)))
