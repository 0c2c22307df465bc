"""The session protocol: how everything above the backends runs a model. What it gets back is in `backends.results`.

A session holds N rows. A row is one sequence with all of its state: keys and values, the policy that decides for it,
its budget and what it has spent. Rows are read densely (`prefill`), put under a policy (`control`) and then advanced by
`step`, `extend` or `score`. These follow a known schedule where one is given, else the rows' policies.

Sessions are given arrays or tensors. The cpu backend answers in the kind of the token ids, so that decoding needs no
torch; the torch backend answers in tensors.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from solm.backends.results import Result, Schedule, Scored
from solm.core.actions import AXES
from solm.core.arrays import Array
from solm.core.budget import Ledger
from solm.core.cost import ModelShapes
from solm.core.errors import UnsupportedModelError
from solm.core.sparsity import MLP_SITES, ChannelThresholds, SparsityConfig
from solm.policies.priced import PricedPolicy
from solm.policies.schedules import Policy

if TYPE_CHECKING:
    import torch

AnyPolicy = Policy | PricedPolicy
MOST_EXACT = 64
"""Largest logits of a step that can be exact where others are approximate."""


class Session(Protocol):
    """N rows of one model. Token ids are int64, on any device; lengths, budgets and schedules are on the host."""

    @property
    def rows(self) -> int: ...

    @property
    def lengths(self) -> "torch.Tensor":
        """[N] int64, tokens that every row has seen."""

    def length(self, row: int) -> int:
        """Tokens that `row` has seen."""

    @property
    def ledger(self) -> Ledger:
        """What rows have spent so far: a copy."""

    @property
    def sparsity(self) -> SparsityConfig:
        """How actions are carried out in this session."""

    def prefill(self, tokens: Array, lengths: Array | None = None, every_logit: bool = False) -> Any:
        """Read tokens [S, C] densely; logits after every row's last token [S, V].

        lengths: [S] tokens that count in each row; the others are padding on the right. every_logit: logits after every
        token, [S, C, V]. Raises `ContextLengthError`, and `DataError` for no tokens and, on the torch backend, for rows
        that are forks.
        """

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

    def aim(self, target: Array) -> None:
        """Other targets [N, 3] from here on; what was spent is seen against what was allowed until now."""

    def step(self, tokens: Array, keep: Array | None = None, exact_largest: int | np.ndarray = 0) -> Result:
        """Process one token a row, tokens [N], Q = 1.

        keep: [N, 3], what all layers follow; None: the rows' policies decide, dense in rows without one.
        exact_largest: how many of a row's largest logits count, at most `MOST_EXACT`: the others may be approximate
        and stay below (`cpu` then reads half of most heads). Of all rows, or [N]; 0: all logits are exact.
        """

    def extend(self, tokens: Array, keep: Schedule | None = None, keep_logits: Array | None = None) -> Result:
        """Process known tokens [N, Q]: equal to Q steps, in one pass.

        keep_logits: [N, L] positions among the Q whose hidden states and logits are wanted; None: all.
        """

    @property
    def decided_at_once(self) -> int:
        """Known tokens that one pass should process where policies decide. Budgets learn what a pass realised after it,
        so `score` divides longer texts by this."""

    def score(
        self,
        tokens: "torch.Tensor",
        keep: Schedule | None = None,
        *,
        reference: "torch.Tensor | None" = None,
        keep_logits: bool = False,
    ) -> Scored:
        """Process the first T of tokens [N, T+1]: log p(tokens[:, t+1]) for every t.

        reference: logits [N / R, T, V] of the rows that these are R adjacent forks of, for `Scored.divergences`.
        keep_logits: return logits [N, T, V], which are not in memory as a whole otherwise.
        """

    def fork(self, forks: int, capacity: int = 0, sparsity: SparsityConfig | None = None) -> Self:
        """A session of `forks` rows for each of this one's, adjacent, independent of it from here on. Whole pages are
        shared, not copied. capacity: tokens to reserve room for. sparsity: how the fork carries actions out."""

    def copy(self, length: int, capacity: int = 0, sparsity: SparsityConfig | None = None) -> Self:
        """A session of one row that has seen the first `length` tokens of this one's only row, under no policy.

        sparsity: as for `fork`. Raises `DataError` where that row has not seen them (cpu: in a prefill of its own).
        """

    def copy_bytes(self, length: int, shared: int = 0) -> int:
        """Bytes that a copy of `length` tokens takes beside another one that it shares the first `shared` tokens with,
        whole pages."""

    def join(self, other: Self) -> None:
        """Append the rows of `other`, which must not be used afterwards.

        Raises `SolmError` for a policy that decides before another layer and, on the torch backend, `DataError` for
        rows that are forks.
        """

    def leave(self, row: int) -> None:
        """Drop a row; the last one takes its place."""

    def truncate(self, lengths: Array) -> None:
        """Forget what rows hold beyond lengths [N]; budgets stay as they are.

        Raises `DataError` where a row holds less than that, or shares what it should forget.
        """


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

    shapes: ModelShapes
    capability: Capability

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
        at the first `sites` of `solm.core.sparsity.SITES`: those of the MLP, or all."""

    def pages_held(self) -> tuple[int, int] | None:
        """Pages of keys and values that all sessions hold together, each counted once, and their bytes; None where
        they are not counted."""

    @property
    def skipping_rows(self) -> int | None:
        """The most rows whose step takes less time where it skips channels; None: any number."""

    def detach(self) -> None:
        """Give the model back exactly as it was."""
