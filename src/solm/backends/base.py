"""What the sessions of both backends share: rows under policies, their budgets, and which schedule a pass follows."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from solm.backends import budgets
from solm.backends.control import Control, groups_of
from solm.backends.results import Result, Schedule, Scored, SplitSchedule, joined
from solm.backends.session import AnyPolicy
from solm.core.arrays import Array, as_numpy, as_tensor, is_tensor
from solm.core.budget import Ledger
from solm.core.cost import ModelShapes
from solm.core.errors import ContextLengthError, DataError
from solm.core.sparsity import SparsityConfig
from solm.policies.priced import PricedPolicy
from solm.policies.schedules import Dense

if TYPE_CHECKING:
    import torch


FEEDBACK = 16
"""Steps after which budgets learn what thresholds kept, where policies decide on known tokens. Steps that are decoded
learn it after each."""
_UNLIMITED = 1 << 30  # steps, more than any pass has


@dataclass(frozen=True)
class Split:
    """A schedule that changes inside a pass: `choose` gives keep [N, Q, 3] of the layers from `layer` on, from the
    residual stream [N, Q, H] that enters it, a tensor."""

    layer: int
    choose: "Callable[[torch.Tensor], Array]"


class BaseSession(ABC):
    """See `solm.backends.session.Session`. A backend adds the cache and `_pass`."""

    def __init__(self, sparsity: SparsityConfig, shapes: ModelShapes, context: int | None):
        """context: tokens that the model can read, None: no limit."""
        self._sparsity, self._context = sparsity, context
        self._control = Control(sparsity, shapes)
        self._open(0)

    @property
    @abstractmethod
    def _counts(self) -> np.ndarray:
        """[N] int64, tokens that every row has seen."""

    @abstractmethod
    def _ours(self, values: Array) -> Any:
        """Values in the kind that the backend computes with, arrays or tensors."""

    def _answer(self, found: Result, asked: Array) -> Result:
        """A result as the caller gets it, who gave the tokens `asked`."""
        return found if type(asked) is np.ndarray or not is_tensor(asked) else found.tensors()

    @abstractmethod
    def _pass(
        self,
        tokens: Any,
        keep: Array | None,
        split: Split | None = None,
        keep_logits: Array | None = None,
        exact_largest: int | np.ndarray = 0,
        decide: bool = False,
    ) -> Result:
        """Process tokens [N, Q] under keep [N, Q, 3] (None: dense), and count them in the budgets.

        Tokens are in the backend's kind. decide: whether the backend decides itself for the groups that `_own_groups`
        names.
        """

    @property
    def sparsity(self) -> SparsityConfig:
        return self._sparsity

    @property
    def rows(self) -> int:
        return len(self._counts)

    @property
    def lengths(self) -> "torch.Tensor":
        """As `Session.lengths`."""
        return as_tensor(self._counts)

    def length(self, row: int) -> int:
        """As `Session.length`."""
        return int(self._counts[row])

    @property
    def ledger(self) -> Ledger:
        return budgets.ledger_of(self._budgets)

    def control(
        self,
        policy: AnyPolicy,
        target: Array,
        horizon: int | np.ndarray,
        *,
        ledger: Ledger | None = None,
        early: Array | None = None,
    ) -> None:
        """As `Session.control`."""
        self._budgets = budgets.open_budgets(target, horizon, policy.space.dense_index, ledger, early)
        self._budgets["decider"] = self._decider_of(policy)
        self._follow([policy] * self.rows)

    def _open(self, rows: int) -> None:
        """Budgets and policies of so many rows that are under no policy."""
        self._budgets = budgets.uncontrolled(rows)
        self._follow([None] * rows)

    def _take(self, index: np.ndarray, other: "BaseSession") -> None:
        """Budgets and policies of rows index [n] of another session, or of this one, in that order."""
        self._budgets = other._budgets[index]
        self._follow([other._policies[row] for row in index])

    def _append(self, other: "BaseSession") -> None:
        """Budgets and policies of the rows of another session after these. Raises as `groups_of` does."""
        self._follow([*self._policies, *other._policies])
        self._budgets = np.concatenate([self._budgets, other._budgets])

    def _follow(self, policies: Sequence[AnyPolicy | None]) -> None:
        """Let rows follow policies [N]; None: none."""
        groups = groups_of(policies)
        own = frozenset(number for number, group in enumerate(groups) if self._decider_of(group.policy))
        inside = {number for number, group in enumerate(groups) if isinstance(group.policy, PricedPolicy)}
        # If Python decides inside the pass for some rows, it does so for all.
        self._policies, self._groups, self._own_groups = policies, groups, own if inside <= own else frozenset()

    def _decider_of(self, policy: AnyPolicy) -> int:
        """The address of `policy` in the terms of the backend's engine, which then decides for its rows; 0 where Python
        does."""
        return 0

    def aim(self, target: Array) -> None:
        """As `Session.aim`."""
        budgets.aim(self._budgets, target)

    def step(self, tokens: Array, keep: Array | None = None, exact_largest: int | np.ndarray = 0) -> Result:
        """As `Session.step`."""
        ours = self._ours(tokens)[:, None]
        if keep is not None:
            return self._answer(self._known(ours, keep[:, None], None, exact_largest), tokens)
        return self._answer(self._decided(ours, None, exact_largest), tokens)

    def extend(self, tokens: Array, keep: Schedule | None = None, keep_logits: Array | None = None) -> Result:
        """As `Session.extend`."""
        ours = self._ours(tokens)
        if keep is not None:
            return self._answer(self._known(ours, keep, keep_logits), tokens)
        return self._answer(self._decided(ours, keep_logits), tokens)

    def score(
        self,
        tokens: "torch.Tensor",
        keep: Schedule | None = None,
        *,
        reference: "torch.Tensor | None" = None,
        keep_logits: bool = False,
    ) -> Scored:
        """As `Session.score`, in stretches of all rows, of which one's logits exist at a time."""
        steps = tokens.shape[1] - 1
        if steps < 1:
            raise DataError(f"score needs at least two tokens of every row, got {list(tokens.shape)}")
        each = max(1, min(steps, self._scored_at_once(keep is not None)))
        if steps > each:
            self._prepare(steps)  # before anything is counted
        parts = []
        for first in range(0, steps, each):
            last = min(first + each, steps)
            known = self._ours(tokens[:, first:last])
            found = self._decided(known) if keep is None else self._known(known, part_of(keep, slice(first, last)))
            beside = None if reference is None else reference[:, first:last]
            parts.append(Scored.of(self._answer(found, tokens), tokens[:, first + 1 : last + 1], beside, keep_logits))
            del found  # the logits, before those of the next stretch
        return joined(parts)

    @property
    def decided_at_once(self) -> int:
        """As `Session.decided_at_once`."""
        return _UNLIMITED if self._sparsity.thresholds is None else FEEDBACK

    def _scored_at_once(self, known: bool) -> int:
        """Steps that `score` processes in one pass, where their actions are `known` and where policies decide."""
        return _UNLIMITED if known else self.decided_at_once

    def _decided(self, tokens: Any, keep_logits: Array | None = None, exact_largest: int | np.ndarray = 0) -> Result:
        """One pass in which the rows' policies decide."""
        own, groups = self._own_groups, self._groups
        if all(number in own or isinstance(group.policy, Dense) for number, group in enumerate(groups)):
            return self._pass(tokens, None, None, keep_logits, exact_largest, decide=bool(own))
        self._check_room(tokens.shape[1])  # before anything is decided
        made = self._control.decide(groups, self._budgets, self._counts, tokens.shape[1], own)
        split = None if made.layer is None or made.choose is None else Split(made.layer, made.choose)
        found = self._pass(tokens, made.keep, split, keep_logits, exact_largest, decide=bool(own))
        for number in own:
            assert found.actions is not None
            made.actions[groups[number].rows] = as_numpy(found.actions)[groups[number].rows]
        return replace(found, actions=self._ours(made.actions))

    def _known(
        self,
        tokens: Any,
        keep: Schedule,
        keep_logits: Array | None = None,
        exact_largest: int | np.ndarray = 0,
    ) -> Result:
        """One pass under a known schedule, whatever policies the rows have."""
        if not isinstance(keep, SplitSchedule):
            return replace(self._pass(tokens, keep, None, keep_logits, exact_largest), actions=None)
        streams: list[Any] = []

        def choose(hidden: "torch.Tensor") -> Array:
            streams.append(hidden)
            return keep.after

        found = self._pass(tokens, keep.before, Split(keep.layer, choose), keep_logits, exact_largest)
        return replace(found, actions=None, stream=streams[0])

    def _dense_actions(self, count: int) -> np.ndarray:
        """[N, Q]: every row's last action, which is the dense one in rows of the policy `Dense`."""
        return np.repeat(self._budgets["previous"][:, None], count, 1)

    def _prepare(self, count: int) -> None:
        """Make room for `count` more tokens. Raises `ContextLengthError` where they do not fit."""
        self._check_room(count)

    def _check_room(self, count: int) -> None:
        """Raises `ContextLengthError` where `count` more tokens do not fit into the model's context."""
        check_length(int(self._counts.max()) + count, self._context)


def part_of(keep: Schedule, some: slice) -> Schedule:
    """A known schedule's stretch of steps."""
    if isinstance(keep, SplitSchedule):
        return SplitSchedule(keep.layer, keep.before[:, some], keep.after[:, some])
    return keep[:, some]


def only(found: Result, keep_logits: Array) -> Result:
    """The result with the logits and hidden states of positions keep_logits [N, L] alone."""
    if not is_tensor(found.logits):
        index = as_numpy(keep_logits)[..., None]
        logits, hidden = (np.take_along_axis(x, index, 1) for x in (found.logits, found.hidden))
    else:
        place = as_tensor(keep_logits)[..., None].to(found.logits.device)
        logits, hidden = (x.gather(1, place.expand(-1, -1, x.shape[-1])) for x in (found.logits, found.hidden))
    return replace(found, logits=logits, hidden=hidden)


def check_length(longest: int, context: int | None) -> None:
    """Raises `ContextLengthError` where rows of `longest` tokens are more than the model can read."""
    if context is not None and longest > context:
        raise ContextLengthError(f"{longest} tokens are too many: this model's context holds {context}")


def check_cut(lengths: Array, held: Array, shared: Array) -> None:
    """Raises `DataError` where rows that hold `held` [N] tokens, the first `shared` [N] not their own, cannot be cut to
    lengths [N]."""
    if bool((lengths > held).any()) or bool((lengths < shared).any()):
        raise DataError(f"rows of {held.tolist()} tokens cannot be cut to {lengths.tolist()}")
