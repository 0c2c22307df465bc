"""Sessions: how everything above the backends runs a model. What it gets back is in `backends.results`.

A session holds N rows. A row is one sequence with all of its state: keys and values, the policy that decides for it,
its budget and what it has spent. Rows are read densely (`prefill`), put under a policy (`control`) and then advanced by
`step`, `extend` or `score`. These follow a known schedule where one is given, else the rows' policies.

Sessions are given arrays or tensors. The cpu backend answers in the kind of the token ids, so that decoding needs no
torch; the torch backend answers in tensors.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from solm.backends import budgets
from solm.backends.control import AnyPolicy, Control, groups_of
from solm.backends.results import Result, Schedule, Scored, Split, SplitSchedule, joined
from solm.core.actions import AXES
from solm.core.arrays import Array, as_numpy, as_tensor, is_tensor
from solm.core.budget import Ledger
from solm.core.cost import ModelShapes
from solm.core.errors import ContextLengthError, DataError, UnsupportedModelError
from solm.core.sparsity import MLP_SITES, ChannelThresholds, SparsityConfig
from solm.policies.schedules import Dense
from solm.policies.value_policy import ValuePolicy

if TYPE_CHECKING:
    import torch

__all__ = ["AnyPolicy", "Backend", "Capability", "Session"]

MOST_EXACT = 64
"""Largest logits of a step that can be exact where others are approximate."""
FEEDBACK = 16
"""Steps after which budgets learn what thresholds kept, where policies decide on known tokens. Steps that are decoded
learn it after each."""
_UNLIMITED = 1 << 30  # steps, more than any pass has


class Session(ABC):
    """N rows of one model. Token ids are int64, on any device; lengths, budgets and schedules are on the host.

    A backend adds the cache, and `_pass`.
    """

    outputs: int | None = None
    """Logits of steps are wanted of so many of the vocabulary's first tokens alone; None: of all. The cpu backend then
    computes no others."""

    def __init__(self, sparsity: SparsityConfig, shapes: ModelShapes, context: int | None):
        """context: tokens that the model can read, None: no limit."""
        self._sparsity, self._context = sparsity, context
        self._control = Control(sparsity, shapes)
        self._open(0)

    @property
    def rows(self) -> int:
        return len(self._counts)

    @property
    def lengths(self) -> "torch.Tensor":
        """[N] int64, tokens that every row has seen."""
        return as_tensor(self._counts)

    def length(self, row: int) -> int:
        """Tokens that `row` has seen."""
        return int(self._counts[row])

    @property
    def ledger(self) -> Ledger:
        """What rows have spent so far: a copy."""
        return budgets.ledger_of(self._budgets)

    @property
    def sparsity(self) -> SparsityConfig:
        """How actions are carried out in this session."""
        return self._sparsity

    @abstractmethod
    def prefill(self, tokens: Array, lengths: Array | None = None, every_logit: bool = False) -> Any:
        """Read tokens [S, C] densely; logits after every row's last token [S, V].

        lengths: [S] tokens that count in each row; the others are padding on the right. every_logit: logits after every
        token, [S, C, V]. Raises `ContextLengthError`, and `DataError` for no tokens and, on the torch backend, for rows
        that are forks.
        """

    @abstractmethod
    def read_on(self, tokens: Array, lengths: Array) -> None:
        """Read tokens [N, C] densely, as many as lengths [N] say, in rows that have read before and may be forks."""

    def control(
        self,
        policy: AnyPolicy,
        target: Array,
        horizon: int | np.ndarray,
        *,
        ledger: Ledger | None = None,
        early: Array | None = None,
    ) -> None:
        """From here on `policy` decides for all rows, within target [N, 3] float64 shares over `horizon` steps, one
        number or one a row.

        ledger: what the rows are taken to have spent; by default nothing. early: [N, 3] float64, what the layers before
        a priced policy's are taken to have spent over the ledger's steps, as if they were the whole model.
        """
        opened = budgets.open_budgets(target, horizon, policy.space.dense_index, ledger, early)
        self._follow([policy] * self.rows, opened)

    def aim(self, target: Array) -> None:
        """Other targets [N, 3] from here on; what was spent is seen against what was allowed until now."""
        budgets.aim(self._budgets, target)

    def step(self, tokens: Array, keep: Array | None = None, exact_largest: int | np.ndarray = 0) -> Result:
        """Process one token a row, tokens [N], Q = 1.

        keep: [N, 3], what all layers follow; None: the rows' policies decide, dense in rows without one.
        exact_largest: how many of a row's largest logits count, at most `MOST_EXACT`: the others may be approximate
        and stay below (`cpu` then reads half of most heads). Of all rows, or [N]; 0: all logits are exact.
        """
        known = None if keep is None else keep[:, None]
        return self._answer(self._processed(self._ours(tokens)[:, None], known, None, exact_largest), tokens)

    def extend(
        self,
        tokens: Array,
        keep: Schedule | None = None,
        keep_logits: Array | None = None,
        *,
        counts: Array | None = None,
        exact_largest: int | np.ndarray = 0,
    ) -> Result:
        """Process known tokens [N, Q]: equal to Q steps, in one pass. On the cpu backend with weights in integers they
        are equal to the last bit, for up to 16 tokens of every row.

        keep_logits: [N, L] positions among the Q whose hidden states and logits are wanted; None: all. counts: [N],
        how many of its tokens every row has, the others being padding; what the result holds for padding means
        nothing. exact_largest: as for `step`. Raises `DataError` for counts below 1 or above Q.
        """
        own = None if counts is None else as_numpy(counts)
        if own is not None and (own.shape != (self.rows,) or own.min() < 1 or own.max() > tokens.shape[1]):
            raise DataError(f"counts must be {self.rows} numbers in [1, {tokens.shape[1]}], got {own.tolist()}")
        return self._answer(self._processed(self._ours(tokens), keep, keep_logits, exact_largest, own), tokens)

    @property
    def decided_at_once(self) -> int:
        """Known tokens that one pass should process where policies decide. Budgets learn what a pass realised after it,
        so `score` divides longer texts by this."""
        return _UNLIMITED if self._sparsity.thresholds is None else FEEDBACK

    def score(
        self,
        tokens: "torch.Tensor",
        keep: Schedule | None = None,
        *,
        reference: "torch.Tensor | None" = None,
        keep_logits: bool = False,
    ) -> Scored:
        """Process the first T of tokens [N, T+1]: log p(tokens[:, t+1]) for every t. Done in stretches of all rows, of
        which one's logits exist at a time.

        reference: logits [N / R, T, V] of the rows that these are R adjacent forks of, for `Scored.divergences`.
        keep_logits: return logits [N, T, V], which are not in memory as a whole otherwise.
        """
        steps = tokens.shape[1] - 1
        if steps < 1:
            raise DataError(f"score needs at least two tokens of every row, got {list(tokens.shape)}")
        each = max(1, min(steps, self._scored_at_once(keep is not None)))
        if steps > each:
            self._prepare(steps)  # before anything is counted
        parts = []
        for first in range(0, steps, each):
            some = slice(first, min(first + each, steps))
            found = self._processed(self._ours(tokens[:, some]), None if keep is None else keep[:, some])
            following = tokens[:, some.start + 1 : some.stop + 1]
            beside = None if reference is None else reference[:, some]
            parts.append(Scored.of(self._answer(found, tokens), following, beside, keep_logits))
            del found  # the logits, before those of the next stretch
        return joined(parts)

    @abstractmethod
    def fork(self, forks: int, capacity: int = 0, sparsity: SparsityConfig | None = None) -> Self:
        """A session of `forks` rows for each of this one's, adjacent, independent of it from here on. Whole pages are
        shared, not copied. capacity: tokens to reserve room for. sparsity: how the fork carries actions out."""

    @abstractmethod
    def copy(self, length: int, capacity: int = 0, sparsity: SparsityConfig | None = None) -> Self:
        """A session of one row that has seen the first `length` tokens of this one's only row, under no policy.

        sparsity: as for `fork`. Raises `DataError` where that row has not seen them (cpu: in a prefill of its own).
        """

    @abstractmethod
    def copy_bytes(self, length: int, shared: int = 0) -> int:
        """Bytes that a copy of `length` tokens takes beside another one that it shares the first `shared` tokens with,
        whole pages."""

    @abstractmethod
    def join(self, other: Self) -> None:
        """Append the rows of `other`, which must not be used afterwards.

        Raises `SolmError` for a policy that decides before another layer and, on the torch backend, `DataError` for
        rows that are forks.
        """

    @abstractmethod
    def leave(self, row: int) -> None:
        """Drop a row; the last one takes its place."""

    @abstractmethod
    def truncate(self, lengths: Array) -> None:
        """Forget what rows hold beyond lengths [N]; budgets stay as they are.

        Raises `DataError` where a row holds less than that, or shares what it should forget.
        """

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
        counts: np.ndarray | None = None,
    ) -> Result:
        """Process tokens [N, Q], of which the first counts [N] of every row count (None: all), under keep [N, Q, 3]
        (None: dense), and add them to the budgets.

        Tokens are in the backend's kind. decide: whether the backend decides itself for the groups that `_own_groups`
        names.
        """

    def _processed(
        self,
        tokens: Any,
        keep: Schedule | None,
        keep_logits: Array | None = None,
        exact_largest: int | np.ndarray = 0,
        counts: np.ndarray | None = None,
    ) -> Result:
        """One pass under a known schedule, whatever policies the rows have; with None, these decide."""
        if keep is None:
            return self._decided(tokens, keep_logits, exact_largest, counts)
        if not isinstance(keep, SplitSchedule):
            return replace(self._pass(tokens, keep, None, keep_logits, exact_largest, counts=counts), actions=None)
        streams: list[Any] = []

        def choose(hidden: "torch.Tensor") -> Array:
            streams.append(hidden)
            return keep.after

        found = self._pass(tokens, keep.before, Split(keep.layer, choose), keep_logits, exact_largest, counts=counts)
        return replace(found, actions=None, stream=streams[0])

    def _decided(
        self, tokens: Any, keep_logits: Array | None, exact_largest: int | np.ndarray, counts: np.ndarray | None
    ) -> Result:
        """One pass in which the rows' policies decide."""
        own, groups = self._own_groups, self._groups
        if all(number in own or isinstance(group.policy, Dense) for number, group in enumerate(groups)):
            return self._pass(tokens, None, None, keep_logits, exact_largest, bool(own), counts)
        self._prepare(tokens.shape[1] if counts is None else counts)  # before anything is decided
        made = self._control.decide(groups, self._budgets, self._counts, tokens.shape[1], own)
        found = self._pass(tokens, made.keep, made.split, keep_logits, exact_largest, bool(own), counts)
        for number in own:
            assert found.actions is not None
            made.actions[groups[number].rows] = as_numpy(found.actions)[groups[number].rows]
        return replace(found, actions=self._ours(made.actions))

    def _open(self, rows: int) -> None:
        """Budgets and policies of so many rows that are under no policy."""
        self._follow([None] * rows, budgets.uncontrolled(rows))

    def _take(self, index: np.ndarray, other: "Session") -> None:
        """Budgets and policies of rows index [n] of another session, or of this one, in that order."""
        self._follow([other._policies[row] for row in index], other._budgets[index])

    def _append(self, other: "Session") -> None:
        """Budgets and policies of the rows of another session after these. Raises as `groups_of` does."""
        self._follow([*self._policies, *other._policies], np.concatenate([self._budgets, other._budgets]))

    def _follow(self, policies: Sequence[AnyPolicy | None], records: np.ndarray) -> None:
        """Let rows follow policies [N], None: none, with budgets as records [N] have them."""
        groups = groups_of(policies)
        for group in groups:
            records["decider"][group.rows] = self._decider_of(group.policy)
        own = frozenset(number for number, group in enumerate(groups) if records["decider"][group.rows[0]])
        inside = {number for number, group in enumerate(groups) if isinstance(group.policy, ValuePolicy)}
        # If Python decides inside the pass for some rows, it does so for all.
        self._policies, self._groups, self._own_groups = policies, groups, own if inside <= own else frozenset()
        self._budgets = records

    def _decider_of(self, policy: AnyPolicy) -> int:
        """The address of `policy` in the terms of the backend's engine, which then decides for its rows; 0 where Python
        does."""
        return 0

    def _scored_at_once(self, known: bool) -> int:
        """Steps that `score` processes in one pass, where their actions are `known` and where policies decide."""
        return _UNLIMITED if known else self.decided_at_once

    def _dense_actions(self, count: int) -> np.ndarray:
        """[N, Q]: every row's last action, which is the dense one in rows of the policy `Dense`."""
        return np.repeat(self._budgets["previous"][:, None], count, 1)

    def _prepare(self, count: int | np.ndarray) -> None:
        """Make room for `count` more tokens, of every row or [N]. Raises `ContextLengthError` where they do not fit
        into the context."""
        self._check_length(int((self._counts + (count if isinstance(count, int) else self._ours(count))).max()))

    def _check_length(self, longest: int) -> None:
        """Raises `ContextLengthError` where rows of `longest` tokens are more than the model can read."""
        if self._context is not None and longest > self._context:
            raise ContextLengthError(f"{longest} tokens are too many: this model's context holds {self._context}")


def check_cut(lengths: Array, held: Array, shared: Array) -> None:
    """Raises `DataError` where rows that hold `held` [N] tokens, the first `shared` [N] not their own, cannot be cut to
    lengths [N]."""
    if bool((lengths > held).any()) or bool((lengths < shared).any()):
        raise DataError(f"rows of {held.tolist()} tokens cannot be cut to {lengths.tolist()}")


@dataclass(frozen=True)
class Capability:
    """What works on a model; `reasons` says, by axis, why one does not, and under ``projections`` why inputs of
    attention's projections cannot be dropped. sliding: numbers of the layers with a sliding
    window, on which the attention axis does not act."""

    family: str
    tested: bool
    shapes: ModelShapes | None
    reasons: dict[str, str] = field(default_factory=dict)
    sliding: tuple[int, ...] = ()

    @property
    def axes(self) -> dict[str, bool]:
        """By axis, whether it can be controlled."""
        return {axis: axis not in self.reasons for axis in AXES}

    def require(self, axis: str) -> None:
        """Raises `UnsupportedModelError` where `axis`, or what else `reasons` names, cannot be controlled."""
        if axis in self.reasons:
            what = f"the {axis} axis is" if axis in AXES else f"dropping inputs of attention's {axis} is"
            raise UnsupportedModelError(f"{what} not supported on {self.family!r}: {self.reasons[axis]}")


class Backend(Protocol):
    """One loaded model and how it is run."""

    @property
    def shapes(self) -> ModelShapes: ...

    @property
    def capability(self) -> Capability: ...

    @property
    def device(self) -> "torch.device":
        """Where tensors of its sessions are, but for logits."""

    @property
    def name(self) -> str:
        """How steps are computed, such as ``torch bfloat16`` or ``cpu int8``."""

    @property
    def dtype(self) -> str:
        """What the weights are in, such as ``bfloat16`` or ``int8``."""

    @property
    def context(self) -> int | None:
        """Tokens that the model's context holds, where its configuration says so."""

    def embed(self, tokens: Array) -> Any:
        """Input embeddings [..., H] of tokens [...], in their kind."""

    def sample_weights(self) -> dict[str, np.ndarray]:
        """Weights that tell this model from others of its shape, see `solm.backends.weight_sample`."""

    def session(self, sparsity: SparsityConfig, capacity: int = 0) -> Session:
        """An empty session; `capacity` tokens are reserved."""

    def channel_thresholds(self, windows: "torch.Tensor", sites: int = MLP_SITES) -> ChannelThresholds:
        """The |x| above which every whole percentage of channels lies where windows [N, C] of tokens are read densely,
        at the first `sites` of `solm.core.sparsity.SITES`: those of the MLP, or all; with 1 the limits of experts."""

    def pages_held(self) -> tuple[int, int] | None:
        """Pages of keys and values that all sessions hold together, each counted once, and their bytes; None where
        they are not counted."""

    @property
    def exact_passes(self) -> bool:
        """Whether a pass over up to 16 known tokens of a row gives, to the last bit, what single steps give."""

    @property
    def skipping_rows(self) -> int | None:
        """The most rows whose step takes less time where it skips channels; None: any number."""

    def detach(self) -> None:
        """Give the model back exactly as it was."""
