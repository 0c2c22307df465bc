"""Likelihoods of many continuations of many contexts under control: what multiple-choice tasks need."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from solm.backends.session import AnyPolicy, Result, Session
from solm.core.budget import Ledger
from solm.core.cost import relative_cost
from solm.core.sparsity import SparsityConfig
from solm.policies.priced import PricedPolicy
from solm.policies.schedules import Random, Static
from solm.policies.unroll import unroll
from solm.runtime.language_model import LanguageModel

_PHASES = 64
_LONGEST_PASS = 512  # tokens a row; logits of more would not fit where contexts are long
_LOGITS_PER_SLICE = 32  # a float32 slice that stays in the last-level cache

_SHORTEST_PREFIX, _SMALLEST_CLUSTER = 32, 4  # tokens and contexts that make a shared prefill worth while

_Tokens = tuple[int, ...]
Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context (at least one) and of its continuation (at least one)."""


@dataclass(frozen=True)
class Spent:
    """Sums over the steps of a job: bytes as a share of dense, and how many steps they were; shares per axis [3]
    float64 of the steps that could be controlled on it, and how many those were, controllable [3] int64."""

    shares: torch.Tensor
    bytes: float
    controllable: torch.Tensor
    steps: int

    @classmethod
    def sum(cls, parts: "Sequence[Spent]") -> "Spent":
        """What several jobs spent."""
        ledger = Ledger.empty(1)
        shares = sum((part.shares for part in parts), ledger.spent[0])
        controllable = sum((part.controllable for part in parts), ledger.steps[0])
        return cls(shares, sum(part.bytes for part in parts), controllable, sum(part.steps for part in parts))

    @property
    def average(self) -> torch.Tensor:
        """Mean share per axis [3]; 1 where no step was controllable."""
        average: torch.Tensor = Ledger(self.shares, self.controllable).average
        return average


@dataclass(frozen=True)
class Likelihoods:
    """log p(continuation | context) in nats and whether greedy decoding would give it, per pair; what it took."""

    log_probabilities: list[float]
    greedy: list[bool]
    spent: Spent


@dataclass
class _Row:
    """One input that several pairs may share: continuations that differ in their last token alone."""

    inputs: _Tokens
    pairs: list[int]


class Prefills:
    """Prefilled contexts, kept for further jobs over the same pairs for as long as they fit into `limit` bytes."""

    def __init__(self, limit: int = 2 << 30):
        self.limit, self.held = limit, 0
        self._kept: dict[tuple[_Tokens, ...], tuple[Session, torch.Tensor]] = {}

    def get(
        self, key: tuple[_Tokens, ...], prefill: Callable[[], tuple[Session, torch.Tensor]]
    ) -> tuple[Session, torch.Tensor]:
        """What was kept under `key`, else what `prefill` gives: a session, to be forked only, and its last logits."""
        found = self._kept.get(key)
        if found is None:
            found = prefill()
            size = found[0].memory_bytes() + found[1].nbytes
            if self.held + size <= self.limit:
                self._kept[key] = found
                self.held += size
        return found


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
) -> Likelihoods:
    """Score `pairs`: dense prefill of a context but for its last token, then that and the continuation under control.

    Continuations of one context share its prefill, and `batch` contexts share a pass: one for the shortest
    continuation of each, another for the next ones, so that little is padded. A budget of single steps says nothing,
    so it holds over the whole job: a policy that reads the model carries its ledger from pass to pass, and a schedule
    that does not starts every row at another phase of itself. Contexts and continuations that exceed the model's
    context lose their beginning, as in lm-eval.

    target: [3] float64 budget shares. progress: called with pairs done and in all. prefills: where prefilled contexts
    are kept between calls for one model and one `batch`. sparsity: others than the model's under which steps run.
    """
    groups = _grouped(lm, pairs)
    total = sum(len(row.inputs) for rows in groups.values() for row in rows)
    generator = torch.Generator().manual_seed(seed)
    job = _Job(lm, policy, target, total, generator, pairs, prefills or Prefills(0), sparsity or lm.sparsity)
    done = 0
    for prefix, contexts in _clusters(list(groups)):
        # Alike in rows and length next to one another; the longest first, so that memory runs out at once or never.
        contexts.sort(key=lambda context: (-len(groups[context]), -len(groups[context][-1].inputs), -len(context)))
        for start in range(0, len(contexts), batch):
            some = {context: groups[context] for context in contexts[start : start + batch]}
            job.run(some, prefix)
            done += sum(len(row.pairs) for rows in some.values() for row in rows)
            progress(done, len(pairs))
    spent = Spent(job.ledger.spent[0], job.bytes, job.ledger.steps[0], job.steps)
    return Likelihoods(job.scores.tolist(), job.greedy.tolist(), spent)


def _clusters(contexts: list[_Tokens]) -> list[tuple[_Tokens, list[_Tokens]]]:
    """Contexts that begin alike, as few-shot prompts of one task do, with the prefix that they share; under an empty
    prefix the others."""
    alike: dict[_Tokens, list[_Tokens]] = {}
    for context in contexts:
        alike.setdefault(context[:_SHORTEST_PREFIX], []).append(context)
    found: list[tuple[_Tokens, list[_Tokens]]] = []
    others: list[_Tokens] = []
    for some in alike.values():
        first, last = min(some), max(some)
        shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        # Every context keeps a token of its own.
        shared = min(shared, min(len(context) for context in some) - 1)
        if len(some) < _SMALLEST_CLUSTER or shared < _SHORTEST_PREFIX:
            others += some
        else:
            found.append((first[:shared], some))
    return [*found, ((), others)]


def _grouped(lm: LanguageModel, pairs: Sequence[Pair]) -> dict[_Tokens, list[_Row]]:
    """Rows by the context that they continue, the shortest first."""
    limit = lm.context
    groups: dict[_Tokens, dict[_Tokens, _Row]] = {}
    for index, (context, continuation) in enumerate(pairs):
        whole = [*context, *continuation][-(limit + 1) if limit else 0 :]
        kept = max(1, len(whole) - len(continuation))
        # The last context token is a controlled step of its own; a context of one token has to be prefilled.
        first = max(1, kept - 1)
        rows = groups.setdefault(tuple(whole[:first]), {})
        inputs = tuple(whole[first:-1])
        rows.setdefault(inputs, _Row(inputs, [])).pairs.append(index)
    return {context: sorted(rows.values(), key=lambda row: len(row.inputs)) for context, rows in groups.items()}


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
    ):
        self.lm, self.policy, self.target, self.pairs, self.prefills = lm, policy, target, pairs, prefills
        self.sparsity = sparsity
        self.left, self.generator = total, generator
        self.shuffled = torch.randperm(_PHASES, generator=generator)
        self.ledger = Ledger.empty(1)
        self.bytes, self.steps = 0.0, 0
        self.scores = torch.zeros(len(pairs), dtype=torch.float64)
        self.greedy = torch.ones(len(pairs), dtype=torch.bool)

    def run(self, groups: dict[_Tokens, list[_Row]], prefix: _Tokens) -> None:
        """Score the rows of some contexts, all of which begin with `prefix`."""
        contexts = list(groups)
        session, logits = self.prefills.get((prefix, *contexts), lambda: self._prefill(contexts, prefix))
        for place in range(max(len(rows) for rows in groups.values())):
            rows = {index: some[place] for index, some in enumerate(groups.values()) if place < len(some)}
            wanted = self._wanted(rows)
            self._score(logits[:, None], 0, wanted)
            self._continue(session, rows, wanted)

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

    def _prefill(self, contexts: list[_Tokens], prefix: _Tokens) -> tuple[Session, torch.Tensor]:
        """A session that has read `contexts` densely, and its last logits [N, V]."""
        held = len(prefix)
        prompts = [torch.tensor(context[held:]) for context in contexts]
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
        if not prefix:
            session = self.lm.session(capacity=padded.shape[1])
            return session, session.prefill(padded, lengths)
        shared, _ = self.prefills.get((prefix,), lambda: self._prefill([prefix], ()))
        session = shared.fork(len(contexts), padded.shape[1] + self.lm.sparsity.page_size)
        found = session.extend(padded, keep_logits=lengths[:, None] - 1)
        session.truncate(held + lengths)
        return session, found.logits[:, 0]

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
        session = prefilled.fork(1, length + self.sparsity.page_size, self.sparsity)
        self._control(session, length)
        for start in range(0, length, _LONGEST_PASS):
            kv_length, tokens = session.lengths + 1, inputs[:, start : start + _LONGEST_PASS]
            found = session.extend(tokens)
            real = start + torch.arange(tokens.shape[1]) < counts[:, None]
            self._add(found, real, kv_length[:, None] + torch.arange(tokens.shape[1]))
            self._score(found.logits, start + 1, wanted)

    def _control(self, session: Session, length: int) -> None:
        """Put rows that have `length` steps to go under the job's policy, within what is left of its budget."""
        target = self.target.expand(session.rows, 3)
        if not self.policy.reads_model:
            session.control(self.policy, target, length, self.generator, ledger=self._phases(session, self.policy))
            return
        ledger, early = self.ledger.rows(torch.zeros(session.rows, dtype=torch.int64)), None
        if isinstance(self.policy, PricedPolicy):
            # What the layers before the policy's owe or own, on top of what the budget has allowed so far.
            early = self._phases(session, Static(self.policy.space)).spent + target * ledger.steps
        horizon = max(self.left, length)
        session.control(self.policy, target, horizon, self.generator, ledger=ledger, early=early)

    def _phases(self, session: Session, policy: AnyPolicy) -> Ledger:
        """For every row what a policy that depends on budgets alone would have over- or underspent after another number
        of steps: the phases of a static one in turn, and for a random one in an order drawn once."""
        phase = (self.steps + torch.arange(session.rows)) % _PHASES
        if isinstance(policy, Random):
            policy, phase = Static(policy.space), self.shuffled[phase]
        assert not isinstance(policy, PricedPolicy)
        target = self.target.expand(session.rows, 3)
        kv_length = session.lengths + 1
        schedule = unroll(policy, kv_length, self.sparsity, self.lm.shapes, _PHASES, target, Ledger.empty(session.rows))
        counted = self.sparsity.controllable(kv_length[:, None] + torch.arange(_PHASES))
        owed = ((schedule.realised - target[:, None]) * counted).cumsum(1)
        return Ledger(owed[torch.arange(session.rows), phase], torch.zeros(session.rows, 3, dtype=torch.int64))

    def _add(self, found: Result, real: torch.Tensor, kv_length: torch.Tensor) -> None:
        counted = found.controllable & real[..., None]
        cost = relative_cost(found.realised, kv_length, self.lm.shapes, self.sparsity, "bytes")
        self.bytes += float(cost[real].sum())
        spent = (found.realised * counted).sum((0, 1))
        self.ledger = Ledger(self.ledger.spent + spent, self.ledger.steps + counted.sum((0, 1)))
        self.steps += int(real.sum())
        self.left -= int(real.sum())

    def _score(self, logits: torch.Tensor, offset: int, wanted: torch.Tensor) -> None:
        """Add what logits [N, Q, V], the first of which is number `offset` of its row, say of wanted [M, 4]: row,
        number, token, pair."""
        here = wanted[(wanted[:, 1] >= offset) & (wanted[:, 1] < offset + logits.shape[1])]
        for row, number, token, pair in (part.unbind(1) for part in here.split(_LOGITS_PER_SLICE)):
            picked = logits[row.to(logits.device), (number - offset).to(logits.device)].float().cpu()
            chosen = picked.gather(1, token[:, None])[:, 0]
            self.scores.index_add_(0, pair, (chosen - picked.logsumexp(1)).double())
            self.greedy[pair[picked.argmax(1) != token]] = False
