"""Likelihoods of many continuations of many contexts under control: what multiple-choice tasks need."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from solm.backends.logits import LOGITS_AT_ONCE
from solm.backends.session import AnyPolicy, Session
from solm.core.actions import AXES
from solm.core.arrays import as_numpy, as_tensor
from solm.core.budget import Ledger, Spent
from solm.core.cost import axis_levels
from solm.policies.schedules import Static, unroll
from solm.policies.value_policy import ValuePolicy
from solm.runtime.language_model import LanguageModel

Tokens = tuple[int, ...]
Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context (at least one) and of its continuation (at least one)."""
Row = tuple[Tokens, list[int]]
"""Inputs, and the numbers of the pairs that they are of: continuations that differ in their last token alone."""
Group = tuple[Tokens, list[Row]]
"""What is read densely, and the rows that continue it, the shortest first."""
_PHASES = 64
_NOTHING = -1
"""In place of a token that nothing is said of."""


class Scorer:
    """Scores pairs: dense prefill of a context but for its last token, then that and the continuation under control.

    Continuations of one context share its prefill, and `batch` contexts share a pass: one for the shortest
    continuation of each, another for the next ones, so that little is padded. A budget of single steps says nothing,
    so it holds over all pairs: a policy that reads the model carries its ledger from pass to pass, and a schedule that
    does not starts every row at another phase of itself. Contexts and continuations that exceed the model's context
    lose their beginning, as in lm-eval.

    target: [axes] float64 budget shares. spent: what the steps of all calls spent.
    """

    def __init__(self, lm: LanguageModel, policy: AnyPolicy, target: torch.Tensor, batch: int = 16):
        self.lm, self.policy, self.target, self.batch = lm, policy, target, batch
        self.spent = Spent(lm.budgets(policy))

    def score(
        self, pairs: Sequence[Pair], progress: Callable[[int], None] = lambda done: None
    ) -> list[tuple[float, bool]]:
        """By pair log p(continuation | context) in nats, and whether greedy decoding would give it. progress: called
        with pairs done."""
        self.scores = torch.zeros(len(pairs), dtype=torch.float64)
        self.greedy = torch.ones(len(pairs), dtype=torch.bool)
        groups, done = _grouped(pairs, self.lm.context), 0
        self.left = sum(len(inputs) for _, rows in groups for inputs, _ in rows)
        for start in range(0, len(groups), self.batch):
            some = groups[start : start + self.batch]
            contexts = [torch.tensor(context) for context, _ in some]
            prefilled = self.lm.session(capacity=max(map(len, contexts)))
            lengths = torch.tensor([len(context) for context in contexts])
            logits = prefilled.prefill(pad_sequence(contexts, batch_first=True), lengths)
            for number in range(max(len(rows) for _, rows in some)):
                rows = [rows[number] if number < len(rows) else ((), []) for _, rows in some]
                self._continue(prefilled, logits, rows, [pairs[pair][1] for _, those in rows for pair in those])
                done += sum(len(those) for _, those in rows)
            progress(done)
        return list(zip(self.scores.tolist(), self.greedy.tolist(), strict=True))

    def _continue(
        self, prefilled: Session, logits: torch.Tensor, rows: list[Row], continuations: list[Sequence[int]]
    ) -> None:
        """Process the inputs of a row for each of the session's, and score the continuations of their pairs. logits
        [N, V]: after what was read densely; they only matter after a context of a single token."""
        counts = torch.tensor([len(inputs) for inputs, _ in rows])
        length = int(counts.max())
        place = torch.tensor([place for place, (_, those) in enumerate(rows) for _ in those])
        pair = torch.tensor([pair for _, those in rows for pair in those])
        following = torch.full((len(pair), 1 + length), _NOTHING)
        """[P, 1 + length]: what comes after what was read, and after each input."""
        for number, tokens in enumerate(continuations):
            end = 1 + int(counts[place[number]])
            some = torch.tensor(tokens[-end:])
            following[number, end - len(some) : end] = some
        self._add(logits[:, None], following[:, :1], place, pair)
        if not length:
            return
        session = prefilled.fork(1, length + self.lm.sparsity.page_size)
        self._control(session, length)
        inputs = pad_sequence([torch.tensor(inputs, dtype=torch.int64) for inputs, _ in rows], batch_first=True)
        each = min(session.decided_at_once, max(1, LOGITS_AT_ONCE // logits.numel()))
        for start in range(0, length, each):
            known = inputs[:, start : start + each]
            offset = torch.arange(known.shape[1])
            seen = session.lengths[:, None] + 1 + offset
            found = session.extend(known)
            real = start + offset < counts[:, None]
            shares, counted = found.realised[real].double().numpy(), found.controllable[real].numpy()
            self.spent.add(shares, counted, seen[real].numpy())
            self.left -= int(real.sum())
            self._add(found.logits, following[:, 1 + start : 1 + start + len(offset)], place, pair)

    def _control(self, session: Session, length: int) -> None:
        """Put rows that have up to `length` steps to go under the policy, within what is left of the budget."""
        target = self.target.expand(session.rows, -1)
        if not self.policy.reads_model:
            session.control(self.policy, target, length, ledger=self._phases(session, self.policy))
            return
        spent = self.spent.ledger
        sums = (as_tensor(each).expand(session.rows, -1) for each in (spent.spent, spent.steps))
        ledger, early = Ledger(*sums), None
        if isinstance(self.policy, ValuePolicy):
            # What the layers before the policy's owe or own, on top of what the budget has allowed so far.
            early = self._phases(session, Static(self.policy.space)).spent + target * ledger.steps
        session.control(self.policy, target, max(self.left, length), ledger=ledger, early=early)

    def _phases(self, session: Session, policy: AnyPolicy) -> Ledger:
        """For every row what a policy that depends on budgets alone would have over- or underspent after another number
        of steps: its phases in turn."""
        phase = (self.spent.steps + torch.arange(session.rows)) % _PHASES
        assert not isinstance(policy, ValuePolicy)
        target, sparsity = np.tile(as_numpy(self.target), (session.rows, 1)), self.lm.sparsity
        kv_lengths = as_numpy(session.lengths)[:, None] + np.arange(1, _PHASES + 1)
        levels = axis_levels(policy.space, kv_lengths, sparsity, self.lm.shapes)
        counted, nothing = sparsity.controllable(kv_lengths), np.zeros((session.rows, len(AXES)), np.int64)
        realised = unroll(policy, levels, counted, target, Ledger(nothing.astype(float), nothing)).realised
        owed = as_tensor((realised - target[:, None]) * counted).cumsum(1)
        return Ledger(owed[torch.arange(session.rows), phase], as_tensor(nothing))

    def _add(self, logits: torch.Tensor, following: torch.Tensor, place: torch.Tensor, pair: torch.Tensor) -> None:
        """Add what logits [N, L, V] say of tokens that follow [P, L] in rows place [P] of the pairs [P]."""
        number, at = (following != _NOTHING).nonzero(as_tuple=True)
        row, token = place[number].to(logits.device), following[number, at].to(logits.device)
        if len(number):
            logits = logits.float()
            chosen = logits[row, at, token] - logits.logsumexp(-1)[row, at]
            self.scores.index_add_(0, pair[number], chosen.double().cpu())
            self.greedy[pair[number[(logits.argmax(-1)[row, at] != token).cpu()]]] = False


def _grouped(pairs: Sequence[Pair], limit: int | None) -> list[Group]:
    """What is processed, alike in rows and length next to one another, the longest first: memory runs out at once or
    never. limit: tokens that a model's context holds; longer pairs lose their beginning."""
    found: dict[Tokens, dict[Tokens, list[int]]] = {}
    for number, (context, continuation) in enumerate(pairs):
        whole = tuple([*context, *continuation][-(limit + 1) if limit else 0 :])
        # The last context token is a controlled step of its own; a context of one token has to be prefilled.
        read = max(1, len(whole) - len(continuation) - 1)
        found.setdefault(whole[:read], {}).setdefault(whole[read:-1], []).append(number)
    groups = [(context, sorted(rows.items(), key=lambda row: len(row[0]))) for context, rows in found.items()]
    return sorted(groups, key=lambda group: (-len(group[1]), -len(group[1][-1][0]), -len(group[0])))
