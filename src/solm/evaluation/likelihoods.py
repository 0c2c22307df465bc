"""Likelihoods of many continuations of many contexts under control: what multiple-choice tasks need."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch

from solm.backends.results import Result
from solm.backends.session import AnyPolicy, Session
from solm.core.arrays import as_numpy, as_tensor
from solm.core.budget import Ledger, Spent
from solm.core.cost import axis_levels
from solm.core.sparsity import SparsityConfig
from solm.evaluation.pair_groups import Controlled, Group, Pair, Row, Tokens, clustered
from solm.policies.priced import PricedPolicy
from solm.policies.schedules import Random, Static, unroll
from solm.runtime.language_model import LanguageModel

_PHASES = 64
_LONGEST_PASS = 512  # tokens a row; what layers make of more would not fit where a batch has many rows
_LOGITS_PER_SLICE = 32  # a float32 slice that stays in the last-level cache


@dataclass(frozen=True)
class Likelihoods:
    """log p(continuation | context) in nats and whether greedy decoding would give it, per pair; what it took."""

    log_probabilities: list[float]
    greedy: list[bool]
    spent: Spent


class Prefills:
    """Prefilled contexts, kept for further jobs over the same pairs for as long as they fit into `limit` bytes."""

    def __init__(self, limit: int = 2 << 30):
        self.limit, self.held = limit, 0
        self._kept: dict[tuple[Tokens, ...], _Prefilled] = {}

    def get(self, key: tuple[Tokens, ...], prefill: "Callable[[], _Prefilled]") -> "_Prefilled":
        """What was kept under `key`, else what `prefill` gives."""
        found = self._kept.get(key)
        if found is None:
            found = prefill()
            if self.held + found.bytes <= self.limit:
                self._kept[key] = found
                self.held += found.bytes
        return found


@dataclass(frozen=True)
class _Prefilled:
    """A session that is only forked, and the logits after its rows' last tokens [N, V] where any are scored.

    shared: tokens at the beginning of all rows whose memory belongs to another session.
    """

    session: Session
    logits: torch.Tensor | None
    shared: int = 0

    @property
    def bytes(self) -> int:
        own = sum(self.session.copy_bytes(int(length) - self.shared) for length in self.session.lengths)
        return own + (0 if self.logits is None else self.logits.nbytes)


def likelihoods(
    lm: LanguageModel,
    pairs: Sequence[Pair],
    policy: AnyPolicy,
    target: torch.Tensor,
    batch: int = 16,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    prefills: Prefills | None = None,
    sparsity: SparsityConfig | None = None,
    control: Controlled = "answer",
) -> Likelihoods:
    """Score `pairs`: dense prefill of a context but for its last token, then that and the continuation under control.

    Continuations of one context share its prefill, and `batch` contexts share a pass: one for the shortest
    continuation of each, another for the next ones, so that little is padded. A budget of single steps says nothing,
    so it holds over the whole job: a policy that reads the model carries its ledger from pass to pass, and a schedule
    that does not starts every row at another phase of itself. Contexts and continuations that exceed the model's
    context lose their beginning, as in lm-eval.

    With control "question" only what contexts begin with alike is read densely, such as the examples of a few-shot
    prompt, and every row has a ledger of its own from there on. A context is then processed once for every continuation
    of several tokens.

    target: [3] float64 budget shares. progress: called with pairs done and in all. prefills: where prefilled contexts
    are kept between calls for one model and one `batch`. sparsity: others than the model's under which steps run.
    """
    clusters = clustered(pairs, control, lm.context)
    total = sum(len(row.inputs) for _, groups in clusters for group in groups for row in group.rows)
    generator = torch.Generator().manual_seed(seed)
    prefills, sparsity = prefills or Prefills(0), sparsity or lm.sparsity
    job = _Job(lm, policy, target, total, generator, pairs, prefills, sparsity, control)
    done = 0
    for prefix, groups in clusters:
        # Alike in rows and length next to one another; the longest first, so that memory runs out at once or never.
        groups.sort(key=lambda group: (-len(group.rows), -len(group.rows[-1].inputs), -len(group.context)))
        for start in range(0, len(groups), batch):
            some = groups[start : start + batch]
            job.run(some, prefix)
            done += sum(len(row.pairs) for group in some for row in group.rows)
            progress(done, len(pairs))
    return Likelihoods(job.scores.tolist(), job.greedy.tolist(), job.spent)


def _slots(rows: torch.Tensor, positions: torch.Tensor, count: int, filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For logits that are wanted [M] by row and position: the positions to compute [count, L], each once in its row
    (rows of fewer are filled up with `filler`), and where each of the M is found among its row's L."""
    spots, which = torch.unique(torch.stack([rows, positions], 1), dim=0, return_inverse=True)
    held = torch.bincount(spots[:, 0], minlength=count)
    place = torch.arange(len(spots)) - (held.cumsum(0) - held)[spots[:, 0]]
    keep = torch.full((count, max(1, int(held.max()))), filler)
    keep[spots[:, 0], place] = spots[:, 1]
    return keep, place[which]


class _Job:
    """The state of one call of `likelihoods`."""

    def __init__(
        self,
        lm: LanguageModel,
        policy: AnyPolicy,
        target: torch.Tensor,
        total: int,
        generator: torch.Generator,
        pairs: Sequence[Pair],
        prefills: Prefills,
        sparsity: SparsityConfig,
        control: Controlled,
    ):
        self.control = control
        self.lm, self.policy, self.target, self.pairs, self.prefills = lm, policy, target, pairs, prefills
        self.sparsity = sparsity
        self.left, self.shuffled = total, torch.randperm(_PHASES, generator=generator)
        self.spent = Spent(replace(lm.budgets(policy), sparsity=sparsity))
        self.scores = torch.zeros(len(pairs), dtype=torch.float64)
        self.greedy = torch.ones(len(pairs), dtype=torch.bool)

    def run(self, groups: list[Group], prefix: Tokens) -> None:
        """Score the rows of some contexts, all of which begin with `prefix`."""
        contexts = [group.context for group in groups]
        prefilled = self.prefills.get((prefix, *contexts), lambda: self._prefill(contexts, prefix))
        for place in range(max(len(group.rows) for group in groups)):
            rows = {index: group.rows[place] for index, group in enumerate(groups) if place < len(group.rows)}
            wanted = self._wanted(rows)
            if prefilled.logits is not None:
                first = wanted[wanted[:, 1] == 0]
                self._score(prefilled.logits[:, None], first, torch.zeros(len(first), dtype=torch.int64))
            self._continue(prefilled.session, rows, wanted)

    def _wanted(self, rows: dict[int, Row]) -> torch.Tensor:
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

    def _prefill(self, contexts: list[Tokens], prefix: Tokens) -> _Prefilled:
        """`contexts`, read densely. Logits are wanted after a context of one token alone: the last token of a longer
        one is processed under control."""
        held = len(prefix)
        if not prefix:
            prompts = [torch.tensor(context) for context in contexts]
            lengths = torch.tensor([len(prompt) for prompt in prompts])
            padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
            session = self.lm.session(capacity=padded.shape[1])
            logits = session.prefill(padded, lengths)
            return _Prefilled(session, logits if int(lengths.min()) == 1 else None)
        shared = self.prefills.get((prefix,), lambda: self._prefill([prefix], ())).session
        lengths = torch.tensor([len(context) - held for context in contexts])
        session = shared.fork(len(contexts), int(lengths.max()) + self.lm.sparsity.page_size)
        if int(lengths.max()):
            own = [torch.tensor(context[held:], dtype=torch.int64) for context in contexts]
            padded = torch.nn.utils.rnn.pad_sequence(own, batch_first=True)
            session.read_on(padded, lengths)
        return _Prefilled(session, None, held)

    def _continue(self, prefilled: Session, rows: dict[int, Row], wanted: torch.Tensor) -> None:
        """Process the inputs of `rows`, by row of the session, and score what they predict."""
        length = max(len(row.inputs) for row in rows.values())
        if not length:
            return
        inputs = torch.zeros(prefilled.rows, length, dtype=torch.int64)
        counts = torch.zeros(prefilled.rows, dtype=torch.int64)
        for place, row in rows.items():
            inputs[place, : len(row.inputs)] = torch.tensor(row.inputs, dtype=torch.int64)
            counts[place] = len(row.inputs)
        session = prefilled.fork(1, length + self.sparsity.page_size, self.sparsity)
        self._control(session, counts)
        each = min(_LONGEST_PASS, session.decided_at_once)
        for start in range(0, length, each):
            kv_length, tokens = session.lengths + 1, inputs[:, start : start + each]
            here = wanted[(wanted[:, 1] > start) & (wanted[:, 1] <= start + tokens.shape[1])]
            # The last position as the filler: a backend may compute all logits from the first wanted one on.
            keep, slots = _slots(here[:, 0], here[:, 1] - start - 1, session.rows, tokens.shape[1] - 1)
            found = session.extend(tokens, keep_logits=keep)
            real = start + torch.arange(tokens.shape[1]) < counts[:, None]
            self._add(found, real, kv_length[:, None] + torch.arange(tokens.shape[1]))
            self._score(found.logits, here, slots)

    def _control(self, session: Session, counts: torch.Tensor) -> None:
        """Put rows that have counts [N] steps to go under the job's policy, within what is left of its budget."""
        target, length = self.target.expand(session.rows, 3), int(counts.max())
        if self.control == "question":
            session.control(self.policy, target, counts.clamp(min=1).numpy())
            return
        if not self.policy.reads_model:
            session.control(self.policy, target, length, ledger=self._phases(session, self.policy))
            return
        sums = (torch.from_numpy(sums).expand(session.rows, -1) for sums in (self.spent.shares, self.spent.counted))
        ledger, early = Ledger(*sums), None
        if isinstance(self.policy, PricedPolicy):
            # What the layers before the policy's owe or own, on top of what the budget has allowed so far.
            early = self._phases(session, Static(self.policy.space)).spent + target * ledger.steps
        horizon = max(self.left, length)
        session.control(self.policy, target, horizon, ledger=ledger, early=early)

    def _phases(self, session: Session, policy: AnyPolicy) -> Ledger:
        """For every row what a policy that depends on budgets alone would have over- or underspent after another number
        of steps: the phases of a static one in turn, and for a random one in an order drawn once."""
        phase = (self.spent.steps + torch.arange(session.rows)) % _PHASES
        if isinstance(policy, Random):
            policy, phase = Static(policy.space), self.shuffled[phase]
        assert not isinstance(policy, PricedPolicy)
        target = self.target.expand(session.rows, 3)
        kv_lengths = as_numpy(session.lengths)[:, None] + np.arange(1, _PHASES + 1)
        levels = axis_levels(policy.space, kv_lengths, self.sparsity, self.lm.shapes)
        counted, nothing = self.sparsity.controllable(kv_lengths), np.zeros((session.rows, 3), np.int64)
        spent = unroll(policy, levels, counted, as_numpy(target), Ledger(nothing.astype(float), nothing)).realised
        owed = as_tensor((spent - as_numpy(target)[:, None]) * counted).cumsum(1)
        return Ledger(owed[torch.arange(session.rows), phase], as_tensor(nothing))

    def _add(self, found: Result, real: torch.Tensor, kv_length: torch.Tensor) -> None:
        self.spent.add(*(each[real].numpy() for each in (found.realised, found.controllable, kv_length)))
        self.left -= int(real.sum())

    def _score(self, logits: torch.Tensor, wanted: torch.Tensor, slots: torch.Tensor) -> None:
        """Add what logits [N, L, V], each at its slot [M] among the L of its row, say of wanted [M, 4]."""
        for some, slot in zip(wanted.split(_LOGITS_PER_SLICE), slots.split(_LOGITS_PER_SLICE), strict=True):
            row, _, token, pair = some.unbind(1)
            picked = logits[row.to(logits.device), slot.to(logits.device)].float().cpu()
            chosen = picked.gather(1, token[:, None])[:, 0]
            self.scores.index_add_(0, pair, (chosen - picked.logsumexp(1)).double())
            self.greedy[pair[picked.argmax(1) != token]] = False
