"""Likelihoods of many continuations of many contexts under control: what multiple-choice tasks need."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from solm.backends.results import Result
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

_SHORTEST_PREFIX, _SMALLEST_CLUSTER = 32, 4
"""Tokens and contexts that make a shared prefill worth while."""
_PHASES = 64
_LONGEST_PASS = 512  # tokens a row; what layers make of more would not fit where a batch has many rows
_LOGITS_PER_SLICE = 32  # a float32 slice that stays in the last-level cache


@dataclass
class _Row:
    """One input that several pairs may share: continuations that differ in their last token alone."""

    inputs: Tokens
    pairs: list[int]


@dataclass
class _Group:
    """What is read densely, and the rows that continue it, the shortest first."""

    context: Tokens
    rows: list[_Row]


class Scorer:
    """Scores pairs: dense prefill of a context but for its last token, then that and the continuation under control.

    Continuations of one context share its prefill, and `batch` contexts share a pass: one for the shortest
    continuation of each, another for the next ones, so that little is padded. A budget of single steps says nothing,
    so it holds over all pairs of a call: a policy that reads the model carries its ledger from pass to pass, and a
    schedule that does not starts every row at another phase of itself. Contexts and continuations that exceed the
    model's context lose their beginning, as in lm-eval.

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
        self.pairs = pairs
        self.scores = torch.zeros(len(pairs), dtype=torch.float64)
        self.greedy = torch.ones(len(pairs), dtype=torch.bool)
        self.ledger, self.steps = Ledger(torch.zeros(1, len(AXES)).double(), torch.zeros(1, len(AXES)).long()), 0
        clusters = _clustered(pairs, self.lm.context)
        self.left = sum(len(row.inputs) for _, groups in clusters for group in groups for row in group.rows)
        done = 0
        for prefix, groups in clusters:
            # Alike in rows and length next to one another; the longest first: memory runs out at once or never.
            groups.sort(key=lambda group: (-len(group.rows), -len(group.rows[-1].inputs), -len(group.context)))
            shared = self._read([prefix])[0] if prefix else None
            for start in range(0, len(groups), self.batch):
                some = groups[start : start + self.batch]
                self._run(some, shared, len(prefix))
                done += sum(len(row.pairs) for group in some for row in group.rows)
                progress(done)
        return list(zip(self.scores.tolist(), self.greedy.tolist(), strict=True))

    def _run(self, groups: list[_Group], shared: Session | None, held: int) -> None:
        """Score the rows of some contexts, whose first `held` tokens `shared` has read."""
        contexts = [group.context for group in groups]
        prefilled, logits = self._read(contexts) if shared is None else (self._read_on(contexts, shared, held), None)
        for place in range(max(len(group.rows) for group in groups)):
            rows = {index: group.rows[place] for index, group in enumerate(groups) if place < len(group.rows)}
            wanted = self._wanted(rows)
            if logits is not None:  # of a context of one token; the last of a longer one is a step under control
                first = wanted[wanted[:, 1] == 0]
                self._add(logits[:, None], first, torch.zeros(len(first), dtype=torch.int64))
            self._continue(prefilled, rows, wanted)

    def _read(self, contexts: list[Tokens]) -> tuple[Session, torch.Tensor | None]:
        """A session that has read `contexts` densely, and the logits after them where one has a single token."""
        prompts = [torch.tensor(context) for context in contexts]
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
        session = self.lm.session(capacity=padded.shape[1])
        logits = session.prefill(padded, lengths)
        return session, logits if int(lengths.min()) == 1 else None

    def _read_on(self, contexts: list[Tokens], shared: Session, held: int) -> Session:
        lengths = torch.tensor([len(context) - held for context in contexts])
        session = shared.fork(len(contexts), int(lengths.max()) + self.lm.sparsity.page_size)
        if int(lengths.max()):
            own = [torch.tensor(context[held:], dtype=torch.int64) for context in contexts]
            session.read_on(torch.nn.utils.rnn.pad_sequence(own, batch_first=True), lengths)
        return session

    def _wanted(self, rows: dict[int, _Row]) -> torch.Tensor:
        """Which logits score what [M, 4]: session row, number, token and pair; number 0 is the prefill's last."""
        scored = [
            (place, len(row.inputs) + 1, index, self.pairs[index][1][-len(row.inputs) - 1 :])
            for place, row in rows.items()
            for index in row.pairs
        ]
        lengths = torch.tensor([len(tokens) for *_, tokens in scored])
        place, end, index = torch.tensor([found[:3] for found in scored]).repeat_interleave(lengths, 0).unbind(1)
        offset = torch.arange(len(place)) - lengths.cumsum(0).repeat_interleave(lengths)
        token = torch.tensor(list(chain.from_iterable(tokens for *_, tokens in scored)))
        return torch.stack([place, end + offset, token, index], 1)

    def _continue(self, prefilled: Session, rows: dict[int, _Row], wanted: torch.Tensor) -> None:
        """Process the inputs of `rows`, by row of the session, and score what they predict."""
        length = max(len(row.inputs) for row in rows.values())
        if not length:
            return
        inputs = torch.zeros(prefilled.rows, length, dtype=torch.int64)
        counts = torch.zeros(prefilled.rows, dtype=torch.int64)
        for place, row in rows.items():
            inputs[place, : len(row.inputs)] = torch.tensor(row.inputs, dtype=torch.int64)
            counts[place] = len(row.inputs)
        session = prefilled.fork(1, length + self.lm.sparsity.page_size)
        self._control(session, counts)
        each = min(_LONGEST_PASS, session.decided_at_once)
        for start in range(0, length, each):
            kv_length, tokens = session.lengths + 1, inputs[:, start : start + each]
            here = wanted[(wanted[:, 1] > start) & (wanted[:, 1] <= start + tokens.shape[1])]
            # The last position as the filler: a backend may compute all logits from the first wanted one on.
            keep, slots = _slots(here[:, 0], here[:, 1] - start - 1, session.rows, tokens.shape[1] - 1)
            found = session.extend(tokens, keep_logits=keep)
            real = start + torch.arange(tokens.shape[1]) < counts[:, None]
            self._spend(found, real, kv_length[:, None] + torch.arange(tokens.shape[1]))
            self._add(found.logits, here, slots)

    def _control(self, session: Session, counts: torch.Tensor) -> None:
        """Put rows that have counts [N] steps to go under the policy, within what is left of the budget."""
        target, length = self.target.expand(session.rows, -1), int(counts.max())
        if not self.policy.reads_model:
            session.control(self.policy, target, length, ledger=self._phases(session, self.policy))
            return
        sums = (each.expand(session.rows, -1) for each in (self.ledger.spent, self.ledger.steps))
        ledger, early = Ledger(*sums), None
        if isinstance(self.policy, ValuePolicy):
            # What the layers before the policy's owe or own, on top of what the budget has allowed so far.
            early = self._phases(session, Static(self.policy.space)).spent + target * ledger.steps
        session.control(self.policy, target, max(self.left, length), ledger=ledger, early=early)

    def _phases(self, session: Session, policy: AnyPolicy) -> Ledger:
        """For every row what a policy that depends on budgets alone would have over- or underspent after another number
        of steps: its phases in turn."""
        phase = (self.steps + torch.arange(session.rows)) % _PHASES
        assert not isinstance(policy, ValuePolicy)
        target, sparsity = np.tile(as_numpy(self.target), (session.rows, 1)), self.lm.sparsity
        kv_lengths = as_numpy(session.lengths)[:, None] + np.arange(1, _PHASES + 1)
        levels = axis_levels(policy.space, kv_lengths, sparsity, self.lm.shapes)
        counted, nothing = sparsity.controllable(kv_lengths), np.zeros((session.rows, len(AXES)), np.int64)
        realised = unroll(policy, levels, counted, target, Ledger(nothing.astype(float), nothing)).realised
        owed = as_tensor((realised - target[:, None]) * counted).cumsum(1)
        return Ledger(owed[torch.arange(session.rows), phase], as_tensor(nothing))

    def _spend(self, found: Result, real: torch.Tensor, kv_length: torch.Tensor) -> None:
        realised, counted = found.realised[real], found.controllable[real]
        self.spent.add(realised.double().numpy(), counted.numpy(), kv_length[real].numpy())
        self.ledger = Ledger(self.ledger.spent + (realised * counted).sum(0), self.ledger.steps + counted.sum(0))
        self.steps += len(realised)
        self.left -= len(realised)

    def _add(self, logits: torch.Tensor, wanted: torch.Tensor, slots: torch.Tensor) -> None:
        """Add what logits [N, L, V], each at its slot [M] among the L of its row, say of wanted [M, 4]."""
        for some, slot in zip(wanted.split(_LOGITS_PER_SLICE), slots.split(_LOGITS_PER_SLICE), strict=True):
            row, _, token, pair = some.unbind(1)
            picked = logits[row.to(logits.device), slot.to(logits.device)].float().cpu()
            chosen = picked.gather(1, token[:, None])[:, 0]
            self.scores.index_add_(0, pair, (chosen - picked.logsumexp(1)).double())
            self.greedy[pair[picked.argmax(1) != token]] = False


def _slots(rows: torch.Tensor, positions: torch.Tensor, count: int, filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For logits that are wanted [M] by row and position: the positions to compute [count, L], each once in its row
    (rows of fewer are filled up with `filler`), and where each of the M is found among its row's L."""
    spots, which = torch.unique(torch.stack([rows, positions], 1), dim=0, return_inverse=True)
    held = torch.bincount(spots[:, 0], minlength=count)
    place = torch.arange(len(spots)) - (held.cumsum(0) - held)[spots[:, 0]]
    keep = torch.full((count, max(1, int(held.max()))), filler)
    keep[spots[:, 0], place] = spots[:, 1]
    return keep, place[which]


def _clustered(pairs: Sequence[Pair], limit: int | None) -> list[tuple[Tokens, list[_Group]]]:
    """What is processed, by the beginning that contexts share.

    limit: tokens that a model's context holds; longer pairs lose their beginning.
    """
    known: dict[Tokens, list[tuple[int, Tokens]]] = {}
    for index, (context, continuation) in enumerate(pairs):
        whole = tuple([*context, *continuation][-(limit + 1) if limit else 0 :])
        kept = max(1, len(whole) - len(continuation))
        # The last context token is a controlled step of its own; a context of one token has to be prefilled.
        known.setdefault(whole[: max(1, kept - 1)], []).append((index, whole))
    found = []
    for prefix, contexts in _alike(list(known)):
        groups = []
        for context in contexts:
            rows: dict[Tokens, _Row] = {}
            for index, whole in known[context]:
                inputs = whole[len(context) : -1]
                rows.setdefault(inputs, _Row(inputs, [])).pairs.append(index)
            groups.append(_Group(context, sorted(rows.values(), key=lambda row: len(row.inputs))))
        found.append((prefix, groups))
    return found


def _alike(contexts: list[Tokens]) -> list[tuple[Tokens, list[Tokens]]]:
    """Contexts that begin alike, as few-shot prompts of one task do, with the prefix that they share; under an empty
    prefix the others."""
    groups: dict[Tokens, list[Tokens]] = {}
    for context in contexts:
        groups.setdefault(context[:_SHORTEST_PREFIX], []).append(context)
    found: list[tuple[Tokens, list[Tokens]]] = []
    others: list[Tokens] = []
    for some in groups.values():
        first, last = min(some), max(some)
        shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        # Every context keeps a token of its own.
        shared = min(shared, min(len(context) for context in some) - 1)
        if len(some) < _SMALLEST_CLUSTER or shared < _SHORTEST_PREFIX:
            others += some
        else:
            found.append((first[:shared], some))
    return [*found, ((), others)]
