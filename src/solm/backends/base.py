"""What the sessions of both backends share: rows under policies, their budgets, and which schedule a pass follows."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from solm.backends import budgets
from solm.backends.control import Control
from solm.backends.session import AnyPolicy, Result, Schedule, Scored, SplitSchedule, check_length, joined
from solm.core.budget import Ledger
from solm.core.cost import ModelShapes
from solm.core.sparsity import SparsityConfig
from solm.policies.network import Features
from solm.policies.schedules import Dense


@dataclass(frozen=True)
class Split:
    """A schedule that changes inside a pass: `choose` gives keep [N, Q, 3] of the layers from `layer` on, from the
    residual stream [N, Q, H] that enters it."""

    layer: int
    choose: Callable[[torch.Tensor], torch.Tensor]


class BaseSession(ABC):
    """See `solm.backends.session.Session`. A backend adds the cache and `_pass`."""

    def __init__(self, sparsity: SparsityConfig, shapes: ModelShapes, context: int | None, device: torch.device):
        """context: tokens that the model can read, None: no limit. device: where policies' states are."""
        self._sparsity, self._context, self._device = sparsity, context, device
        self._budgets: np.ndarray = budgets.uncontrolled(0)
        self._control = Control(sparsity, shapes)

    @property
    @abstractmethod
    def lengths(self) -> torch.Tensor:
        """As `Session.lengths`."""

    @abstractmethod
    def last_hidden(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, H], the input of the output head after the last token of `rows` [n]."""

    @abstractmethod
    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Input embeddings [..., H] of tokens [...]."""

    @abstractmethod
    def _pass(
        self,
        tokens: torch.Tensor,
        keep: torch.Tensor | None,
        split: Split | None = None,
        keep_logits: torch.Tensor | None = None,
        approximate_tail: bool = False,
        decide: bool = False,
    ) -> Result:
        """Process tokens [N, Q] under keep [N, Q, 3] (None: dense), and count them in the budgets.

        decide: whether the backend decides itself for the groups that `_own_groups` names.
        """

    @property
    def sparsity(self) -> SparsityConfig:
        return self._sparsity

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def ledger(self) -> Ledger:
        return budgets.ledger_of(self._budgets)

    @property
    def seen(self) -> Features | None:
        return self._control.seen

    def control(
        self,
        policy: AnyPolicy,
        target: torch.Tensor,
        horizon: int,
        generator: torch.Generator | None = None,
        *,
        ledger: Ledger | None = None,
        early: torch.Tensor | None = None,
        record: bool = False,
    ) -> None:
        """As `Session.control`."""
        self._budgets = budgets.open_budgets(target, horizon, policy.space.dense_index, ledger, early)
        self._control.assign(policy, self.rows, self._device, generator, record)
        self._took_over(policy)

    def _took_over(self, policy: AnyPolicy) -> None:  # noqa: B027
        """What a backend does once all rows are under `policy`; nothing, where Python decides everything."""

    def aim(self, target: torch.Tensor) -> None:
        """As `Session.aim`."""
        budgets.aim(self._budgets, target)

    def step(self, tokens: torch.Tensor, keep: torch.Tensor | None = None, approximate_tail: bool = False) -> Result:
        """As `Session.step`."""
        if keep is not None:
            return self._known(tokens[:, None], keep[:, None], None, approximate_tail)
        return self._decided(tokens[:, None], None, approximate_tail)

    def extend(
        self, tokens: torch.Tensor, keep: Schedule | None = None, keep_logits: torch.Tensor | None = None
    ) -> Result:
        """As `Session.extend`."""
        if keep is not None:
            return self._known(tokens, keep, keep_logits)
        if not self._control.stepwise or tokens.shape[1] == 1:
            return self._decided(tokens, keep_logits)
        found = joined([self._decided(one) for one in tokens.split(1, 1)])
        return found if keep_logits is None else only(found, keep_logits)

    def score(self, tokens: torch.Tensor, keep: Schedule | None = None) -> Scored:
        """As `Session.score`; where rows are decided step by step, no step's logits outlive it."""
        if keep is None and self._control.stepwise:
            steps = range(tokens.shape[1] - 1)
            return joined([Scored.of(self.extend(tokens[:, t : t + 1]), tokens[:, t + 1 : t + 2]) for t in steps])
        return Scored.of(self.extend(tokens[:, :-1], keep), tokens[:, 1:])

    @property
    def _own_groups(self) -> frozenset[int]:
        """Numbers of the groups of rows that the backend decides for itself."""
        return frozenset()

    def _decided(
        self, tokens: torch.Tensor, keep_logits: torch.Tensor | None = None, approximate_tail: bool = False
    ) -> Result:
        """One pass in which the rows' policies decide."""
        own, groups = self._own_groups, self._control.groups
        if all(number in own or isinstance(group.policy, Dense) for number, group in enumerate(groups)):
            return self._pass(tokens, None, None, keep_logits, approximate_tail, decide=bool(own))
        self._check_room(tokens.shape[1])  # before anything is decided
        made = self._control.decide(self._budgets, self.lengths, tokens, self, own)
        split = None if made.layer is None or made.choose is None else Split(made.layer, made.choose)
        found = self._pass(tokens, made.keep, split, keep_logits, approximate_tail, decide=bool(own))
        for number in own:
            assert found.actions is not None
            made.actions[groups[number].rows] = found.actions[groups[number].rows]
        return replace(found, actions=made.actions)

    def _known(
        self,
        tokens: torch.Tensor,
        keep: Schedule,
        keep_logits: torch.Tensor | None = None,
        approximate_tail: bool = False,
    ) -> Result:
        """One pass under a known schedule, whatever policies the rows have."""
        if not isinstance(keep, SplitSchedule):
            return replace(self._pass(tokens, keep, None, keep_logits, approximate_tail), actions=None)
        streams: list[torch.Tensor] = []

        def choose(hidden: torch.Tensor) -> torch.Tensor:
            streams.append(hidden)
            return keep.after

        found = self._pass(tokens, keep.before, Split(keep.layer, choose), keep_logits, approximate_tail)
        return replace(found, actions=None, stream=streams[0])

    def _dense_actions(self, count: int) -> torch.Tensor:
        """[N, Q]: every row's last action, which is the dense one in rows of the policy `Dense`."""
        return torch.from_numpy(self._budgets["previous"].copy())[:, None].expand(-1, count)

    def _check_room(self, count: int) -> None:
        """Raises `ContextLengthError` where `count` more tokens do not fit into the model's context."""
        check_length(int(self.lengths.max()) + count, self._context)


def only(found: Result, keep_logits: torch.Tensor) -> Result:
    """The result with the logits and hidden states of positions keep_logits [N, L] alone."""
    index = keep_logits[..., None]
    logits, hidden = (x.gather(1, index.to(x.device).expand(-1, -1, x.shape[-1])) for x in (found.logits, found.hidden))
    return replace(found, logits=logits, hidden=hidden)
